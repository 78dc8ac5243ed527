"""Adaptive integration of the probability flow inside XLA (Diffrax), with a step size for each
sample.

Every sample is a solve of its own, so its result and its number of evaluations do not depend on its
batch-mates. Under vmap the loop runs until the slowest sample is done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

MIN_STEPS, MAX_STEPS = 20, 4096


class SolveError(RuntimeError):
    """A solve that did not succeed; the message has the solver's own reason."""


class Solution(NamedTuple):
    """What a solve of B samples returns.

    Attributes:
        y: end states, leaves (B, ...).
        nfe: evaluations of the field for each sample, (B,) int32.
        result: the solver's own verdict for each sample, (B,) of ``diffrax.RESULTS``.
        path: states at the requested times, leaves (B, times, ...); None unless requested.
    """

    y: Any
    nfe: Array
    result: diffrax.RESULTS
    path: Any | None


def integrate(
    field: Callable[[Array, Any, Any], Any],
    y: Any,
    args: Any,
    *,
    start: float | Array,
    end: float | Array,
    rtol: float | Array,
    atol: float | Array,
    times: Array | None = None,
) -> Solution:
    """Integrate dy/dt = field(t, y, args) for each sample by Dormand and Prince's 5(4) pair.

    A step's error is the root mean square over each leaf of y, and the largest of these over the
    leaves, so that a scalar leaf (a log density) counts as much as an image.

    Args:
        field: for one sample, t a scalar array.
        y: a pytree whose leaves have a leading batch axis.
        args: a pytree with a leading batch axis, handed to ``field``.
        start: the first time.
        end: the last time, before or after ``start``.
        rtol: relative tolerance of a step's error.
        atol: absolute tolerance of a step's error.
        times: (n,) times from start to end at which states are kept.
    """
    # A bound on the step: on smooth flows the error estimate of a step over a third of the interval
    # can vanish by chance (seen: an error of 3e-3 at a tolerance of 1e-5). Networks take more
    # steps than this anyway.
    longest = jnp.abs(jnp.asarray(end) - start) / MIN_STEPS
    controller = diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest_rms, dtmax=longest)
    saves = [diffrax.SubSaveAt(t1=True)] + ([] if times is None else [diffrax.SubSaveAt(ts=times)])

    def solve(y: Any, args: Any) -> tuple[Any, Array, Any]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),  # type: ignore[arg-type]  # t is an array in a solve
            diffrax.Dopri5(),
            t0=start,
            t1=end,
            dt0=None,
            y0=y,
            args=args,
            saveat=diffrax.SaveAt(subs=saves),
            stepsize_controller=controller,
            max_steps=MAX_STEPS,
            solver_state=(jnp.asarray(False), field(jnp.asarray(start), y, args)),
            throw=False,
        )
        # Six new stages a step, accepted or not: its first is the last of the step before. The very
        # first is the evaluation above, which would else be repeated until a step is accepted. A
        # test counts the calls.
        return solution.ys, 1 + 6 * solution.stats["num_steps"], solution.result

    ys, nfe, result = jax.vmap(solve)(y, args)
    return Solution(
        jax.tree.map(lambda leaf: leaf[:, 0], ys[0]),
        nfe,
        result,
        ys[1] if times is not None else None,
    )


def check(result: diffrax.RESULTS) -> None:
    """Raise SolveError with the solver's own reason if a solve failed; within a jitted function
    do nothing."""
    codes = result._value
    if isinstance(codes, jax.core.Tracer):
        return
    success: Any = diffrax.RESULTS.successful  # which mypy takes for its message
    failed = jnp.flatnonzero(codes != success._value)
    if failed.size:
        reason = diffrax.RESULTS._index_to_message[int(codes[failed[0]])]
        raise SolveError(f"the solve failed for {failed.size} of {codes.size} samples: {reason}")


def _largest_rms(error: Any) -> Array:
    squares = [jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(error)]
    return jnp.sqrt(jnp.max(jnp.stack(squares)))
