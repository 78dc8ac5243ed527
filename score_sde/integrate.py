"""Integration of the probability flow of a whole batch, inside XLA.

An explicit Runge-Kutta step advances all B samples at once. Each sample has its own time and step
size (Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, section II.4). The
field is always evaluated on the whole batch, so it may hold arrays of the batch. A sample's result
and its number of evaluations do not depend on its batch-mates, as long as the field acts on each
sample by itself. The loop runs until the slowest sample is done.

The end state can be differentiated in reverse mode, with respect to everything that the field
holds. The gradient is that of the steps taken, with their sizes held fixed. JAX refuses forward
mode, except with fixed steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.errors import require
from score_sde.sde import expand

Field = Callable[[Array, Any], Any]
"""dy/dt of a batch: (t (B,), y with leaves (B, ...)) -> a tree like y."""

# Their tableaus, by Diffrax's names: Tsitouras 2011, 5(4); Dormand, Prince 1980, 5(4); Prince,
# Dormand 1981, 8(7); Heun, 2(1). `euler` has no error estimate: its steps are fixed.
SOLVERS = {"tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8", "heun": "Heun", "euler": ""}
STEP_CONTROLS = ("sample", "batch")
# A step's length follows from the errors of the last two steps (Soederlind 2002, section 3). In
# sqrt(t) some 15 steps suffice. The more cautious gains 0.4 and 0.2 took 15 % more evaluations for
# the same error (benchmarks/README.md).
INTEGRAL, PROPORTIONAL = 0.7, 0.4
MIN_STEPS, MAX_STEPS = 10, 4096
# The length of the first step, over the longest. A guess from the field would divide a difference
# of two evaluations by a tiny step. Then rounding, and so the batch's shape, would decide the first
# step and every later one. From noise the flow is smooth and takes the longest step; from data, a
# quarter.
FROM_NOISE, FROM_DATA = 1.0, 0.25
GROWTH = 2.0  # of a step over the one before, at most: an error may vanish by chance
SHRINKAGE = 0.2  # at most, of a rejected step
# Of the step that the tolerance would allow. Fewer steps are rejected than at the usual 0.9. A
# batch waits for its slowest image, which needs an eighth fewer steps.
SAFETY = 0.8
# The least error, in units of the tolerance. Far below the tolerance errors are rounding. Rounding
# must not decide the next step: a sample's steps would depend on how its batch is computed.
NEGLIGIBLE = 1e-5

SUCCESS, TOO_MANY, TOO_SMALL, NOT_FINITE = range(4)


class SolveError(RuntimeError):
    """A solve that did not succeed; the message has the reason.

    Attributes:
        larger: the settings whose larger values may help.
    """

    def __init__(self, message: str, larger: tuple[str, ...]) -> None:
        super().__init__(message)
        self.larger = larger


class Solution(NamedTuple):
    """What a solve of B samples returns.

    Attributes:
        y: end states, leaves (B, ...); nan where the solve did not succeed.
        nfe: evaluations of the field for each sample, (B,) int32.
        verdict: for each sample ``SUCCESS``, ``TOO_MANY`` (steps), ``TOO_SMALL`` (a step) or
            ``NOT_FINITE``, (B,) int32.
        path: states at the requested times, leaves (B, times, ...); None unless requested.
    """

    y: Any
    nfe: Array
    verdict: Array
    path: Any | None


def integrate(
    field: Field,
    y: Any,
    *,
    start: float | Array,
    end: float | Array,
    rtol: float | Array,
    atol: float | Array,
    times: Array | None = None,
    solver: str = "dopri5",
    step_control: str = "sample",
    num_steps: int | None = None,
    max_steps: int = MAX_STEPS,
) -> Solution:
    """Integrate dy/dt = field(t, y) of a batch from ``start`` to ``end``.

    A step's error is the root mean square over a leaf of a sample, and the largest of these over
    the leaves. So a scalar leaf (a log density) counts as much as an image.

    Args:
        field: of the whole batch; t may differ from sample to sample.
        y: a pytree whose leaves have a leading batch axis and one float dtype. Times have it too.
        start: the first time.
        end: the last time, before or after ``start``.
        rtol: relative tolerance of a step's error; without effect for ``euler``.
        atol: absolute tolerance of a step's error; likewise.
        times: (n,) times from start to end at which states are kept, by cubic interpolation.
        solver: a key of ``SOLVERS``; `check_method` refuses other settings.
        step_control: ``sample``, a step size for each sample, or ``batch``, one step size for all,
            by the root mean square over the whole batch. Then a sample depends on its batch-mates.
        num_steps: of ``euler``, equal in t; None for the others.
        max_steps: after so many a sample of the others that has not arrived is given up.
    """
    dtype = jax.tree.leaves(y)[0].dtype
    start, end = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
    times = None if times is None else jnp.asarray(times, dtype)
    if num_steps is not None:
        return _euler(field, y, start, end, num_steps, times)
    ends, times = (jnp.sqrt(start), jnp.sqrt(end)), None if times is None else jnp.sqrt(times)
    # Imported here, as it takes a fifth of a command's start, and few commands need it.
    import diffrax
    import equinox.internal

    method = _Method.of(getattr(diffrax, SOLVERS[solver])(), dtype)
    solve = _Adaptive(field, method, *ends, rtol, atol, step_control == "batch", times)
    state = equinox.internal.while_loop(
        lambda state: jnp.any(solve.active(state)),
        solve.step,
        solve.begin(y),
        max_steps=max_steps,
        kind="checkpointed",
    )
    verdict = jnp.where(solve.active(state), TOO_MANY, state.failure)
    return _solution(state.y, 1 + (len(method.times) - 1) * state.steps, verdict, state.path)


class _State(NamedTuple):
    """Between two steps, for each sample: leaves (B, ...)."""

    u: Array
    y: Any
    slope: Any  # dy/du at u, the next step's first stage
    h: Array  # length of the next step, before the end bounds it
    inverse: Array  # of the last accepted step's error, in units of the tolerance
    steps: Array  # tried
    failure: Array  # SUCCESS until a step becomes too small
    path: Any | None


class _Method(NamedTuple):
    """A Butcher tableau of n stages, the last of which is the first of the next step."""

    matrix: np.ndarray  # (n, n)
    times: np.ndarray  # (n,)
    solution: np.ndarray  # (n,)
    error: np.ndarray  # (n,)
    order: int

    @classmethod
    def of(cls, solver: Any, dtype: Any) -> "_Method":
        tableau = solver.tableau
        rows = [*tableau.a_lower, *([] if tableau.fsal else [tableau.b_sol])]
        n = len(rows) + 1
        matrix = np.stack([np.zeros(n), *(np.pad(row, (0, n - len(row))) for row in rows)])
        times = np.pad([0.0, *tableau.c], (0, n - 1 - len(tableau.c)), constant_values=1.0)
        pair = (np.pad(b, (0, n - len(b))) for b in (tableau.b_sol, tableau.b_error))
        matrix, times, solution, error = (a.astype(dtype) for a in (matrix, times, *pair))
        return cls(matrix, times, solution, error, solver.order(None))

    def stages(self, rate: Field, u: Array, h: Array, y: Any, slope: Any) -> Any:
        """The slopes of all stages, leaves (n, B, ...), from the first one."""
        n = len(self.times)

        def stage(slopes: Any, row: tuple[Array, Array, Array]) -> tuple[Any, None]:
            i, weights, time = row
            new = rate(u + time * h, self.combine(y, h, weights, slopes))
            return jax.tree.map(lambda all_, one: all_.at[i].set(one), slopes, new), None

        slopes = jax.tree.map(lambda k: jnp.zeros((n, *k.shape), k.dtype).at[0].set(k), slope)
        rows = (jnp.arange(1, n), jnp.asarray(self.matrix[1:]), jnp.asarray(self.times[1:]))
        return jax.lax.scan(stage, slopes, rows)[0]

    @staticmethod
    def combine(y: Any, h: Array, weights: Any, slopes: Any) -> Any:
        """y + h sum_i weights_i slopes_i, leaves (B, ...)."""

        def one(y: Array, slopes: Array) -> Array:
            return y + expand(h, y) * jnp.tensordot(
                jnp.asarray(weights), slopes, axes=1, precision="highest"
            )

        return jax.tree.map(one, y, slopes)


class _Adaptive(NamedTuple):
    """A solve with step control, in u = sqrt(t).

    Where sigma grows as sqrt(t), as with VP, the flow does so too, and steps in t become tiny
    towards 0. In u a trained network needs half the evaluations.
    """

    field: Field
    method: _Method
    first: Array
    last: Array
    rtol: float | Array
    atol: float | Array
    together: bool  # one step size for all
    times: Array | None  # in u

    @property
    def longest(self) -> Array:
        """The bound on a step. On smooth flows the error estimate of a step over a third of the
        interval can vanish by chance (an error of 3e-3 occurred at a tolerance of 1e-5). A trained
        network takes more steps than the bound asks for, except at tolerances of 1e-4 and above."""
        return jnp.abs(self.last - self.first) / MIN_STEPS

    def rate(self, u: Array, y: Any) -> Any:
        """dy/du."""
        slopes = self.field(jnp.square(u), y)
        return jax.tree.map(lambda slope: expand(2.0 * u, slope) * slope, slopes)

    def active(self, state: _State) -> Array:
        """Which samples are under way, (B,)."""
        return (state.u != self.last) & (state.failure == SUCCESS)

    def begin(self, y: Any) -> _State:
        """The state before the first step."""
        size, dtype = len(jax.tree.leaves(y)[0]), self.first.dtype
        u, none = jnp.full(size, self.first), jnp.zeros(size, jnp.int32)
        length = self.longest * jnp.where(self.last < self.first, FROM_NOISE, FROM_DATA)
        path = _begun(y, self.times, self.first)
        h = jnp.full(size, length)
        return _State(u, y, self.rate(u, y), h, jnp.ones(size, dtype), none, none, path)

    def step(self, state: _State) -> _State:
        """Try a step of every active sample. Those whose error is too large try a shorter one
        next."""
        active, method, sign = self.active(state), self.method, jnp.sign(self.last - self.first)
        left = sign * (self.last - state.u)
        final = state.h >= left * (1.0 - 1e-5)  # no step is left over for rounding
        target = jnp.where(final, self.last, state.u + sign * state.h)
        h = target - state.u
        stages = method.stages(self.rate, state.u, h, state.y, state.slope)
        new = method.combine(state.y, h, method.solution, stages)
        zero = jax.tree.map(jnp.zeros_like, state.y)
        error = method.combine(zero, h, method.error, stages)
        scaled = _scaled(error, state.y, new, self.rtol, self.atol, self.together)
        accepted, finite, inverse = active & (scaled < 1.0), jnp.isfinite(scaled), 1.0 / scaled
        factor = _factor(inverse, state.inverse, accepted, 1.0 / method.order)
        following = jnp.abs(h) * jnp.where(finite, factor, SHRINKAGE)
        # A step below the rounding of u goes nowhere. A value that is not finite stays so.
        shortest = 4.0 * jnp.finfo(h.dtype).eps * jnp.abs(state.u)
        stuck = active & ~accepted & (following < shortest)
        failure = jnp.where(finite, TOO_SMALL, NOT_FINITE)
        slope = jax.tree.map(lambda stage: stage[-1], stages)
        ends = (state.u, target), (state.y, new)
        return _State(
            u=jnp.where(accepted, target, state.u),
            y=_where(accepted, new, state.y),
            slope=_where(accepted, slope, state.slope),
            h=jnp.where(active, jnp.minimum(following, self.longest), state.h),
            inverse=jnp.where(accepted, inverse, state.inverse),
            steps=state.steps + active.astype(jnp.int32),
            failure=jnp.where(stuck, failure, state.failure).astype(jnp.int32),
            path=_kept(state.path, self.times, accepted, *ends, stages),
        )


def _factor(inverse: Array, before: Array, accepted: Array, exponent: float) -> Array:
    """The next step's length over this one's, by the inverse errors of this step and the last."""
    factor = SAFETY * inverse ** ((INTEGRAL + PROPORTIONAL) * exponent)
    factor = factor * before ** (-PROPORTIONAL * exponent)
    shorter = jnp.clip(factor, SHRINKAGE, SAFETY)
    return jnp.where(accepted, jnp.clip(factor, 1.0, GROWTH), shorter)


def _euler(
    field: Field, y: Any, start: Array, end: Array, num_steps: int, times: Array | None
) -> Solution:
    """Steps equal in t. Times follow from the step's number, as a sum of steps may miss the end."""
    size, step = len(jax.tree.leaves(y)[0]), (end - start) / num_steps

    def body(carry: tuple[Any, Any], i: Array) -> tuple[tuple[Any, Any], None]:
        y, path = carry
        t = jnp.full(size, start + step * i)
        after = jnp.where(i == num_steps - 1, end, t + step)  # exact: sums may round
        slope = field(t, y)
        new = jax.tree.map(lambda y, slope: y + step * slope, y, slope)
        slopes = jax.tree.map(lambda slope: jnp.stack([slope, slope]), slope)
        path = _kept(path, times, jnp.ones(size, bool), (t, after), (y, new), slopes)
        return (new, path), None

    steps = jnp.arange(num_steps).astype(start.dtype)
    (y, path), _ = jax.lax.scan(body, (y, _begun(y, times, start)), steps)
    return _solution(y, jnp.full(size, num_steps), jnp.zeros(size, jnp.int32), path)


