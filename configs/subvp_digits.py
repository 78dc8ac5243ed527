"""Sub-VP on the 8x8 digits: `vp_digits` under the other process.

    python main.py --config configs/subvp_digits.py --mode train
    python main.py --config configs/subvp_digits.py --mode likelihood

Reached: 1.711 +- 0.014 bits/dim on the 297 held-out digits, where `vp_digits` has 1.697.
Cost: 4500 steps of 64 images, 16 minutes on one core of an x86-64 CPU with AVX2, jax 0.10.2.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant)
    config = presets.load("vp_digits")
    config.sde.name = "subvp"
    return config
