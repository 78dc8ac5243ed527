"""Samplers: frozen dataclasses of their settings with one method, ``sample``.

A new sampler is a file here and a line in ``SAMPLERS``.
"""

from collections.abc import Callable
from functools import partial

from score_sde.samplers.base import Sampler, Samples
from score_sde.samplers.consistency import Consistency
from score_sde.samplers.deis import DEIS
from score_sde.samplers.exponential import DDIM, ExponentialMultistep
from score_sde.samplers.grids import GridSampler
from score_sde.samplers.heun import Heun
from score_sde.samplers.ipndm import IPNDM
from score_sde.samplers.langevin import AnnealedLangevin
from score_sde.samplers.ode import ProbabilityFlow
from score_sde.samplers.predictor_corrector import CORRECTORS, PREDICTORS, PredictorCorrector
from score_sde.samplers.stepped import SteppedSampler

__all__ = [
    "CORRECTORS",
    "DDIM",
    "DEIS",
    "IPNDM",
    "PREDICTORS",
    "SAMPLERS",
    "AnnealedLangevin",
    "Consistency",
    "ExponentialMultistep",
    "GridSampler",
    "Heun",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Sampler",
    "Samples",
    "SteppedSampler",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "pc": PredictorCorrector,
    "ald": AnnealedLangevin,
    "ode": ProbabilityFlow,
    "ddim": DDIM,
    "dpmpp": partial(ExponentialMultistep, corrector=False),
    "unipc": partial(ExponentialMultistep, corrector=True, eta=0.0),
    "ipndm": IPNDM,
    "deis": DEIS,
    "heun": Heun,
    "consistency": Consistency,
}
"""The samplers by the names that configs give them. The settings of each are the fields that it
leaves open."""