def check_method(solver: str, step_control: str, num_steps: int | None) -> None:
    """Raise ValueError for settings that ``integrate`` refuses."""
    require(solver in SOLVERS, "solver", solver, ", ".join(SOLVERS))
    known = step_control in STEP_CONTROLS
    require(known, "step_control", step_control, ", ".join(STEP_CONTROLS))
    ok = num_steps is None if SOLVERS[solver] else num_steps is not None and num_steps > 0
    allowed = "None, as the steps adapt," if SOLVERS[solver] else "integers of at least 1"
    require(ok, "num_steps", num_steps, f"{allowed} with {solver}")


def check(verdict: Array, max_steps: int = MAX_STEPS) -> None:
    """Raise SolveError with the reason if a solve of at most ``max_steps`` failed. Within a jitted
    function nothing is raised: the end states are nan."""
    if isinstance(verdict, jax.core.Tracer):
        return
    codes = np.asarray(verdict)
    failed = codes[codes != SUCCESS]
    if not failed.size:
        return
    steep = "the flow is too steep to follow at these tolerances"
    reason, larger = {
        TOO_MANY: (f"{steep} in max_steps = {max_steps}", ("max_steps", "rtol", "atol")),
        TOO_SMALL: (f"{steep}: its steps fell below rounding", ("rtol", "atol")),
        NOT_FINITE: ("the score, or a state on the way, is not a finite number", ()),
    }[int(failed.max())]
    message = f"the solve failed for {failed.size} of {codes.size} samples: {reason}"
    raise SolveError(message, larger)


