"""Values that keys of a config may have: a predicate with its words, or the names in a table of the
package. The tables are imported when they are needed: reading this file imports no JAX.
"""

import importlib
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from score_sde.paths import ALLOWED as PATHS
from score_sde.paths import is_url


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


def _are_positive(value: tuple[Any, ...], types: tuple[type, ...]) -> bool:
    return all(type(item) in types and 0 < item < math.inf for item in value)


def _are_columns(value: tuple[Any, ...]) -> bool:
    return all(type(item) is str or (type(item) is int and item >= 0) for item in value)


def _are_classes(value: tuple[Any, ...]) -> bool:
    return all(type(item) is int and item >= 0 for item in value)


def _is_interval(value: tuple[Any, ...]) -> bool:
    numbers = all(type(item) in (int, float) for item in value)
    return not value or (numbers and len(value) == 2 and 0 <= value[0] < value[1])


def _is_image_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return value == 0 or all(type(side) is int and 0 < side <= 16384 for side in sides)


AUGMENTATIONS = ("flip_x", "flip_y", "scale", "rotate", "stretch", "move")

# fmt: off
SWITCH = Values(lambda value: True, "True, False")
TEXT = Values(lambda value: True, "text")
SWEEP = Values(lambda value: True, "empty, KEY=VALUE,VALUE;... of sampling's keys and step")
FILE = Values(lambda value: not is_url(value) or value.startswith(("https://", "http://")),
              "paths of this machine, addresses of https://")
PATH = Values(lambda value: not is_url(value), PATHS)
SEED = Values(lambda value: 0 <= value < 2**32, "integers from 0 to 2**32 - 1")
COUNT = at_least(1)
SIZE = between(0, 16384, "integers")  # beyond, a mistake fills the memory by its name alone
IMAGE_SIZE = Values(_is_image_size, "integers from 0 to 16384, tuples (height, width)")
NOT_NEGATIVE = Values(lambda value: 0 <= value < math.inf, "numbers of at least 0")
REAL = Values(lambda value: -math.inf < value < math.inf, "numbers")
POSITIVE = Values(lambda value: 0 < value < math.inf, "positive numbers")
UP_TO_1 = Values(lambda value: 0 < value <= 1, "numbers above 0, up to 1")
FRACTION = Values(lambda value: 0 <= value < 1, "numbers from 0 to below 1")
# Below, float32's rounding is all that a step's error estimate sees.
TOLERANCE = Values(lambda value: 1e-7 <= value < 1, "numbers from 1e-7 to below 1")
# Below 1e-5 float32 and the networks' training end; next to 1 there is nothing left to do.
TIME = Values(lambda value: 1e-5 <= value <= 0.9, "times from 1e-5 to 0.9")
ABOVE_0 = Values(lambda value: value > 0, "numbers above 0")
SMALL = Values(lambda value: 0 < value < 1, "numbers above 0 and below 1")
CHURN_NOISE = Values(lambda value: 0 < value <= 2, "numbers above 0, up to 2")
FOURS = Values(lambda value: value > 0 and value % 4 == 0, "positive multiples of 4")
INTEGERS = Values(lambda value: _are_positive(value, (int,)), "tuples of positive integers")
NUMBERS = Values(lambda value: _are_positive(value, (int, float)), "tuples of positive numbers")
REALS = Values(lambda value: all(type(item) in (int, float) for item in value),
               "tuples of numbers")
BETAS = Values(lambda value: not value or (len(value) > 1 and _are_positive(value, (int, float))),
               "tuples of positive numbers, one for each level")
CLASSES = Values(_are_classes, "tuples of classes, integers from 0")
INTERVAL = Values(_is_interval, "(), two rising numbers of at least 0")
COLUMNS = Values(_are_columns, "tuples of columns' names or indices")
REFERENCE = Values(lambda value: value == 0 or value >= 20, "0, integers of at least 20")
LEVELS = Values(lambda value: value == 0 or value > 1, "0, integers of at least 2")
OPERATIONS = Values(lambda value: bool(value) and all(item in AUGMENTATIONS for item in value),
                    f"tuples of {', '.join(AUGMENTATIONS)}")
SIZES = Values(lambda value: bool(value) and _are_positive(value, (int,)),
               "tuples of positive integers, one per resolution")

DATASETS = Names("score_sde.data:DATASETS", "score_sde.data:Dataset", instance=True)
PROCESSES = Names("score_sde.learned:PROCESSES", "score_sde.sde:SDE")
NETWORKS = Names("score_sde.networks:NETWORKS", "flax.nnx:Module")
SAMPLERS = Names("score_sde.samplers:SAMPLERS", "score_sde.samplers.base:Sampler")
PREDICTORS = Names(
    "score_sde.samplers.predictor_corrector:PREDICTORS", "types:FunctionType", instance=True)
CORRECTORS = Names(
    "score_sde.samplers.predictor_corrector:CORRECTORS", "types:FunctionType", instance=True)
SOLVERS = Names("score_sde.integrate:SOLVERS")
STEP_CONTROLS = Names("score_sde.integrate:STEP_CONTROLS")
GRIDS = Names("score_sde.samplers.grids:GRIDS")
PARAMETERIZATIONS = Names("score_sde.score:PARAMETERIZATIONS")
NOISE_CONDITIONS = Names("score_sde.score:NOISE_CONDITIONS")
LOSSES = Names("score_sde.losses:LOSSES")
TIMES = Names("score_sde.times:TIMES")
WEIGHTS = Names("score_sde.losses:WEIGHTS")
PAIRINGS = Names("score_sde.pairing:PAIRINGS")
DEQUANTIZATIONS = Names("score_sde.spaces:DEQUANTIZATIONS")
DIVERGENCES = Names("score_sde.likelihood:DIVERGENCES")
LIKELIHOODS = Names("score_sde.densities:METHODS")
VARIANCES = Names("score_sde.bounds:VARIANCES")
# fmt: on


def unet(name: str) -> Names:
    """The words of one setting of the U-Net."""
    return Names(f"score_sde.networks.spec:CHOICES.{name}")
