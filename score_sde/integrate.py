"""Integration of the probability flow inside XLA (Diffrax).

By default every sample is a solve of its own, so its result and its number of evaluations do not
depend on its batch-mates. Under vmap the loop runs until the slowest sample is done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

SOLVERS: dict[str, Callable[[], Any]] = {
    "tsit5": diffrax.Tsit5,  # Tsitouras 2011, 5(4)
    "dopri5": diffrax.Dopri5,  # Dormand, Prince 1980, 5(4)
    "dopri8": diffrax.Dopri8,  # Prince, Dormand 1981, 8(7)
    "heun": diffrax.Heun,  # 2(1)
    "euler": diffrax.Euler,  # without error estimate: fixed steps
}
STEP_CONTROLS = ("sample", "batch")
# A step's length follows from the errors of the last two (Soederlind 2002, section 3). In sqrt(t)
# some 15 steps suffice, and the cautious gains of 0.4 and 0.2 took 15 % more evaluations for the
# same error (benchmarks/README.md).
INTEGRAL, PROPORTIONAL = 0.7, 0.4
MIN_STEPS, MAX_STEPS = 10, 4096
# The first step is given, as a solver's own guess divides a difference of two evaluations by a tiny
# step: rounding, and so the batch's shape, would decide it and with it every later step. From noise
# the flow is smooth and takes the longest; from data a quarter of it.
FROM_NOISE, FROM_DATA = 1.0, 0.25
GROWTH = 2.0  # of a step over the one before: an error that vanishes by chance says little
# Of the step that the tolerance would allow: fewer are rejected than at the usual 0.9, and the
# image that needs the most steps, for which its batch waits, needs an eighth fewer.
SAFETY = 0.8
NEGLIGIBLE = 1e-5


class SolveError(RuntimeError):
    """A solve that did not succeed; the message has the solver's own reason."""