def _scaled(
    error: Any, old: Any, new: Any, rtol: float | Array, atol: float | Array, together: bool
) -> Array:
    """Each sample's error in units of the tolerance, (B,). No gradient passes through it: the sizes
    of the steps are held fixed."""

    def mean_square(error: Array, old: Array, new: Array) -> Array:
        size = jnp.maximum(jnp.abs(old), jnp.abs(new))
        squares = jnp.square(error / (atol + size * rtol)).reshape(len(error), -1)
        return jnp.full(len(error), jnp.mean(squares)) if together else jnp.mean(squares, axis=1)

    error, old, new = jax.lax.stop_gradient((error, old, new))
    squares = jax.tree.leaves(jax.tree.map(mean_square, error, old, new))
    return jnp.maximum(jnp.sqrt(jnp.max(jnp.stack(squares), axis=0)), NEGLIGIBLE)


def _begun(y: Any, times: Array | None, start: Array) -> Any | None:
    """Zeros for the states at the times; at times equal to the start, the first state."""
    if times is None:
        return None

    def room(leaf: Array) -> Array:
        at_start = (times == start).reshape(1, -1, *(1,) * (leaf.ndim - 1))
        return jnp.where(at_start, leaf[:, None], jnp.zeros((), leaf.dtype))

    return jax.tree.map(room, y)


