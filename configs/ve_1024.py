"""VE at 1024 pixels: the 256 pixels' NCSN++, narrower and deeper.

    python main.py --config configs/ve_1024.py:ffhq --mode sample --workdir DIR

Variants: celebahq, ffhq. For models that were trained elsewhere. To train one:
--config.data.name=folder --config.data.dir=DIR, a folder of images (docs/data.md).
Expected: samples only were published (Song et al. 2021, arXiv:2011.13456), no figure.
Cost: 2.4 million steps of 8 images, weeks on GPUs; 4000 evaluations for an image.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import require_variant


def get_config(variant: str = "") -> ConfigDict:
    require_variant(variant, "celebahq", "ffhq")
    config = presets.load(f"ve_256:{variant}")
    config.data.image_size = 1024
    config.sde.sigma_max = 1348.0

    config.model.width = 16
    config.model.multipliers = (1, 2, 4, 8, 16, 32, 32, 32)
    config.model.num_blocks = 1

    config.training.batch_size = 8
    config.training.ema_rate = 0.9999
    config.training.reduce_mean = variant == "ffhq"  # as published

    config.sampling.snr = 0.15
    config.sampling.num_samples = config.sampling.batch_size = 4
    return config
