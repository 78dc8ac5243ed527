"""VP on CIFAR-10: the paper's DDPM++ trained on continuous times; variant `deep` doubles its depth.

    python main.py --config configs/vp_cifar10.py --mode train
    python main.py --config configs/vp_cifar10.py:deep --mode train

The images come from `--config.data.dir`, a prepared set or a download (see `score_sde/data`).
Expected, by the paper (Song et al. 2021, arXiv:2011.13456, tables 2 and 3), not rerun here: FID
2.55 from the predictor-corrector sampler, 3.16 bits/dim; deep 2.41 and 3.13.
Cost: 1.3 million steps of 128 images, days on a GPU; out of reach of a CPU.
"""

from ml_collections import ConfigDict

from score_sde.config import check_variant, default


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "deep")
    config = default()
    config.data.name = "cifar10"
    config.data.flip = True
    config.sde.name = "vp"

    model = config.model
    model.width = 128
    model.multipliers = (1, 2, 2, 2)
    model.num_blocks = 8 if variant == "deep" else 4
    model.attention_resolutions = (16,)
    model.dropout = 0.1
    model.embedding = "positional"
    model.condition = "time"
    model.parameterization = "epsilon"

    training = config.training
    training.num_steps = 950_001 if variant == "deep" else 1_300_001
    training.batch_size = 128
    training.learning_rate = 2e-4
    training.warmup_steps = 5000
    training.gradient_clip = 1.0
    training.ema_rate = 0.9999
    training.loss = "paper"
    training.dequantize = False
    training.checkpoint_every = 10_000
    training.sample_every = 10_000

    sampling = config.sampling
    sampling.method = "pc"
    sampling.num_steps = 1000
    sampling.predictor = "euler_maruyama"
    sampling.corrector = "none"
    return config
