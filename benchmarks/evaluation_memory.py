"""Peak memory of an evaluation, and of drawing, against the number of images.

    python benchmarks/evaluation_memory.py [N ...]

Random images 32 x 32 x 3, as many on each side, in .npz files, go through a small extractor of 64
features: digests, features, statistics, all figures, nearest images. Each line is a process of its
own. The second column is the growth over what the imports and a compiled extractor take.
"""

import contextlib
import io
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np

from score_sde import scoring
from score_sde.config import default
from score_sde.evaluation.rows import of_npz
from score_sde.modes.judge import Judge
from score_sde.modes.results import Table
from score_sde.modes.sides import Side

SHAPE, FEATURES = (32, 32, 3), 64


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(path: Path, n: int, seed: int) -> None:
    """An .npz of random images, written a part at a time."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(0, n, 1000):
            file.write(rng.integers(0, 256, (1000, *SHAPE), np.uint8).tobytes())


def evaluate(n: int, folder: Path) -> None:
    """All that `--mode evaluate` does with two sets of n images."""
    weights = np.random.default_rng(0).normal(size=(np.prod(SHAPE), FEATURES)).astype(np.float32)
    project = jax.jit(lambda x: jax.nn.relu(x.reshape(len(x), -1) / 255.0 @ weights))
    extractor = scoring.Extractor(project, FEATURES, {"features": "projection"}, {})
    for seed, name in enumerate(("samples", "reference")):
        write(folder / f"{name}.npz", n, seed)
    ours, theirs = (
        Side({"path": name}, of_npz(folder / f"{name}.npz", "images"))
        for name in ("samples", "reference")
    )
    project(np.zeros((64, *SHAPE), np.uint8)).block_until_ready()
    before = peak()
    place = folder / scoring.FOLDER
    features = scoring.features(extractor, theirs.images, place, 64, theirs.about)
    known = scoring.statistics(extractor, features, theirs.about)
    judge = Judge(default(), place, extractor, theirs._replace(features=features), known)
    judge.score(ours, folder)
    print(f"| evaluate | {n:,} | {peak():.0f} | {peak() - before:.0f} |")


def draw(n: int, folder: Path) -> None:
    """What `--mode sample` keeps of n images, and how it writes them."""
    rng, before = np.random.default_rng(0), peak()
    table = Table(folder / "samples.npz", {}, n)
    for begin in range(0, n, 64):
        table.add({"images": rng.integers(0, 4, (min(64, n - begin), *SHAPE), np.uint8)})
    table.save()
    print(f"| draw | {n:,} | {peak():.0f} | {peak() - before:.0f} |")


def main() -> None:
    """Print the table, each line by a process of its own."""
    if sys.argv[1:2] in (["evaluate"], ["draw"]):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            globals()[sys.argv[1]](int(sys.argv[2]), Path(folder))
        return
    print("| what | images a side | peak, MiB | of these by the images, MiB |")
    print("| --- | --- | --- | --- |")
    for what in ("evaluate", "draw"):
        for n in map(int, sys.argv[1:] or ("10000", "50000")):
            subprocess.run([sys.executable, __file__, what, f"{n}"], check=True)


if __name__ == "__main__":
    main()
