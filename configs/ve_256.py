"""VE at 256 pixels: NCSN++ with image pyramids in and out.

    python main.py --config configs/ve_256.py:church --mode sample --workdir DIR

Variants: bedroom and church of LSUN, celebahq, ffhq. For models that were trained elsewhere. To
train one: --config.data.name=tfds:lsun/church_outdoor --config.data.dir=DIR, where TFDS has
prepared it, or a folder of images (docs/data.md).
Expected: samples only were published (Song et al. 2021, arXiv:2011.13456), no figure.
Cost: 2.4 million steps of 64 images, weeks on GPUs; 4000 evaluations for an image.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import require_variant

# Name of the data set and sigma_max.
SETS = {
    "bedroom": ("lsun_bedroom", 378.0),
    "church": ("lsun_church", 380.0),
    "celebahq": ("celebahq", 348.0),
    "ffhq": ("ffhq", 348.0),
}


def get_config(variant: str = "") -> ConfigDict:
    require_variant(variant, *SETS)
    config = presets.load("ve_cifar10:ncsnpp")
    config.data.name, config.sde.sigma_max = SETS[variant]
    config.data.image_size = 256

    model = config.model
    model.multipliers = (1, 1, 2, 2, 2, 2, 2)
    model.num_blocks = 2
    model.dropout = 0.0
    model.progressive_output = "output_skip"
    model.progressive_input = "input_skip"
    model.combine = "sum"

    config.training.num_steps = 2_400_001
    config.training.batch_size = 64

    sampling = config.sampling
    sampling.num_steps = 2000
    sampling.snr = 0.075
    sampling.num_samples = sampling.batch_size = 16
    return config
