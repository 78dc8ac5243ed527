"""Samplers: frozen dataclasses of their settings with one method, ``sample``."""

from collections.abc import Callable
from functools import partial

from score_sde.samplers.base import Sampler, Samples
from score_sde.samplers.exponential import DDIM, ExponentialMultistep
from score_sde.samplers.heun import Heun
from score_sde.samplers.langevin import AnnealedLangevin
from score_sde.samplers.ode import ProbabilityFlow
from score_sde.samplers.predictor_corrector import PredictorCorrector

__all__ = [
    "DDIM",
    "SAMPLERS",
    "AnnealedLangevin",
    "ExponentialMultistep",
    "Heun",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Samples",
]

# Each name's settings are the fields that it leaves open.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "pc": PredictorCorrector,
    "ald": AnnealedLangevin,
    "ode": ProbabilityFlow,
    "ddim": DDIM,
    "dpmpp": partial(ExponentialMultistep, corrector=False),
    "unipc": partial(ExponentialMultistep, corrector=True, eta=0.0),
    "heun": Heun,
}
