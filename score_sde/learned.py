"""The schedule that training learns (Kingma et al. 2021, arXiv:2107.00630, sections 3.2, 5.1, 5.3).

A variance-preserving process is its gamma(t) = -log SNR: alpha^2 = sigmoid(-gamma), sigma^2 =
sigmoid(gamma). The bound on -log p depends on the two ends of gamma, and on nothing between them.
What lies between says how often each noise level is drawn, and so how far an estimate of the bound
scatters. `score_sde.variational` trains the ends by the bound and the rest by that variance.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.errors import require
from score_sde.sde import SDE, VP

NUM_BENDS = 8


class ByGamma(VP):
    """Variance-preserving by gamma(t) = -log SNR."""

    def gamma(self, t: Array) -> Array:
        """gamma(t), rising, (B,) -> (B,)."""
        raise NotImplementedError  # a subclass says it, as `SDE.alpha`

    def slope(self, t: Array) -> Array:
        """gamma'(t), (B,) -> (B,)."""
        return jax.jvp(self.gamma, (t,), (jnp.ones_like(t),))[1]

    def integral(self, t: Array) -> Array:
        return jax.nn.softplus(self.gamma(t))

    def beta(self, t: Array) -> Array:
        return jax.nn.sigmoid(self.gamma(t)) * self.slope(t)

    def log_snr(self, t: Array) -> Array:
        return -self.gamma(t)

    def inverse_log_snr(self, log_snr: Array) -> Array:
        return SDE.inverse_log_snr(self, log_snr)  # VP's goes by the inverse of `integral`


class LearnedVP(ByGamma):
    """gamma rises from `gamma_min` to `gamma_max` as a sum of a straight line and some sigmoids in
    t. Each of these has a height, a rate and a place; height and rate are positive by softplus. It
    begins as a line that is nearly straight.

    Attributes:
        gamma_min, gamma_max: gamma at 0 and at T.
        line: height of the straight line, before the softplus.
        heights, rates, places: of the sigmoids, (K,); the first two before the softplus.

    Raises:
        ValueError: gamma_max that is not above gamma_min.
    """

    t_min: ClassVar[float] = 1e-5
    is_learned: ClassVar[bool] = True
    gamma_min: Any = -13.3
    gamma_max: Any = 5.0
    line: Any = 0.5
    heights: Any = (-2.0,) * NUM_BENDS
    rates: Any = (10.0,) * NUM_BENDS
    places: Any = tuple((np.arange(NUM_BENDS) + 0.5).tolist())

    def __post_init__(self) -> None:
        if isinstance(self.gamma_max, int | float):
            rises = self.gamma_max > self.gamma_min
            require(rises, "gamma_max", self.gamma_max, f"numbers above {self.gamma_min}")
        for name in ("heights", "rates", "places"):
            if isinstance(values := getattr(self, name), tuple):
                object.__setattr__(self, name, jnp.asarray(values, jnp.float32))

    def __repr__(self) -> str:
        return f"LearnedVP(gamma_min={self.gamma_min}, gamma_max={self.gamma_max})"

    def gamma(self, t: Array) -> Array:
        first, last = (self._rise(jnp.asarray(end, t.dtype)) for end in (0.0, self.T))
        share = (self._rise(t) - first) / (last - first)
        low, high = (jnp.asarray(end, t.dtype) for end in (self.gamma_min, self.gamma_max))
        return low + (high - low) * share

    def _rise(self, t: Array) -> Array:
        """The sum before it is scaled to reach from 0 to 1."""
        line, heights, rates = (
            jax.nn.softplus(jnp.asarray(value, t.dtype))
            for value in (self.line, self.heights, self.rates)
        )
        places = jnp.asarray(self.places, t.dtype) / NUM_BENDS
        after = range(t.ndim)  # the axes of t come before that of the sigmoids
        heights, rates, places = (jnp.expand_dims(row, after) for row in (heights, rates, places))
        bends = heights * jax.nn.sigmoid(rates * (jnp.expand_dims(t, -1) - places))
        # Added one by one. The sum over an axis is a reduction, and jaxlib 0.10.2 fuses it on CPUs
        # with one that comes after it, as over the pixels of sigma score + z. That program
        # (`__ynn_fusion`) is wrong beyond 2^15 numbers: github.com/jax-ml/jax/issues/39103.
        return sum(jnp.unstack(bends, axis=-1), start=line * t)


def constants(process: SDE) -> dict[str, Any]:
    """The constants that training learns, by their names; {} where they are fixed."""
    if not getattr(process, "is_learned", False):
        return {}
    known: Any = process  # mypy does not see that it is a dataclass
    return {field.name: getattr(process, field.name) for field in dataclasses.fields(known)}


def with_constants(process: SDE, params: Mapping[str, Any]) -> SDE:
    """The process with its constants of a network's parameters, where they are learned."""
    return type(process)(**params["constants"]) if constants(process) else process
