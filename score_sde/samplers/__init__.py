"""Samplers: frozen dataclasses of their settings with one method, ``sample``."""

from score_sde.samplers.base import Samples
from score_sde.samplers.exponential import DDIM, ExponentialMultistep
from score_sde.samplers.heun import Heun
from score_sde.samplers.langevin import AnnealedLangevin
from score_sde.samplers.ode import ProbabilityFlow
from score_sde.samplers.predictor_corrector import PredictorCorrector

__all__ = [
    "DDIM",
    "AnnealedLangevin",
    "ExponentialMultistep",
    "Heun",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Samples",
]
