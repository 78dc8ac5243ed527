"""VE on CelebA at 64 pixels: NCSN++ trained on SMLD's 1000 levels.

    python main.py --config configs/ve_celeba.py --mode sample --workdir DIR

For models that were trained elsewhere. To train one: --config.data.name=tfds:celeb_a
--config.data.dir=DIR, where TFDS has prepared it (docs/data.md).
Expected: samples only were published (Song et al. 2021, arXiv:2011.13456), no figure.
Cost: 1.3 million steps of 128 images, days on GPUs.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant)
    config = presets.load("ve_cifar10:ncsnpp_discrete")
    config.data.name = "celeba"
    config.data.image_size = 64
    config.sde.sigma_max = 90.0
    config.sampling.snr = 0.17
    return config
