"""Editing data that are given: back and forth through the noise, or to another class.

    edited = editing.edit(key, sde, score, sampler, x0, strength=0.5)      # SDEdit
    changed = editing.relabel(sde, score_given_3, score_given_5, x0, ProbabilityFlow())

References:
    Meng et al. 2022, SDEdit: Guided Image Synthesis and Editing, arXiv:2108.01073, algorithm 1.
    Su et al. 2023, Dual Diffusion Implicit Bridges, arXiv:2203.08382, algorithm 1.
    Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.1 (the flow's latents).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from score_sde.errors import require
from score_sde.samplers.base import Sampler, Samples, normal
from score_sde.samplers.ode import ProbabilityFlow
from score_sde.sde import SDE, ScoreFn, expand
from score_sde.spaces import item_keys


def edit(
    key: Array,
    sde: SDE,
    score: ScoreFn,
    sampler: Sampler,
    x0: Array,
    strength: float,
    *,
    first: int = 0,
) -> Samples:
    """Noise data to the time strength T of the process, and sample back from there: the more noise,
    the more of them is drawn anew.

    The sampler makes all of its steps between that time and its last, on its own grid. The one that
    follows the original code, ``faithful``, knows no such grid.

    Args:
        key: a jax key, of the noise and of the sampler.
        sde: the process.
        score: its score function, guided or not.
        sampler: any that takes real times.
        x0: data, or strokes in their place, (B, *shape) in the model's range.
        strength: above the sampler's last time over T, up to 1. At 1 it is plain sampling, from the
            noise about alpha(T) x0.
        first: index of the first sample, for those that are drawn in parts.

    Raises:
        ValueError: data that are no floats, a strength that is not allowed, or ``faithful``; as
            ``Sampler.sample``.
    """
    require(jnp.issubdtype(x0.dtype, jnp.floating), "x0.dtype", f"{x0.dtype}", "floats")
    time, last = strength * sde.T, sampler.last_time(sde)
    ok = last < time <= sde.T
    require(ok, "strength", strength, f"numbers above {last / sde.T:g}, up to 1")
    faithful = getattr(sampler, "faithful", False)
    require(not faithful, "faithful", faithful, "False where samples do not start at T")
    mean, std = sde.marginal(x0, jnp.full(len(x0), time, x0.dtype))
    noise = normal(item_keys(key, len(x0), first), 0, x0.shape[1:], x0.dtype)
    start = mean + expand(std, x0) * noise
    process = sde if time == sde.T else _Until(sde, time)
    return sampler.sample(key, process, score, start, first=first)


def relabel(
    sde: SDE, source: ScoreFn, target: ScoreFn, x0: Array, flow: ProbabilityFlow
) -> Samples:
    """Take data of one class to another: the latents of the probability flow under the score given
    the first are decoded under that given the second. No chance is in it, and with equal scores it
    is the identity up to the tolerance.

    Args:
        sde: the process.
        source: the score function of the data's class, such as ``model.given({"labels": labels})``.
        target: that of the other class.
        x0: data (B, *shape), in the model's range.
        flow: its settings.

    Returns:
        the data of the other class, and the evaluations of both ways.

    Raises:
        RuntimeError: with the reason, if a solve did not succeed.
    """
    latents = flow.encode(sde, source, x0)
    found = flow.decode(sde, target, latents.x)
    return found._replace(nfe=latents.nfe + found.nfe)


class _Until(SDE):
    """A process that ends at an earlier time. All else is the process's own. The two times are
    constants of a class elsewhere; here they are of each object, which mypy calls an override."""

    process: Any
    end: Any

    @property
    def T(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.end

    @property
    def t_min(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.process.t_min


def _of_the_process(name: str) -> Callable[..., Any]:
    return lambda self, *times: getattr(self.process, name)(*times)


for _name in (
    *("alpha", "sigma", "log_alpha", "log_snr", "inverse_log_snr"),
    *("drift_rate", "diffusion", "transition", "time_steps"),
):
    setattr(_Until, _name, _of_the_process(_name))