class Solution(NamedTuple):
    """What a solve of B samples returns.

    Attributes:
        y: end states, leaves (B, ...); nan where the solve did not succeed.
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
    solver: str = "dopri5",
    step_control: str = "sample",
    num_steps: int | None = None,
) -> Solution:
    """Integrate dy/dt = field(t, y, args) for each sample.

    A step's error is the root mean square over each leaf of y, and the largest of these over the
    leaves, so that a scalar leaf (a log density) counts as much as an image.

    Args:
        field: for one sample, t a scalar array.
        y: a pytree whose leaves have a leading batch axis.
        args: a pytree with a leading batch axis, handed to ``field``.
        start: the first time.
        end: the last time, before or after ``start``.
        rtol: relative tolerance of a step's error; without effect for ``euler``.
        atol: absolute tolerance of a step's error; likewise.
        times: (n,) times from start to end at which states are kept.
        solver: a key of ``SOLVERS``.
        step_control: ``sample``, a step size for each, or ``batch``, one for all by the root mean
            square over the whole batch: then a sample depends on its batch-mates.
        num_steps: of ``euler``, equal in t; None for the others, which try ``MAX_STEPS`` at most.

    Raises:
        ValueError: an unknown solver or step control, ``euler`` without steps, or others with.
    """
    check_method(solver, step_control, num_steps)
    together = step_control == "batch"
    method = SOLVERS[solver]()
    flow = jax.vmap(field, (None, 0, 0)) if together else field
    if num_steps is None:
        clock = _by_root(start, end, rtol, atol)
    else:
        clock = _by_number(start, end, num_steps)

    def vector_field(u: Array, y: Any, args: Any) -> Any:
        t, rate = clock.time_of(u)
        return jax.tree.map(lambda leaf: rate * leaf, flow(t, y, args))

    times = None if times is None else clock.of_time(times)
    saves = [diffrax.SubSaveAt(t1=True)] + ([] if times is None else [diffrax.SubSaveAt(ts=times)])
    shared, new = _evaluations(method)

    def solve(y: Any, args: Any) -> tuple[Any, Array, Any]:
        # A first stage that is the last of the step before is handed over; the very first too,
        # which would else be repeated until a step is accepted.
        stage = vector_field(jnp.asarray(clock.first), y, args) if shared else None
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field),  # type: ignore[arg-type]  # u is an array in a solve
            method,
            clock.first,
            clock.last,
            clock.step,
            y,
            args=args,
            saveat=diffrax.SaveAt(subs=saves),
            stepsize_controller=clock.controller,
            max_steps=MAX_STEPS if num_steps is None else num_steps,
            solver_state=(jnp.asarray(False), stage) if shared else None,
            throw=False,
        )
        # Of every step, accepted or not. A test counts the calls.
        return solution.ys, shared + new * solution.stats["num_steps"], solution.result

    if together:
        ys, nfe, result = solve(y, args)
        size = len(jax.tree.leaves(y)[0])
        ys = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), ys)
        nfe, result = jax.tree.map(lambda one: jnp.full(size, one), (nfe, result))
    else:
        ys, nfe, result = jax.vmap(solve)(y, args)
    end_state = jax.tree.map(lambda leaf: leaf[:, 0], ys[0])
    result = jax.vmap(_told)(end_state, result)
    end_state = jax.vmap(_or_nan)(end_state, result)
    return Solution(end_state, nfe, result, ys[1] if times is not None else None)


class _Clock(NamedTuple):
    """The variable u of a solve, from first to last with a first step, and its step control."""

    first: Array | float
    last: Array | float
    step: Array | float
    controller: Any
    time_of: Callable[[Array], tuple[Array, Array]]  # t and dt/du
    of_time: Callable[[Array], Array]


def _by_number(start: float | Array, end: float | Array, num_steps: int) -> _Clock:
    """Equal steps in t, by their number: it is exact, where a sum of steps in t may end short of
    the end and take one more."""
    step = (jnp.asarray(end) - start) / num_steps

    def time_of(u: Array) -> tuple[Array, Array]:
        return start + step * u, step

    def of_time(t: Array) -> Array:
        return jnp.clip((t - start) / step, 0.0, num_steps)

    return _Clock(0.0, float(num_steps), 1.0, diffrax.ConstantStepSize(), time_of, of_time)


def _by_root(
    start: float | Array, end: float | Array, rtol: float | Array, atol: float | Array
) -> _Clock:
    """Steps that adapt, by u = sqrt(t): where sigma grows as sqrt(t), as under VP, the flow changes
    so too, and steps in t become tiny towards 0. A trained network needs half the evaluations."""
    first, last = jnp.sqrt(jnp.asarray(start)), jnp.sqrt(jnp.asarray(end))
    # A bound on the step: on smooth flows the error estimate of a step over a third of the interval
    # can vanish by chance (seen: an error of 3e-3 at a tolerance of 1e-5). A trained network takes
    # more steps than this anyway, but for tolerances of 1e-4 and above.
    longest = (last - first) / MIN_STEPS
    controller = diffrax.PIDController(
        rtol=rtol,
        atol=atol,
        norm=_largest_rms,
        icoeff=INTEGRAL,
        pcoeff=PROPORTIONAL,
        factormax=GROWTH,
        safety=SAFETY,
        dtmax=jnp.abs(longest),
    )

    def time_of(u: Array) -> tuple[Array, Array]:
        return jnp.square(u), 2.0 * u

    begin = longest * jnp.where(last < first, FROM_NOISE, FROM_DATA)
    return _Clock(first, last, begin, controller, time_of, jnp.sqrt)


def check_method(solver: str, step_control: str, num_steps: int | None) -> None:
    """Raise ValueError for what ``integrate`` does not take."""
    if solver not in SOLVERS:
        raise ValueError(f"solver = {solver!r}: allowed are {', '.join(SOLVERS)}")
    if step_control not in STEP_CONTROLS:
        raise ValueError(f"step_control = {step_control!r}: allowed are {', '.join(STEP_CONTROLS)}")
    fixed = solver == "euler"
    if fixed != (num_steps is not None) or (num_steps is not None and num_steps < 1):
        allowed = "integers of at least 1" if fixed else "None, as the steps adapt,"
        raise ValueError(f"num_steps = {num_steps!r}: allowed are {allowed} with {solver}")


def check(result: diffrax.RESULTS) -> None:
    """Raise SolveError with the solver's own reason if a solve failed; within a jitted function,
    where nothing can be raised, the end states say so: they are nan."""
    codes = result._value
    if isinstance(codes, jax.core.Tracer):
        return
    success: Any = diffrax.RESULTS.successful  # which mypy takes for its message
    failed = jnp.flatnonzero(codes != success._value)
    if failed.size:
        reason = diffrax.RESULTS._index_to_message[int(codes[failed[0]])]
        reason = reason.replace(". Try increasing `max_steps`.", f" ({MAX_STEPS})")
        raise SolveError(f"the solve failed for {failed.size} of {codes.size} samples: {reason}")


def _largest_rms(error: Any) -> Array:
    squares = [jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(error)]
    # In units of the tolerance. Far below it there is nothing but rounding, which must not decide
    # how long the next step is: a sample's steps would depend on how its batch is computed.
    return jnp.maximum(jnp.sqrt(jnp.max(jnp.stack(squares))), NEGLIGIBLE)


def _evaluations(method: Any) -> tuple[int, int]:
    """Evaluations that a solve begins with, and new ones of each step."""
    if isinstance(method, diffrax.Euler):
        return 0, 1
    shared = int(method.tableau.fsal)  # first same as last
    return shared, method.tableau.num_stages - shared


def _told(end: Any, result: Any) -> Any:
    """The verdict on one sample: fixed steps succeed whatever comes out of them."""
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(end)]).all()
    fine = finite | (result != diffrax.RESULTS.successful)
    return diffrax.RESULTS.where(fine, result, diffrax.RESULTS.nonfinite)


def _or_nan(end: Any, result: Any) -> Any:
    """The end state of one sample, which nobody can take for one if the solve did not succeed."""
    success = result == diffrax.RESULTS.successful
    return jax.tree.map(lambda leaf: jnp.where(success, leaf, jnp.nan), end)
