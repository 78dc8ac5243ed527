"""Held-out images restored by every method: how near their means are, and how right their spread.

    python benchmarks/restoration.py runs/vp_digits
    python benchmarks/restoration.py runs/edm --draws 4 --steps 15 --only pigdm "mmps 1"
    python benchmarks/restoration.py runs/vp_digits --table

100 held-out images, 20 draws of each, by the run's own sampler, sigma_y = 0.05. A line of the CSV
beside this file, named by the data set, is written as soon as it is known. Lines that are there are
not computed again, so a table can be made in parts (`--only`). All lines have the same numbers of
images, draws and steps. The table (Markdown) has `psnr` of the mean of the draws, in dB, the
average over the images with its standard error, and `coverage`, the share of the pixels whose truth
lies in the draws' intervals of 50 and 90 % (`inverse.coverage`).
"""

import argparse
import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lines import folder

import score_sde
from score_sde import build, data, inverse
from score_sde.batches import joined
from score_sde.guidance import NO_LABEL
from score_sde.inverse import operators
from score_sde.modes import start
from score_sde.run import Run
from score_sde.samplers.base import from_prior

SIGMA_Y = 0.05
METHODS = {
    "pigdm": inverse.pigdm,
    "mmps 1": partial(inverse.mmps, iterations=1),
    "mmps 3": inverse.mmps,
    "dps": inverse.dps,
    "dps 0.3": partial(inverse.dps, zeta=0.3),
    "diffpir": inverse.diffpir,
    "replacement": partial(inverse.replacement, iterations=8),
    "repaint 5": partial(inverse.replacement, iterations=8),
}
SETTINGS = ("images", "draws", "steps")  # the same for all lines of a file
FOUND = ("nfe", "psnr", "error", "coverage_50", "coverage_90", "seconds")
FIELDS = ("task", "method", *SETTINGS, *FOUND)


