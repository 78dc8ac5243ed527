"""What says which values a key of a config may have: a predicate with its words, or the names in a
table of the package. The tables are imported when they are needed. Reading this file imports no
JAX."""

import importlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple


class Values(NamedTuple):
    """Allowed values by a predicate."""

    ok: Callable[[Any], bool]
    words: str


class Names(NamedTuple):
    """Allowed values by the names in a table of the package.

    Attributes:
        table: "module:TABLE" of a dict or tuple of names, "module:TABLE.name" of one in a dict.
        own: "module:Class". A user's own object, given as "module:Name" in place of a name, derives
            from it. Empty: names only.
        instance: the user's own object is not a class, but an instance.
    """

    table: str
    own: str = ""
    instance: bool = False

    def load(self) -> Any:
        """The table."""
        module, _, path = self.table.partition(":")
        name, *keys = path.split(".")
        table: Any = getattr(importlib.import_module(module), name)
        for key in keys:
            table = table[key]
        return table

    def fits(self, found: Any) -> bool:
        """Whether an object can be a user's own."""
        module, _, name = self.own.partition(":")
        base: type = getattr(importlib.import_module(module), name)
        if self.instance:
            return isinstance(found, base)
        return isinstance(found, type) and issubclass(found, base)

    def ok(self, value: Any) -> bool:
        names: Collection[str] = self.load()
        return value in names or self.is_own(value)

    def is_own(self, value: object) -> bool:
        """Whether a value hands over a user's own object."""
        return bool(self.own) and isinstance(value, str) and ":" in value

    @property
    def words(self) -> str:
        return ", ".join([*self.load(), *(["module:Name"] if self.own else [])])


def words(names: str) -> Values:
    """The words of a text."""
    return Values(lambda value: value in names.split(), ", ".join(names.split()))


def at_least(least: int) -> Values:
    """Integers from `least` on."""
    return Values(lambda value: value >= least, f"integers of at least {least}")


def between(low: float, high: float, kind: str = "numbers") -> Values:
    """Numbers from `low` to `high`, or integers."""
    return Values(lambda value: low <= value <= high, f"{kind} from {low} to {high}")
