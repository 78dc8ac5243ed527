"""Score functions and other callables as arguments: what is asked of them, how jit takes them."""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax

DIVIDE = ("epsilon", "score")  # the parameterizations whose denoised data divide by alpha


def check_arguments(name: str, function: Callable[..., Any], arguments: str) -> None:
    """Raise ValueError for a function that cannot be called with these arguments."""
    try:
        takes = inspect.signature(function)
    except (TypeError, ValueError):  # not every callable tells
        return
    try:
        takes.bind(*arguments.split(", "))
    except TypeError:
        kind = getattr(function, "__name__", type(function).__name__)
        raise ValueError(f"{name} = {kind}: allowed are functions of ({arguments})") from None


def check_density(score: Any) -> None:
    """Raise ValueError for a score that belongs to no density, such as a guided one."""
    if why := getattr(score, "not_a_density", ""):
        raise ValueError(f"score: {why}; allowed are scores of a density")


def divides_by_alpha(score: Any) -> bool:
    """Whether the score is known to divide by alpha for its denoised data."""
    return getattr(score, "parameterization", "") in DIVIDE


def as_pytree(function: Callable[..., Any]) -> Any:
    """The function as an argument that jit takes. A pytree is returned unchanged: its arrays are
    leaves. Any other callable becomes a pytree without leaves, whose arrays are constants."""
    leaves = jax.tree.leaves(function)
    return _Function(function) if len(leaves) == 1 and leaves[0] is function else function


@jax.tree_util.register_static
class _Function:
    """A callable with its attributes, as a pytree without leaves.

    jit runs the program of an equal one. So two are equal if they are the same function and it
    reads the same objects: those that it closes over, globals, attributes of its object. Where one
    of them was replaced, the program is traced anew.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._is = function, (*_identity(function), *_read_by(function))

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Function) or len(self._is) != len(other._is):
            return False
        return all(map(operator.is_, self._is, other._is))

    def __hash__(self) -> int:
        return hash((*map(id, self._is),))


def _identity(function: Any) -> tuple[Any, ...]:
    """The object or objects that a function is. Each access to a method makes a new object."""
    return (function.__self__, function.__func__) if inspect.ismethod(function) else (function,)


def _read_by(function: Any) -> tuple[Any, ...]:
    """The objects that a function reads beside its arguments."""
    owner = function.__self__ if inspect.ismethod(function) else function
    attributes = getattr(owner, "__dict__", {}).values()
    called = function if inspect.isroutine(function) else type(function).__call__
    try:
        known = inspect.getclosurevars(called)
    except (TypeError, ValueError):  # not of Python, or it closes over a name without a value
        return (*attributes,)
    return (*attributes, *known.nonlocals.values(), *known.globals.values())
