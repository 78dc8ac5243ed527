"""Readers of the folder of CIFAR-10 and the Inception network (fixture `data_dir`)."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

from score_sde.evaluation.network import PARTS


def module(path: Path) -> ModuleType:
    """A reader that comes with the data."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def packed_weights(data_dir: Path) -> dict[str, np.ndarray]:
    """Inception's weights in the folder, which are rounded, by our names."""
    named = module(data_dir / "inception" / "load_inception.py").load_inception()
    ours = {}
    for number, name in enumerate(dict.fromkeys(key.rsplit(".", 2)[0] for key in named)):
        arrays = (
            named[f"{name}.conv.weight"].transpose(2, 3, 1, 0),
            *(named[f"{name}.bn.{part}"] for part in ("bias", "running_mean", "running_var")),
        )
        ours |= {f"{number:02}.{part}": a for part, a in zip(PARTS, arrays, strict=True)}
    return ours


def cifar10(data_dir: Path, batch: str) -> np.ndarray:
    return module(data_dir / "cifar10" / "unpack_cifar10.py").read_batch(batch)[0]