def _kept(path: Any, times: Array | None, taken: Array, u: Any, y: Any, slopes: Any) -> Any:
    """The path, with the states at the times within a taken step filled in. u and y are pairs, of
    the step's two ends. The states lie on the cubic with the values and slopes there (Hairer et al.
    1993, eq. II.6.7)."""
    if times is None:
        return None
    times, begin, end = times[None], *(each[:, None] for each in u)
    h = end - begin
    inside = jnp.sign(h) * (times - begin) > 0
    inside &= (jnp.sign(h) * (times - end) <= 0) & taken[:, None]
    theta = (times - begin) / jnp.where(h == 0, 1, h)  # (B, times)

    def one(path: Array, old: Array, new: Array, slopes: Array) -> Array:
        def spread(array: Array) -> Array:
            return array.reshape(array.shape + (1,) * (path.ndim - 2))

        w, a, b = spread(theta), old[:, None], new[:, None]
        first, last = spread(h) * slopes[0][:, None], spread(h) * slopes[-1][:, None]
        bow = (1.0 - 2.0 * w) * (b - a) + (w - 1.0) * first + w * last
        value = (1.0 - w) * a + w * b + w * (w - 1.0) * bow
        return jnp.where(spread(inside), value, path)

    return jax.tree.map(one, path, *y, slopes)


def _where(mask: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(expand(mask, a), a, b), new, old)


def _solution(y: Any, nfe: Array, verdict: Array, path: Any | None) -> Solution:
    """The solution. The end of a failed solve is nan, so that nobody takes it for a result."""
    ends = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(y)]
    finite = jnp.stack(ends).all(axis=0)
    verdict = jnp.where(finite | (verdict != SUCCESS), verdict, NOT_FINITE).astype(jnp.int32)
    y = jax.tree.map(lambda leaf: jnp.where(expand(verdict == SUCCESS, leaf), leaf, jnp.nan), y)
    return Solution(y, nfe.astype(jnp.int32), verdict, path)
