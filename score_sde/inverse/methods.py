"""The methods of `--mode restore` by the names that configs give them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from score_sde.inverse.diffpir import diffpir
from score_sde.inverse.dps import dps
from score_sde.inverse.mmps import mmps
from score_sde.inverse.pigdm import pigdm
from score_sde.inverse.repaint import RePaint
from score_sde.inverse.replacement import replacement
from score_sde.inverse.twisted import TwistedSMC
from score_sde.samplers import Sampler


class Method(NamedTuple):
    """A method.

    Attributes:
        make: of (sde, score, operator, y, sigma_y) the posterior's score, or the projection.
        projects: it is a projection, not a score.
        sampler: its own, where the method has steps of its own. None: it goes with any sampler.
        key: the setting that it alone has: an argument of `sampler`, or else of `make`.
        by_particles: the draws of an image are particles, in a number that `key` says.
        exact: it takes measurements without noise, sigma_y = 0.
        reads_sigma_y: its draws depend on sigma_y.
    """

    make: Callable[..., Any]
    projects: bool = False
    sampler: Callable[..., Sampler] | None = None
    key: str = ""
    by_particles: bool = False
    exact: bool = True
    reads_sigma_y: bool = True


# One iteration is not exact for a blur. Iterations cost little beside the network.
_replacement = partial(replacement, iterations=8)

METHODS = {
    "pigdm": Method(pigdm),
    "mmps": Method(mmps, key="iterations", exact=False),
    "dps": Method(dps, key="zeta", reads_sigma_y=False),
    "diffpir": Method(diffpir),
    "replacement": Method(_replacement, projects=True),
    # RePaint's steps have DDPM's noise, as in its paper.
    "repaint": Method(_replacement, True, partial(RePaint, eta=1.0), key="resamplings"),
    "twisted": Method(pigdm, False, TwistedSMC, "particles", by_particles=True, exact=False),
}
