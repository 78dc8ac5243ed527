"""A variational diffusion model (Kingma et al. 2021) of the 8x8 digits: `vp_digits` with a schedule
that training learns, trained by the bound on -log p.

    python main.py --config configs/vdm_digits.py --mode train
    python main.py --config configs/vdm_digits.py --mode likelihood
    python main.py --config configs/vdm_digits.py --mode likelihood --config.likelihood.method=bound

As in the paper: Fourier features of the pixels (those of `vp_digits`), times that are evenly spread
over a batch, a network that reads the log-SNR.
With a small network (`model.width` 8, `model.multipliers` (1,), 11,702 parameters) after 600 steps
one draw of the bound has a standard deviation of 1.65 nats/dim, and of 3.58 by a nearly straight
schedule between the same ends (`benchmarks/learned_schedule.py`).
By Adam, 4000 steps: 1.796 +- 0.014 bits/dim of the 297 held-out digits by the flow (NFE 169), 1.786
+- 0.016 by the bound, whose times add +- 0.032. `vp_digits` by Adam has 1.758 by the flow. By the
preset's Muon after 1412 steps, five minutes on one core of an x86-64 CPU with AVX2: 1.831 by the
flow, 1.816 by the bound (docs/systems.md).
Cost: as `vp_digits`.
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
