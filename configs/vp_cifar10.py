"""VP on CIFAR-10: the paper's configurations. DDPM++ trained in continuous time is the default.

    python main.py --config configs/vp_cifar10.py --mode train
    python main.py --config configs/vp_cifar10.py:ddpmpp_deep --mode train

The images come from `--config.data.dir`, a prepared set or a download (see `score_sde/data`).
Variants, with what was published (Song et al. 2021, arXiv:2011.13456, tables 1 to 3, for the first
three columns; not rerun here): FID of sampling as configured, FID and bits/dim by the probability
flow, parameters.

    ddpmpp            2.55  3.93  3.16   61.8 M   the default
    ddpmpp_deep       2.41  3.08  3.13  106.6 M   also: deep
    ncsnpp               -     -     -   62.7 M
    ncsnpp_deep          -     -     -  107.5 M
    ddpm                 -  3.69  3.21   35.2 M   DDPM's network (Ho et al. 2020, arXiv:2006.11239)
    ddpm_discrete     3.24  3.37  3.28   35.2 M   trained on DDPM's 1000 levels, as the next four
    ddpmpp_discrete   2.78     -     -   61.8 M
    ncsnpp_discrete      -     -     -   62.7 M
    ddpm_unconditional   -     -     -   32.3 M   without the level
    ddpm_diffusers       -     -     -   35.7 M   Ho et al.'s own network, as google/ddpm-cifar10-32
    conditional          -     -     -   61.8 M   the default's, given the class; not of the paper

Cost: 1.3 million steps of 128 images (deep: 950 thousand): 22 hours on one H200 for the default, 16
with `--config.model.dtype=bfloat16`; out of reach of a CPU.
"""

from ml_collections import ConfigDict

from score_sde.config import check_variant, default

CONTINUOUS = ("ddpmpp", "ddpmpp_deep", "deep", "ncsnpp", "ncsnpp_deep", "ddpm", "conditional")
DISCRETE = (
    "ddpm_discrete",
    "ddpmpp_discrete",
    "ncsnpp_discrete",
    "ddpm_unconditional",
    "ddpm_diffusers",
)


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, *CONTINUOUS, *DISCRETE)
    deep, discrete = variant.endswith("deep"), variant in DISCRETE
    config = default()
    config.seed = 42
    config.data.name = "cifar10"
    config.data.flip = True
    config.sde.name = "vp"
    config.sde.beta_min = 0.1
    config.sde.beta_max = 20.0

    _model(config.model, variant)

    training = config.training
    training.label_dropout = 0.1 if variant == "conditional" else 0.0
    training.num_steps = 950_001 if deep else 1_300_001
    if variant == "ddpm_diffusers":
        training.num_steps = 800_000
    training.batch_size = 128
    training.learning_rate = 2e-4
    training.warmup_steps = 5000
    training.gradient_clip = 1.0
    training.ema_rate = 0.9999
    training.loss = "paper"
    training.reduce_mean = True
    training.dequantize = False
    training.checkpoint_every = 10_000
    training.sample_every = 50_000

    sampling = config.sampling
    sampling.method = "pc"
    sampling.num_steps = 1000
    sampling.predictor = "ancestral" if discrete else "euler_maruyama"
    if variant == "ncsnpp_discrete":
        sampling.predictor = "reverse_diffusion"
    sampling.corrector = "none"
    sampling.snr = 0.16
    sampling.denoise = True
    sampling.faithful = True
    return config


def _model(model: ConfigDict, variant: str) -> None:
    """DDPM++, and what the variants have in its place."""
    model.width = 128
    model.multipliers = (1, 2, 2, 2)
    model.num_blocks = 8 if variant.endswith("deep") else 4
    model.attention_resolutions = (16,)
    model.dropout = 0.1
    model.embedding = "positional"
    model.condition = "time"
    model.parameterization = "epsilon"
    model.num_levels = 1000 if variant in DISCRETE else 0
    if variant.startswith("ncsnpp"):
        model.fir = True
        model.progressive_input = "residual"
    if variant.startswith("ddpm") and not variant.startswith("ddpmpp"):
        model.num_blocks = 2
        model.block = "ddpm"
        model.skip_rescale = False
        model.norm_groups = 32
    if variant == "ddpm_unconditional":
        model.conditional = False
    if variant == "ddpm_diffusers":
        model.decoder_attention = "every"
    model.class_conditional = variant == "conditional"