def tasks(shape: tuple[int, ...]) -> dict[str, Callable]:
    """Half of an image, its middle, one of half the sides, a blurred one; colours in place of the
    middle."""
    height, width, channels = shape
    rows, columns = np.mgrid[:height, :width]
    middle = (abs(2 * rows - height + 1) < height / 2) & (abs(2 * columns - width + 1) < width / 2)
    blur = max(1.0, height / 28.0)
    kernel = operators.gaussian_kernel(blur, 2 * int(np.ceil(3 * blur)) + 1)
    second = {"box": operators.inpaint(~middle)}
    return {
        "half": operators.inpaint(columns < width // 2),
        **({"colorize": operators.colorize()} if channels == 3 else second),
        "super_resolve": operators.super_resolve(2),
        "deblur": operators.deblur(kernel),
    }


def restored(
    run: Run, method: str, operator: Callable, images: np.ndarray, draws: int
) -> tuple[float, ...]:
    """NFE, PSNR with its standard error, and the two coverages, of images (n, H, W, C)."""
    space, sampler = run.space, build.sampler(run.config)
    projects = method in ("replacement", "repaint 5")
    if method == "repaint 5":
        sampler = inverse.RePaint(sampler.num_steps, resamplings=5)

    def draw(part: np.ndarray, first: int) -> tuple[jax.Array, ...]:
        x = space.to_model(part)
        y = measured(operator, x, jax.random.fold_in(jax.random.key(1), first))
        y, score = jnp.repeat(y, draws, axis=0), run.score
        if run.config.model.class_conditional:
            score = score.given({"labels": jnp.full(len(y), NO_LABEL, jnp.int32)})
        found = METHODS[method](run.sde, score, operator, y, SIGMA_Y)
        noise = from_prior(jax.random.key(0), run.sde, (len(y), *space.shape), first * draws)
        drawn = sampler.sample(
            *(jax.random.key(0), run.sde, score if projects else found, noise),
            first=first * draws,
            project=found if projects else None,
        )
        restored = drawn.x.reshape(-1, draws, *space.shape)
        error = jnp.mean(jnp.square(restored.mean(axis=1) - x), axis=(1, 2, 3))
        psnr = -10.0 * jnp.log10(error / (4.0 if run.config.model.centered else 1.0))
        shares = (inverse.coverage(restored, x, share) for share in (0.5, 0.9))
        return drawn.nfe[::draws], psnr, *shares

    parts = run.in_batches("sampling", draw, images, len(images))
    nfe, psnr, *shares = joined(parts)
    error = psnr.std(ddof=1) / len(psnr) ** 0.5
    return nfe.mean(), psnr.mean(), error, *(share.mean() for share in shares)


def measured(operator: Callable, x: jax.Array, key: jax.Array) -> jax.Array:
    """The measurements of images in the model's units, without noise where a mask hides all."""
    clean = operator(x)
    noise = SIGMA_Y * jax.random.normal(key, clean.shape)
    hidden = clean.shape == x.shape and (operator(jnp.ones_like(x)) == 0)
    return clean + jnp.where(hidden, 0.0, noise)


def measure(chosen: argparse.Namespace, path: Path, run: Run) -> None:
    """Write the lines of the chosen methods that the CSV lacks."""
    settings = (chosen.images, chosen.draws, build.sampler(run.config).num_steps)
    lines = read(path)
    for line in lines:
        if (kept := tuple(int(line[name]) for name in SETTINGS)) != settings:
            raise SystemExit(f"{path}: {SETTINGS} are {kept}; allowed are those, or --output")
    there = {(line["task"], line["method"]) for line in lines}
    images = np.asarray(data.load(run.info.name, "test", run.config.data.dir).x[: chosen.images])
    for task, operator in tasks(run.info.shape).items():
        for method in chosen.only:
            if (task, method) in there:
                continue
            begin = time.perf_counter()
            found = restored(run, method, operator, images, chosen.draws)
            numbers = (f"{value:.4g}" for value in (*found, time.perf_counter() - begin))
            line = dict(zip(FIELDS, (task, method, *settings, *numbers), strict=True))
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerow(line)
            print(*line.values(), flush=True)


def read(path: Path) -> list[dict[str, str]]:
    """The lines of the CSV; none where there is no file."""
    return list(csv.DictReader(path.open())) if path.exists() else []


def table(lines: list[dict[str, str]]) -> None:
    """A line for each method: PSNR and the two coverages of each task."""
    names = list(dict.fromkeys(line["task"] for line in lines))
    print(f"\n| method | NFE | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
    for method in METHODS:
        of = {line["task"]: line for line in lines if line["method"] == method}
        if not of:
            continue
        cells = [
            f"{float(line['psnr']):.1f} ± {float(line['error']):.1f}; "
            f"{float(line['coverage_50']):.0%}, {float(line['coverage_90']):.0%}"
            if line
            else ""
            for line in map(of.get, names)
        ]
        nfe = next(iter(of.values()))["nfe"]
        print(f"| {method} | {nfe} | {' | '.join(cells)} |")


def main() -> None:
    """Measure what the CSV lacks, and print the table."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("workdir", type=Path, help="of a run of images")
    parser.add_argument("--images", default=100, type=int)
    parser.add_argument("--draws", default=20, type=int, help="of each image, at least 2")
    parser.add_argument("--steps", type=int, help="in place of the run's sampling.num_steps")
    only: dict[str, Any] = {"nargs": "+", "choices": METHODS, "metavar": "METHOD"}
    parser.add_argument("--only", default=list(METHODS), help=", ".join(METHODS), **only)
    parser.add_argument("--batch", default=100, type=int, help="images at a time")
    parser.add_argument("--output", default=Path(__file__).parent, type=folder)
    parser.add_argument("--table", action="store_true", help="of the lines that are there")
    chosen = parser.parse_args()
    start(chosen.batch)
    settings = {"sampling.batch_size": chosen.batch}
    if chosen.steps:
        settings["sampling.num_steps"] = chosen.steps
    run = score_sde.load(chosen.workdir).changed(settings)
    path = chosen.output / f"restoration_{run.info.name}.csv"
    if not chosen.table:
        measure(chosen, path, run)
    table(read(path))


if __name__ == "__main__":
    main()
