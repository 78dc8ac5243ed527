"""A variational diffusion model (Kingma et al. 2021) of the 8x8 digits: `vp_digits` with a schedule
that training learns, trained by the bound on -log p.

    python main.py --config configs/vdm_digits.py --mode train
    python main.py --config configs/vdm_digits.py --mode likelihood
    python main.py --config configs/vdm_digits.py --mode likelihood --config.likelihood.method=bound

As in the paper: times that are evenly spread over a batch, a network that reads the log-SNR,
Fourier features of the pixels. These are `vp_digits`' own: one frequency, where the paper has two.
With a small network (`model.width` 8, `model.multipliers` (1,), 11,702 parameters) after 600 steps
one draw of the bound has a standard deviation of 1.65 nats/dim, and of 3.58 by a nearly straight
schedule between the same ends (`benchmarks/learned_schedule.py`).
Reached: 1.721 +- 0.015 bits/dim of the 297 held-out digits by the flow (NFE 188), 1.717 +- 0.016
by the bound. After 1412 steps, five minutes, they are 1.831 and 1.816 (docs/systems.md).
Cost: 4500 steps, 19 minutes on one core of an x86-64 CPU with AVX2 beside other work.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant)
    config = presets.load("vp_digits")
    config.sde.name = "vp_learned"
    config.training.loss = "likelihood"
    return config
