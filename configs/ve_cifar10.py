"""VE on CIFAR-10: the paper's configurations. NCSN++ trained in continuous time is the default.

    python main.py --config configs/ve_cifar10.py --mode train
    python main.py --config configs/ve_cifar10.py:ncsnpp_deep --mode train

The images come from `--config.data.dir`, a prepared set or a download (see `score_sde/data`).
Variants, with the published FID and inception score (Song et al. 2021, arXiv:2011.13456, table 1
and 3; not rerun here):

    ncsnpp            2.38  9.83   the default
    ncsnpp_deep       2.20  9.89
    ncsnpp_discrete   2.45  9.73   trained on SMLD's 1000 levels
    ddpm_discrete        -     -   DDPM's network, trained on SMLD's 1000 levels
    ncsn                 -     -   NCSN's levels and sampler (Song, Ermon 2019, arXiv:1907.05600)
    ncsnv2               -     -   NCSNv2's (Song, Ermon 2020, arXiv:2006.09011)

The last two train this package's U-Net, not the RefineNets of their papers, and promise no score of
theirs: noise levels, number of steps and the annealed Langevin dynamics are as there, but that it
starts from N(0, sigma_max^2) in place of uniform noise.
Cost: 1.3 million steps of 128 images (deep: 950 thousand), days on a GPU; out of reach of a CPU.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    networks = {"ncsnpp_deep": "ncsnpp_deep", "ddpm_discrete": "ddpm"}
    check_variant(
        variant, "ncsnpp", "ncsnpp_deep", "ncsnpp_discrete", "ddpm_discrete", "ncsn", "ncsnv2"
    )
    network = networks.get(variant, "ncsnpp")
    config = presets.load(f"vp_cifar10:{network}")
    config.sde.name = "ve"
    config.sde.sigma_min = 0.01
    config.sde.sigma_max = 50.0

    model, training, sampling = config.model, config.training, config.sampling
    model.centered = False
    model.parameterization = "score"
    if variant in ("", "ncsnpp", "ncsnpp_deep"):
        model.embedding = "fourier"
        model.fourier_scale = 16.0
        model.condition = "log_sigma"
    else:
        model.num_levels = 1000

    training.ema_rate = 0.999
    training.reduce_mean = False

    sampling.predictor = "reverse_diffusion"
    sampling.corrector = "langevin"
    sampling.corrector_steps = 1
    sampling.snr = 0.16

    # Their steps are x + a score + sqrt(2 a) z with a = e sigma^2 / sigma_min^2, by their code and
    # by NCSNv2's paper (NCSN's has a / 2 for a): step_size, a / sigma^2, is e / sigma_min^2.
    if variant in ("ncsn", "ncsnv2"):
        sampling.method = "ald"
        sampling.consistent = False
    if variant == "ncsn":
        config.sde.sigma_max = 1.0
        model.num_levels = sampling.num_steps = 10
        training.num_steps = 200_001
        sampling.steps_per_level = 100
        sampling.step_size = 0.2  # e = 2e-5
        sampling.denoise = False
    if variant == "ncsnv2":
        model.num_levels = sampling.num_steps = 232
        model.conditional = False  # technique 3: the network's output over sigma, sigma untold
        training.num_steps = 300_001
        sampling.steps_per_level = 5
        sampling.step_size = 0.062  # e = 6.2e-6
    return config
