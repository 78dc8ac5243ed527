"""The floors: each file imports only from floors below its own, and only the packages it may.

`ROOMS` is the table. A new file in a room that it names needs nothing; a new room is added there,
on the lowest floor that serves it. A row is widened only with a reason beside it.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Room(NamedTuple):
    """One row of the table."""

    floor: int
    floors: tuple[int, ...]  # floors that it may import; its own files it always may
    packages: tuple[str, ...] = ()  # third-party packages, beside numpy
    lazy: tuple[str, ...] = ()  # third-party packages, only inside the functions that need them
    neighbours: tuple[str, ...] = ()  # rooms of its own floor


ROOMS = {
    # 0: what everybody may know
    "score_sde.errors": Room(0, ()),
    "score_sde.paths": Room(
        0,
        (),
        lazy=("etils", "fsspec"),  # of a bucket
        neighbours=("score_sde.errors",),
    ),
    "score_sde.progress": Room(0, (), lazy=("tqdm", "IPython")),
    "score_sde.display": Room(0, (), lazy=("PIL",)),
    "score_sde.memory": Room(0, ()),
    "score_sde.operations": Room(0, ()),
    # 1: maths
    "score_sde.sde": Room(1, (0,), ("jax",)),
    "score_sde.functions": Room(1, (), ("jax",)),
    "score_sde.schedules": Room(
        1, (0,), ("jax",), neighbours=("score_sde.sde", "score_sde.functions")
    ),
    "score_sde.discrete": Room(
        1, (0,), ("jax",), neighbours=("score_sde.sde", "score_sde.schedules")
    ),
    "score_sde.score": Room(
        1,
        (0,),
        ("jax",),
        neighbours=("score_sde.sde", "score_sde.discrete", "score_sde.functions"),
    ),
    "score_sde.oracle": Room(1, (0,), ("jax",), neighbours=("score_sde.sde", "score_sde.score")),
    "score_sde.augmentation": Room(1, (0,), ("jax",)),
    "score_sde.spaces": Room(1, (0,), ("jax",)),
    "score_sde.learned": Room(1, (0,), ("jax",), neighbours=("score_sde.sde",)),
    "score_sde.processes": Room(
        1,
        (),
        neighbours=(
            "score_sde.sde",
            "score_sde.schedules",
            "score_sde.discrete",
            "score_sde.learned",
        ),
    ),
    "score_sde.times": Room(1, (0,), ("jax",), neighbours=("score_sde.sde",)),
    "score_sde.uncertainty": Room(1, (), ("jax",)),
    "score_sde.pairing": Room(1, (), ("jax", "optax")),
    "score_sde.integrate": Room(
        1, (0,), ("jax", "diffrax", "equinox"), neighbours=("score_sde.sde",)
    ),
    # 2: methods. None knows another: what two of them need lives on floor 1.
    "score_sde.losses": Room(2, (0, 1), ("jax",)),
    "score_sde.consistency": Room(2, (0, 1), ("jax",), neighbours=("score_sde.losses",)),
    "score_sde.second_order": Room(2, (0, 1), ("jax",), neighbours=("score_sde.losses",)),
    "score_sde.samplers": Room(2, (0, 1), ("jax", "diffrax")),
    "score_sde.likelihood": Room(2, (0, 1), ("jax", "diffrax")),
    "score_sde.bounds": Room(2, (0, 1), ("jax",)),
    "score_sde.variational": Room(2, (0, 1), ("jax",)),
    # It trains by the terms of a bound.
    "score_sde.variances": Room(2, (0, 1), ("jax",), neighbours=("score_sde.bounds",)),
    "score_sde.guidance": Room(2, (0, 1), ("jax",)),
    # Twisted SMC is a sampler.
    "score_sde.inverse": Room(2, (0, 1), ("jax",), neighbours=("score_sde.samplers",)),
    # Noise and back by a sampler, or by the flow.
    "score_sde.editing": Room(2, (0, 1), ("jax",), neighbours=("score_sde.samplers",)),
    # 3: networks know nothing of processes, data nothing of models
    "score_sde.networks": Room(3, (0,), ("jax", "flax")),
    "score_sde.data": Room(3, (0,), (), lazy=("PIL", "h5py", "sklearn", "tensorflow_datasets")),
    # 4
    "score_sde.training": Room(
        4,
        (0, 1, 2, 3),
        ("jax", "flax", "optax", "orbax", "etils", "tensorboardX", "absl"),
        lazy=("grain",),  # of a stream
    ),
    # Inception's weights come in a zip of PyTorch's, and are kept as safetensors.
    "score_sde.evaluation": Room(
        4, (0, 1, 2, 3), ("jax", "flax", "optax", "safetensors"), neighbours=("score_sde.convert",)
    ),
    "score_sde.convert": Room(
        4, (0, 1, 2, 3), ("jax", "flax", "safetensors", "msgpack", "ml_dtypes")
    ),
    # 5: assembly. `main.py --help` reads config, so that knows no JAX, nor does what it imports.
    # `validation` knows `rules`, which import JAX, within a function.
    "score_sde.allowed": Room(5, ()),
    "score_sde.schema": Room(5, (0,), neighbours=("score_sde.allowed",)),  # what a path is
    "score_sde.config": Room(
        5, (0,), ("ml_collections",), neighbours=("score_sde.allowed", "score_sde.schema")
    ),
    "score_sde.validation": Room(
        5,
        (0,),
        ("ml_collections",),
        neighbours=("score_sde.schema", "score_sde.config", "score_sde.rules"),
    ),
    "score_sde.rules": Room(
        5,
        (0, 1, 2, 3),  # the names of losses
        ("ml_collections", "jax"),
        # The names of what computes features.
        neighbours=("score_sde.config", "score_sde.build", "score_sde.scoring"),
    ),
    "score_sde.unread": Room(
        5,
        (0, 2, 3),
        ("ml_collections",),
        neighbours=("score_sde.config", "score_sde.schema", "score_sde.build"),
    ),
    "score_sde.workdirs": Room(
        5,
        (0, 3),
        ("ml_collections",),
        neighbours=(
            *("score_sde.config", "score_sde.validation", "score_sde.schema"),
            "score_sde.locks",
        ),
    ),
    "score_sde.locks": Room(5, (0,)),
    "score_sde.presets": Room(
        5,
        (0,),
        ("ml_collections",),
        neighbours=("score_sde.config", "score_sde.validation", "score_sde.schema"),
    ),
    "score_sde.overrides": Room(
        5,
        (0,),
        ("absl", "ml_collections"),
        neighbours=("score_sde.config", "score_sde.schema"),
    ),
    "score_sde.commands": Room(
        5,
        (0, 3, 4),
        ("ml_collections",),
        neighbours=(
            *("score_sde.config", "score_sde.validation", "score_sde.presets"),
            *("score_sde.overrides", "score_sde.workdirs"),
        ),
    ),
    "score_sde.build": Room(
        5,
        (0, 1, 2, 3, 4),
        ("jax", "flax", "optax", "ml_collections"),
        neighbours=("score_sde.schema", "score_sde.config"),
    ),
    "score_sde.objectives": Room(
        5, (0, 1, 2, 3), ("jax", "ml_collections"), neighbours=("score_sde.build",)
    ),
    "score_sde.batches": Room(5, (0, 1, 2, 4), ("jax",)),
    "score_sde.densities": Room(
        5, (0, 1, 2, 3), ("jax", "ml_collections"), neighbours=("score_sde.build",)
    ),
    "score_sde.latents": Room(
        5,
        (0, 1, 2, 3),
        ("jax", "ml_collections"),
        neighbours=("score_sde.build", "score_sde.batches"),
    ),
    "score_sde.classifier": Room(
        5,
        (0, 1, 3, 4),
        ("jax", "ml_collections"),
        neighbours=("score_sde.config", "score_sde.workdirs", "score_sde.build"),
    ),
    "score_sde.run": Room(
        5,
        (0, 1, 2, 3, 4),
        ("jax", "flax", "ml_collections"),
        neighbours=(
            *("score_sde.schema", "score_sde.config", "score_sde.validation", "score_sde.workdirs"),
            *("score_sde.rules", "score_sde.build", "score_sde.batches", "score_sde.latents"),
            *("score_sde.classifier", "score_sde.densities"),
        ),
    ),
    "score_sde.learn": Room(
        5,
        (0, 1, 2, 3, 4),
        ("jax", "ml_collections"),
        neighbours=(
            *("score_sde.config", "score_sde.workdirs", "score_sde.locks", "score_sde.pictures"),
            *("score_sde.build", "score_sde.objectives", "score_sde.rules", "score_sde.validation"),
            *("score_sde.batches", "score_sde.run", "score_sde.best"),
        ),
    ),
    "score_sde.scoring": Room(
        5,
        (0, 3, 4),
        ("ml_collections",),
        neighbours=("score_sde.config", "score_sde.build"),
    ),
    "score_sde.best": Room(
        5,
        (0, 3, 4),
        ("jax", "ml_collections"),
        neighbours=("score_sde.build", "score_sde.config", "score_sde.scoring", "score_sde.run"),
    ),
    # Figures; who draws one imports them there, for matplotlib takes its time.
    "score_sde.plots": Room(5, (0, 4), ("matplotlib", "PIL")),
    "score_sde.pictures": Room(5, (0,), ("PIL",), neighbours=("score_sde.plots",)),
    "score_sde.pages": Room(5, (0,), ("PIL",)),
    # 6, 7: modes and the door. A mode wires its run from any floor; the door knows modes, schema.
    "score_sde.modes": Room(
        6,
        (0, 1, 2, 3, 4, 5),
        ("jax", "optax", "absl", "ml_collections", "tqdm"),
    ),
    "score_sde.cli": Room(7, (0, 5, 6), ("absl", "ml_collections")),
    "score_sde.__main__": Room(7, (), neighbours=("score_sde.cli",)),
    "main": Room(7, (), neighbours=("score_sde.cli",)),
    "configs": Room(7, (5,), ("ml_collections",)),
}

# score_sde/__init__.py resolves the public names on use and belongs to no floor: the subprocess
# below holds it to importing nothing heavy. Of the package itself, only this name may be imported.
PUBLIC_FACE = "score_sde"
FROM_THE_FACE = {"__version__"}


def room_of(module: str) -> str | None:
    """Name of the row that holds a module, or None."""
    return next((name for name in ROOMS if module == name or module.startswith(name + ".")), None)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, dotted name, whether inside a function) for each import of a module's source.

    `from a import b` is yielded as `a.b`: whether b is a module or a name makes no difference to
    the room it lies in. What is imported for type checkers only counts too: it is knowledge.
    """

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parts = module.split(".")
                keep = len(parts) - child.level + is_package if child.level else 0
                base = ".".join([*parts[:keep], *([child.module] if child.module else [])])
                yield from ((child.lineno, f"{base}.{alias.name}", inside) for alias in child.names)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside or function)

    yield from walk(ast.parse(source, filename=module), False)


