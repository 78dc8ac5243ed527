"""VP at 256 pixels: DDPM's network on DDPM's 1000 levels (Ho et al. 2020, arXiv:2006.11239).

    python main.py --config configs/vp_256.py:church --mode sample --workdir DIR

Variants: bedroom and church of LSUN, celebahq. For models that were trained elsewhere. To train
one: --config.data.name=tfds:lsun/church_outdoor --config.data.dir=DIR, where TFDS has prepared it,
or a folder of images (docs/data.md).
Expected: no figure of these configurations was published.
Cost: 2.4 million steps of 64 images, weeks on GPUs.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import require_variant

SETS = {"bedroom": "lsun_bedroom", "church": "lsun_church", "celebahq": "celebahq"}


def get_config(variant: str = "") -> ConfigDict:
    require_variant(variant, *SETS)
    config = presets.load("vp_cifar10:ddpm_discrete")
    config.data.name = SETS[variant]
    config.data.image_size = 256

    config.model.multipliers = (1, 1, 2, 2, 4, 4)
    config.model.dropout = 0.0

    config.training.num_steps = 2_400_001
    config.training.batch_size = 64
    config.training.learning_rate = 2e-5

    config.sampling.snr = 0.075
    config.sampling.num_samples = config.sampling.batch_size = 16
    return config
