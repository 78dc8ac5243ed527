"""Peak memory of an evaluation, and of drawing, against the number of images.

    python benchmarks/evaluation_memory.py [--pixels SIDE] [N ...]
    python benchmarks/evaluation_memory.py --what manifolds 50000

Random images 32 x 32 x 3 (or of another side), as many on each side, in .npz files, go through a
small extractor of 64 features: digests, features, statistics, all figures, nearest images. Each
line is a process of its own. The last columns are the growth over what the imports and a compiled
extractor take, and seconds. `manifolds` are precision, recall, density and coverage of random
features (N, 64) alone.
"""

import argparse
import contextlib
import io
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import jax
import numpy as np

from score_sde import evaluation, scoring
from score_sde.config import default
from score_sde.evaluation.rows import of_npz
from score_sde.modes.judge import Judge
from score_sde.modes.results import Table
from score_sde.modes.sides import Side

FEATURES = 64
Shape = tuple[int, int, int]


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(path: Path, n: int, shape: Shape, seed: int) -> None:
    """An .npz of random images, written a part at a time."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(0, n, 100):
            file.write(rng.integers(0, 256, (100, *shape), np.uint8).tobytes())


def evaluate(n: int, shape: Shape, folder: Path) -> None:
    """All that `--mode evaluate` does with two sets of n images."""
    weights = np.random.default_rng(0).normal(size=(np.prod(shape), FEATURES)).astype(np.float32)
    project = jax.jit(lambda x: jax.nn.relu(x.reshape(len(x), -1) / 255.0 @ weights))
    extractor = scoring.Extractor(project, FEATURES, {"features": "projection"}, {})
    for seed, name in enumerate(("samples", "reference")):
        write(folder / f"{name}.npz", n, shape, seed)
    ours, theirs = (
        Side({"path": name}, of_npz(folder / f"{name}.npz", "images"))
        for name in ("samples", "reference")
    )
    project(np.zeros((64, *shape), np.uint8)).block_until_ready()
    before = peak(), time.perf_counter()
    place = folder / scoring.FOLDER
    features = scoring.features(extractor, theirs.images, place, 64, theirs.about)
    known = scoring.statistics(extractor, features, theirs.about)
    judge = Judge(default(), place, extractor, theirs._replace(features=features), known)
    judge.score(ours, folder)
    tell("evaluate", n, before)


def draw(n: int, shape: Shape, folder: Path) -> None:
    """What `--mode sample` keeps of n images, and how it writes them."""
    rng, before = np.random.default_rng(0), (peak(), time.perf_counter())
    table = Table(folder / "samples.npz", {}, n, large={"images": (shape, np.uint8)})
    for begin in range(0, n, 64):
        table.add({"images": rng.integers(0, 4, (min(64, n - begin), *shape), np.uint8)})
    table.save()
    tell("draw", n, before)


def manifolds(n: int, shape: Shape, folder: Path) -> None:
    """Figures of nearest neighbours of n features on each side."""
    rng = np.random.default_rng(0)
    fake, real = (rng.normal(size=(n, FEATURES)).astype(np.float32) for _ in range(2))
    before = peak(), time.perf_counter()
    evaluation.manifolds(fake, real)
    tell("manifolds", n, before)


def tell(what: str, n: int, before: tuple[float, float]) -> None:
    """A row of the table."""
    grown, seconds = peak() - before[0], time.perf_counter() - before[1]
    print(f"| {what} | {n:,} | {peak():.0f} | {grown:.0f} | {seconds:.0f} |")


def main() -> None:
    """Print the table, each line by a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="*", type=int, default=[10_000, 50_000])
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--what", default="evaluate,draw")
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    if given.here:
        shape = (given.pixels, given.pixels, 3)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            globals()[given.what](given.n[0], shape, Path(folder))
        return
    print("| what | items a side | peak, MiB | of these by the items, MiB | s |")
    print("| --- | --- | --- | --- | --- |")
    for what in given.what.split(","):
        for n in given.n:
            at = [f"--what={what}", f"--pixels={given.pixels}", "--here", f"{n}"]
            subprocess.run([sys.executable, __file__, *at], check=True)


if __name__ == "__main__":
    main()