def complaint(module: str, target: str, inside: bool) -> str | None:
    """Why `module` may not import `target`, or None where it may."""
    name = room_of(module)
    if name is None:
        return "is in no row of ROOMS in tests/test_layering.py: add one, on the lowest floor"
    room = ROOMS[name]
    top = target.split(".")[0]
    if top in ("score_sde", "configs", "main"):
        to = room_of(target)
        if to is None:
            if target.removeprefix("score_sde.") in FROM_THE_FACE:
                return None
            return (
                f"imports {target}, no module of ROOMS: name the one that defines it, or add a row"
            )
        allowed = to == name or to in room.neighbours or ROOMS[to].floor in room.floors
        return (
            None
            if allowed
            else (
                f"(floor {room.floor}) imports {target} (floor {ROOMS[to].floor}); "
                f"it may import floors {room.floors} and {room.neighbours or 'no neighbour'}"
            )
        )
    if top in sys.stdlib_module_names or top == "numpy" or top in room.packages:
        return None
    if top in room.lazy:
        return (
            None if inside else f"imports {top} at its top: only inside the function that uses it"
        )
    return f"imports {top}; it may import numpy and {room.packages + room.lazy}"


def modules() -> Iterator[tuple[str, Path]]:
    """Yield (dotted name, file) of every module under the table's care."""
    files = [*ROOT.glob("score_sde/**/*.py"), *ROOT.glob("configs/**/*.py"), ROOT / "main.py"]
    for file in sorted(files):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def test_every_file_imports_only_from_the_floors_below():
    found = list(modules())
    assert {"score_sde.sde", "score_sde.networks", "main"} <= {name for name, _ in found}
    problems = []
    for module, file in found:
        if module == PUBLIC_FACE:
            continue
        if room_of(module) is None:
            problems.append(f"{file.relative_to(ROOT)} {complaint(module, '', False)}")
            continue
        for line, target, inside in imports(file.read_text(), module, file.stem == "__init__"):
            if why := complaint(module, target, inside):
                problems.append(f"{file.relative_to(ROOT)}:{line} {why}")
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("score_sde.sde", "from score_sde.samplers import ode", "floor 1"),
        ("score_sde.sde", "from score_sde import samplers", "floor 1"),
        ("score_sde.sde", "def f():\n    from .samplers.ode import ProbabilityFlow", "floor 1"),
        ("score_sde.samplers.ode", "from ..likelihood import log_likelihood", "floor 2"),
        ("score_sde.samplers.ode", "from . import grids", None),
        ("score_sde.score", "from score_sde.sde import SDE", None),
        ("score_sde.sde", "from score_sde.score import Parameterization", "floor 1"),
        ("score_sde.networks.unet", "from score_sde.sde import VPSDE", "floor 3"),
        ("score_sde.networks.unet", "import flax.nnx, numpy, math", None),
        ("score_sde.networks.unet", "import torch", "imports torch"),
        ("score_sde.data.digits", "import sklearn.datasets", "at its top"),
        ("score_sde.data.digits", "def load():\n    import sklearn.datasets", None),
        ("score_sde.run", "from score_sde import VPSDE", "name the one that defines it"),
        ("score_sde.config", "from score_sde import __version__", None),
        ("score_sde.brand_new", "import math", "add one"),
    ],
)
def test_the_walk_sees_what_it_should(module: str, source: str, expected: str | None):
    [*found] = (
        complaint(module, target, inside) for _, target, inside in imports(source, module, False)
    )
    if expected is None:
        assert found and not any(found)
    else:
        assert found[0] is not None and expected in found[0]


def test_what_help_imports_is_light(run_python):
    """`main.py --help`, the config and the table of data sets answer before JAX could be loaded."""
    code = """
import json, sys
import score_sde, score_sde.config, score_sde.data, score_sde.errors
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""
    loaded = set(json.loads(run_python(code).stdout))
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "diffrax", "sklearn", "scipy", "tensorflow"}
    assert "score_sde" in loaded
    assert not loaded & heavy
