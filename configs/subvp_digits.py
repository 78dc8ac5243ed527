"""Sub-VP on the 8x8 digits: `vp_digits` under the other process.

    python main.py --config configs/subvp_digits.py --mode train
    python main.py --config configs/subvp_digits.py --mode likelihood

Expected: bits/dim near those of `vp_digits`.
Cost: as `vp_digits`.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant)
    config = presets.load("vp_digits")
    config.sde.name = "subvp"
    return config
