"""Sub-VP on CIFAR-10: `vp_cifar10` under the other process; DDPM++ by default.

    python main.py --config configs/subvp_cifar10.py:ddpmpp_deep --mode train

Variants, with what was published (Song et al. 2021, arXiv:2011.13456, tables 2 and 3; not rerun
here): FID of sampling as configured, FID and bits/dim by the probability flow.

    ddpmpp        2.61  3.16  3.02   the default
    ddpmpp_deep   2.41  2.92  2.99
    ncsnpp           -     -     -
    ncsnpp_deep      -     -     -
    ddpm             -  3.56  3.05

Cost: as `vp_cifar10`.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "ddpmpp", "ddpmpp_deep", "ncsnpp", "ncsnpp_deep", "ddpm")
    config = presets.load(f"vp_cifar10:{variant}")
    config.sde.name = "subvp"
    return config
