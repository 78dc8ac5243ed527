"""Score functions and other callables as arguments: what is asked of them, how jit takes them."""

import dis
import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import jax

# Their own objects and functions stay as they are. Bars and axes change without a meaning.
LIBRARIES = {*sys.stdlib_module_names, "jax", "jaxlib", "numpy", "flax", "tqdm", "matplotlib"}
METHODS = ("__call__", "given", "denoised", "mean", "held")  # of scores, models, projections
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
    if isinstance(function, jax.tree_util.Partial):
        return jax.tree_util.Partial(_watched(function.func), *function.args, **function.keywords)
    parts, form = jax.tree.flatten(function, is_leaf=lambda each: isinstance(each, _Function))
    if not any(isinstance(part, _Function) for part in parts):
        return _watched(function)
    # What a wrapper of scores keeps may read something else than when the wrapper was made.
    anew = (_watched(part) if isinstance(part, _Function) else part for part in parts)
    return jax.tree.unflatten(form, anew)


def _watched(function: Any) -> Any:
    """A callable that is no pytree, with what it reads now."""
    if isinstance(function, _Function):
        return _Function(function.wrapped)
    return _Function(function) if _is_leaf(function) else function


@jax.tree_util.register_static
class _Function:
    """A callable with what it reads, as a pytree without leaves.

    jit runs the program of an equal one. So two are equal if they are the same function and it
    reads the same objects (`_read_by`). Where one of them was replaced, the program is traced anew.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.wrapped, self._reads = function, _read_by(function)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.wrapped(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Function) or len(self._reads) != len(other._reads):
            return False
        return all(map(operator.is_, self._reads, other._reads))

    def __hash__(self) -> int:
        return hash((*map(id, self._reads),))


def _read_by(function: Callable[..., Any]) -> tuple[Any, ...]:
    """The objects that a function is and reads beside its arguments.

    They are found through closures, globals, attributes, partials, methods, pytrees, and functions
    of the same module that it calls. Numbers in lists, dicts and tuples do not count: functions
    that note how often they were traced would be traced anew each time.
    """
    # Each access to a method makes a new object.
    first = _parts(function) if inspect.ismethod(function) else [function]
    found: dict[int, Any] = {}
    todo = [(each, "") for each in first]
    while todo:
        each, reader = todo.pop()
        if id(each) in found:
            continue
        found[id(each)] = each
        module = str(each.__module__) if inspect.isfunction(each) else ""
        if not (reader and module) or reader == module:
            todo += ((part, module) for part in _parts(each))
    return (*found.values(),)


def _parts(each: Any) -> Iterator[Any]:
    """What an object consists of, or what a function reads, one level deep."""
    if isinstance(each, functools.partial):
        yield from (each.func, *each.args, *each.keywords.values())
    elif inspect.ismethod(each):
        yield from (each.__self__, each.__func__)
    elif inspect.isfunction(each):
        yield from _parts_of_function(each)
    elif isinstance(each, list | tuple | dict):
        inner = list(each.values()) if isinstance(each, dict) else list(each)
        yield from (part for part in inner if not _is_plain(part))
    elif not isinstance(each, jax.Array | type | types.ModuleType):
        children = jax.tree_util.default_registry.flatten_one_level(each)
        yield from () if children is None else children[0]
        if not _of_a_library(each):
            with suppress(Exception):  # users' objects may refuse to be looked at
                yield from list(vars(each).values())
            for name in METHODS:
                if (method := inspect.getattr_static(type(each), name, None)) is not None:
                    yield method


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    """What a function reads by name. Its attributes are read, too: a wrapper of JAX has what it
    wraps there. Its code is replaced where a notebook reloads a module."""
    yield function.__code__
    yield from list(function.__dict__.values())
    if _of_a_library(function):
        return
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name without a value yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _globals_of(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


@functools.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function's code, and the functions within it, read from outside."""
    names = [
        each.argval
        for each in dis.get_instructions(code)
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    ]
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names += _globals_of(constant)
    return (*dict.fromkeys(names),)


def _is_plain(part: Any) -> bool:
    """Whether a part of a list is a number, a text, or a tuple of such, as a shape is."""
    if isinstance(part, tuple):
        return all(map(_is_plain, part))
    return part is None or isinstance(part, int | float | str)


def _of_a_library(each: Any) -> bool:
    """Whether a function or an object is of Python or a library that does not change."""
    module = each.__module__ if inspect.isfunction(each) else type(each).__module__
    return str(module).partition(".")[0] in LIBRARIES


def _is_leaf(each: Any) -> bool:
    return jax.tree_util.all_leaves([each])
