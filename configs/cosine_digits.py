"""The cosine process (Nichol and Dhariwal 2021, arXiv:2102.09672) on the 8x8 digits: the demo.

    python main.py --config configs/cosine_digits.py --mode train
    python main.py --config configs/cosine_digits.py --mode sample
    python main.py --config configs/cosine_digits.py:conditional --mode train  # given the class

Network, training and sampler are those of `vp_digits`. alpha and sigma are a cosine and a sine, so
more of the times have a middling noise, where shapes are decided.
Reached: 1.685 +- 0.015 bits/dim on the 297 held-out digits, where `vp_digits` has 1.697. A
judge's mean top probability is .931 for digits of the flow and .945 of the SDE, where `vp_digits`
has .914 and .933, and real digits .987 (docs/systems.md). Of 1500 digits of `:conditional` a judge
takes 98.5 % for their class (docs/control.md).
Cost: as `vp_digits`.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "conditional")
    config = presets.load(f"vp_digits:{variant}" if variant else "vp_digits")
    config.sde.name = "cosine"
    config.sde.t_max = 0.999  # the log-SNR that the network reads is infinite at 1
    return config
