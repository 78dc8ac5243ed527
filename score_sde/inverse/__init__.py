"""Inverse problems: from a score and a measurement y = A(x0) + sigma_y n to draws of x0 given y.

Each method has its own file. It is a function of (sde, score, operator, y, sigma_y), and returns a
score function for any sampler, or a projection for those with fixed steps:

    posterior = inverse.mmps(sde, score, operator, y, sigma_y)
    x = sampler.sample(key, sde, posterior, shape=(B, *shape)).x
"""

from score_sde.inverse import operators
from score_sde.inverse.calibration import coverage
from score_sde.inverse.diffpir import diffpir
from score_sde.inverse.dps import dps
from score_sde.inverse.methods import METHODS
from score_sde.inverse.mmps import mmps
from score_sde.inverse.pigdm import pigdm
from score_sde.inverse.repaint import RePaint
from score_sde.inverse.replacement import replacement
from score_sde.inverse.twisted import TwistedSMC

__all__ = [
    "METHODS",
    "RePaint",
    "TwistedSMC",
    "coverage",
    "diffpir",
    "dps",
    "mmps",
    "operators",
    "pigdm",
    "replacement",
]
