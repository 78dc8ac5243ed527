"""How near each sampler comes to the truth for how many evaluations of the score.

    python benchmarks/samplers.py                    a Gaussian mixture, its exact score
    python benchmarks/samplers.py runs/vp_digits     a run trained on the digits

Both write a table (CSV) and a picture (PNG) beside this file, `samplers_mixture` and
`samplers_digits`, and print what is found. Rows that the table has already are not measured again:
an interrupted run goes on, and to begin anew delete the file.

distance   the sliced Wasserstein distance to true samples: the 2-Wasserstein distance, exact in one
           dimension by sorting, in 128 fixed random directions, their root mean square. Mean over 5
           seeds of sampler and truth, with its standard error. That of two sets of true samples is
           the floor; no sampler goes below it but by chance.
log p      on the mixture, the exact mean log density of the samples at t_min, in nats, less that of
           the true samples: below 0 where samples stray, above where they crowd.

NFE counts every evaluation, the final denoising's and correctors' too; the adaptive solver's is the
mean over its samples. The digits are compared as integer pixels divided by their largest value:
samples of the averaged weights with a random quarter of the 1797 images, training and test.
"""

import argparse
import csv
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import score_sde
from score_sde import build, data
from score_sde.modes import start
from score_sde.oracle import GaussianMixture, gaussian_mixture
from score_sde.run import noise_on_devices
from score_sde.samplers import (
    DDIM,
    AnnealedLangevin,
    ExponentialMultistep,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)
from score_sde.samplers.base import Sampler
from score_sde.sde import SDE, VESDE, VPSDE, SubVPSDE

SEEDS = 5
DIRECTIONS = 128
FEW = (5, 7, 10, 15, 20, 30, 50)
OTHER_GRIDS = (5, 10, 15, 20)  # each setting is a program to compile
MANY = (20, 50, 100, 200, 500)
SOME = (50, 200)
TOLERANCES = (1e-1, 1e-2, 1e-4)
PREDICTORS = (
    *("Euler–Maruyama, uniform", "ancestral, uniform", "reverse diffusion + Langevin, uniform"),
    "annealed Langevin",
)
BASELINE = (PREDICTORS[0], 500)
TRUTH = "true samples"


class Curve(NamedTuple):
    """A sampler at several settings: ``of(setting)``, mostly its NFE."""

    settings: tuple[float, ...]
    of: Callable[[float], Sampler]


def _steps(settings: tuple[int, ...], sampler: Callable[..., Sampler], **options: object) -> Curve:
    """A sampler of one evaluation a step, and one for the denoising."""
    return Curve(settings, lambda nfe: sampler(num_steps=int(nfe) - 1, **options))


def _pairs(settings: tuple[int, ...], sampler: Callable[..., Sampler], **options: object) -> Curve:
    """A sampler of two evaluations a step. Even numbers are not reached: the next lower is."""
    return Curve(settings, lambda nfe: sampler(num_steps=(int(nfe) - 1) // 2, **options))


FAST: dict[str, tuple[Callable, Callable[..., Sampler]]] = {
    "UniPC": (_steps, partial(ExponentialMultistep, corrector=True)),
    "DPM-Solver++ 2M": (_steps, partial(ExponentialMultistep, order=2)),
    "DPM-Solver++ 3M": (_steps, partial(ExponentialMultistep, order=3)),
    "DPM-Solver++ SDE": (_steps, partial(ExponentialMultistep, eta=1.0)),
    "DDIM": (_steps, DDIM),
    "DDIM eta 1": (_steps, partial(DDIM, eta=1.0)),
    "Heun": (_pairs, Heun),
}


def default_curves() -> dict[str, Curve]:
    """Every sampler on its own grid, by both names."""
    pc = PredictorCorrector
    return {
        PREDICTORS[0]: _steps(MANY, pc),
        PREDICTORS[1]: _steps(SOME, pc, predictor="ancestral"),
        PREDICTORS[2]: _pairs(SOME, pc, predictor="reverse_diffusion", corrector="langevin"),
        PREDICTORS[3]: _steps(SOME, AnnealedLangevin),
        "probability flow, adaptive": Curve(
            TOLERANCES, lambda tolerance: ProbabilityFlow(rtol=tolerance, atol=tolerance)
        ),
        **{
            f"{name}, {sampler().grid}": kind(FEW, sampler)
            for name, (kind, sampler) in FAST.items()
        },
    }


def curves() -> dict[str, Curve]:
    """These, and the fast ones on other grids."""
    others = {
        "UniPC": ("log_snr", "karras", "uniform"),
        "DPM-Solver++ 2M": ("log_snr", "karras"),
        "DPM-Solver++ SDE": ("log_snr",),
        "DDIM": ("log_snr", "uniform"),
        "Heun": ("log_snr", "karras", "angle"),
    }
    return default_curves() | {
        f"{name}, {grid}": FAST[name][0](OTHER_GRIDS, FAST[name][1], grid=grid)
        for name, grids in others.items()
        for grid in grids
        if grid != FAST[name][1]().grid
    }


class Row(NamedTuple):
    """A line of the table. ``distances`` and ``log_probs`` are those of the seeds."""

    process: str
    sampler: str
    setting: float
    nfe: float
    distance: float
    distance_error: float
    log_prob: float
    log_prob_error: float
    distances: tuple[float, ...]
    log_probs: tuple[float, ...]


class Judge:
    """Compares sets of vectors (n, D) with the truth of a seed."""

    def __init__(
        self,
        truths: list[np.ndarray],
        log_prob: Callable[[np.ndarray], float] = lambda x: math.nan,
    ) -> None:
        directions = np.random.default_rng(0).standard_normal((truths[0].shape[1], DIRECTIONS))
        self.directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
        self.truths = [self.project(truth) for truth in truths]
        self.log_prob = log_prob
        self.true_log_probs = [log_prob(truth) for truth in truths]

    def project(self, x: np.ndarray) -> np.ndarray:
        """Sorted along each direction, (n, directions)."""
        return np.sort(x @ self.directions, axis=0)

    def distance(self, x: np.ndarray, seed: int) -> float:
        """The sliced Wasserstein distance; infinite for samples that are not finite."""
        if not np.isfinite(x).all():
            return math.inf
        difference = (self.project(x) - self.truths[seed]).astype(np.float64)
        return float(np.sqrt(np.square(difference).mean()))

    def row(
        self, process: str, sampler: str, setting: float, nfe: float, sets: list[np.ndarray]
    ) -> Row:
        """The line of one set for each seed."""
        distances = [self.distance(x, seed) for seed, x in enumerate(sets)]
        log_probs = [
            self.log_prob(x) - true for x, true in zip(sets, self.true_log_probs, strict=True)
        ]
        return Row(
            *(process, sampler, setting, nfe, *_mean(distances), *_mean(log_probs)),
            *(tuple(distances), tuple(log_probs)),
        )


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return statistics.fmean(values), float(np.std(values, ddof=1)) / math.sqrt(len(values))


# --- The mixture ----------------------------------------------------------------------------------

DIMS, COMPONENTS, SAMPLES = 8, 6, 32768
PROCESSES: dict[str, SDE] = {
    "VP": VPSDE(0.1, 20.0),
    "sub-VP": SubVPSDE(0.1, 20.0),
    "VE": VESDE(0.01, 50.0),
}


def mixture() -> GaussianMixture:
    """Six components in 8 dimensions, about unit size in all: means some two of their standard
    deviations apart, deviations between 0.1 and 0.6 along axes of their own."""
    rng = np.random.default_rng(0)
    weights = np.arange(1.0, COMPONENTS + 1.0)
    weights /= weights.sum()
    means = rng.standard_normal((COMPONENTS, DIMS))
    means -= weights @ means
    stds = np.exp(rng.uniform(np.log(0.1), np.log(0.6), (COMPONENTS, DIMS)))
    axes = np.linalg.qr(rng.standard_normal((COMPONENTS, DIMS, DIMS)))[0]
    covariances = np.einsum("kde,ke,kfe->kdf", axes, np.square(stds), axes)
    return gaussian_mixture(*(array.astype(np.float32) for array in (weights, means, covariances)))


def on_mixture() -> Iterator[tuple[str, Judge, list[np.ndarray], Callable]]:
    """For each process its name, judge, second true samples, and what draws a sampler's."""
    oracle = mixture()
    for name, sde in PROCESSES.items():
        density = jax.jit(oracle.log_prob)

        def log_prob(x: np.ndarray, sde: SDE = sde, density: Callable = density) -> float:
            return float(jnp.mean(density(sde, x, jnp.full(len(x), sde.t_min))))

        def draw(sampler: Sampler, seed: int, sde: SDE = sde) -> tuple[np.ndarray, float]:
            shape = (SAMPLES, DIMS)
            drawn = sampler.sample(jax.random.key(seed), sde, oracle.score(sde), shape=shape)
            return np.asarray(drawn.x), float(np.mean(drawn.nfe))

        first, second = (
            [np.asarray(oracle.sample(jax.random.key(n + seed), SAMPLES)) for seed in range(SEEDS)]
            for n in (1000, 2000)
        )
        yield name, Judge(first, log_prob), second, draw


# --- The digits -----------------------------------------------------------------------------------


def on_digits(workdir: str) -> Iterator[tuple[str, Judge, list[np.ndarray], Callable]]:
    """As ``on_mixture``, for one trained run."""
    run = score_sde.load(workdir)
    pixels = build.pixel_range(run.config)
    images = np.concatenate([data.load("digits", split, "").images for split in ("train", "test")])
    vectors = images.reshape(len(images), -1).astype(np.float32) / (pixels.levels - 1)
    size = len(vectors) // 4
    orders = [np.random.default_rng(seed).permutation(len(vectors)) for seed in range(SEEDS)]

    def draw(sampler: Sampler, seed: int) -> tuple[np.ndarray, float]:
        key = jax.random.key(seed)
        noise = noise_on_devices(key, run.sde, (size, *images.shape[1:]))
        score = run.smooth_score if isinstance(sampler, ProbabilityFlow) else run.score
        drawn = sampler.sample(key, run.sde, score, noise)
        drawn_pixels = np.asarray(pixels.to_uint8(drawn.x), np.float32) / (pixels.levels - 1)
        return drawn_pixels.reshape(size, -1), float(np.mean(drawn.nfe))

    first, second = (
        [vectors[order[part]] for order in orders] for part in (slice(size), slice(size, 2 * size))
    )
    yield (
        {"vp": "VP", "subvp": "sub-VP", "ve": "VE"}[run.config.sde.name],
        Judge(first),
        second,
        draw,
    )


# --- The table ------------------------------------------------------------------------------------


def measure(file: Path, problem: Iterator, settings: Callable[[str, float], bool]) -> list[Row]:
    """Fill the table with the rows that it lacks, of the curves and settings that are asked for."""
    rows = read(file)
    done = {(row.process, row.sampler, row.setting) for row in rows}
    for process, judge, second, draw in problem:
        if (process, TRUTH, 0.0) not in done:
            rows.append(judge.row(process, TRUTH, 0.0, 0.0, second))
        for name, curve in curves().items():
            jax.clear_caches()  # hundreds of programs would fill the memory
            for setting in filter(partial(settings, name), curve.settings):
                if (process, name, float(setting)) in done:
                    continue
                began = time.perf_counter()
                drawn = [draw(curve.of(setting), seed) for seed in range(SEEDS)]
                sets, nfe = [x for x, _ in drawn], statistics.fmean(n for _, n in drawn)
                rows.append(judge.row(process, name, setting, nfe, sets))
                write(file, rows)
                print(f"{words(rows[-1])}  {time.perf_counter() - began:.1f} s", flush=True)
    return rows


def words(row: Row) -> str:
    """A row for the eye."""
    return (
        f"{row.process:7s}{row.sampler:38s}{row.nfe:7.1f}  distance {row.distance:.4f} +- "
        f"{row.distance_error:.4f}  log p {row.log_prob:+.4f} +- {row.log_prob_error:.4f}"
    )


def read(file: Path) -> list[Row]:
    """The rows of a table; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            Row(
                *(line["process"], line["sampler"]),
                *(float(line[field]) for field in Row._fields[2:-2]),
                *(tuple(map(float, line[field].split())) for field in Row._fields[-2:]),
            )
            for line in csv.DictReader(lines)
        ]


def write(file: Path, rows: list[Row]) -> None:
    """Write the table, whole at any moment."""
    partial_file = file.with_suffix(".partial")
    with partial_file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(Row._fields)
        for row in rows:
            numbers = [f"{value:.5g}" for value in row[2:-2]]
            seeds = [" ".join(f"{value:.5g}" for value in values) for values in row[-2:]]
            writer.writerow([*row[:2], *numbers, *seeds])
    partial_file.replace(file)


# --- What is found --------------------------------------------------------------------------------


def report(rows: list[Row]) -> None:
    """Print, as a Markdown table, the nearest samplers at each number of evaluations, and how they
    stand to the baseline."""
    print("\n| | NFE | distance | nearer than the baseline by, +- | log p |")
    print("|---" * 5 + "|")
    for process in dict.fromkeys(row.process for row in rows):
        mine = [row for row in rows if row.process == process]
        special = [row for row in mine if (row.sampler, row.setting) in ((TRUTH, 0), BASELINE)]
        baseline = next((row for row in special if row.sampler != TRUTH), None)
        for row in special:
            print(line(row, baseline))
        for nfe in FEW[:5]:
            at = [row for row in mine if row.setting == nfe and row.sampler not in PREDICTORS]
            nearest = sorted(at, key=lambda row: row.distance)
            for i, row in enumerate(nearest):
                if i < 3 or row.sampler == "DPM-Solver++ SDE, angle":
                    print(line(row, baseline))


def line(row: Row, baseline: Row | None) -> str:
    """A row of the report. A sampler is as close as the baseline where it is not farther by more
    than two standard errors of the difference, seed by seed."""
    against = ""
    if baseline and row is not baseline and row.sampler != TRUTH:
        pairs = zip(row.distances, baseline.distances, strict=True)
        nearer, error = _mean([theirs - ours for ours, theirs in pairs])
        verdict = "" if nearer < -2 * error else ", as close"
        against = f"{nearer:+.4f} ± {error:.4f}{verdict}"
    nfe = f"{row.nfe:.0f}" if row.nfe else "–"
    log_prob = "" if math.isnan(row.log_prob) else f"{row.log_prob:+.3f} ± {row.log_prob_error:.3f}"
    return (
        f"| {row.process}, {row.sampler} | {nfe} | {row.distance:.4f} ± {row.distance_error:.4f} "
        f"| {against} | {log_prob} |"
    )


def picture(file: Path, rows: list[Row]) -> None:
    """Draw the curves, each sampler on the grid that is its default; below, where there is an exact
    one, the log density."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    names = list(default_curves())
    values: dict[str, Callable[[Row], float]] = {
        "distance (dashed: two true samples)": lambda row: row.distance,
        "|mean log p, less that of true samples|": lambda row: abs(row.log_prob),
    }
    if math.isnan(rows[0].log_prob):
        values.popitem()
    processes, colours = list(dict.fromkeys(row.process for row in rows)), pyplot.get_cmap("tab20")
    figure, panels = pyplot.subplots(
        len(values), len(processes), squeeze=False, layout="constrained",
        figsize=(4.2 * len(processes) + 2.5, 3.6 * len(values)),
    )  # fmt: skip
    for (label, value), line_of_panels in zip(values.items(), panels, strict=True):
        for process, panel in zip(processes, line_of_panels, strict=True):
            mine = [row for row in rows if row.process == process]
            for i, name in enumerate(names):
                points = sorted((row.nfe, value(row)) for row in mine if row.sampler == name)
                style = "--" if name in PREDICTORS else "-"
                panel.loglog(*zip(*points, strict=True), style, marker=".", color=colours(i))
            floor = next(value(row) for row in mine if row.sampler == TRUTH)
            panel.axhline(floor, color="black", linestyle="--", linewidth=1)
            panel.set(title=process, xlabel="evaluations of the score", ylabel=label)
            panel.set_ylim(0.5 * floor, 1e3 * floor)
    figure.legend(panels[0, 0].lines[:-1], names, loc="outside right upper")
    figure.savefig(file, dpi=80)


def main() -> None:
    """Measure what is missing, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="?", help="of a run trained on the digits")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    here = Path(__file__).parent
    name = "samplers_digits" if arguments.workdir else "samplers_mixture"
    file = here / f"{name}.csv"
    if arguments.report:
        rows = read(file)
    else:
        start(449 if arguments.workdir else SAMPLES)
        print(
            f"{platform.machine()}, {os.cpu_count()} CPU cores; jax {jax.__version__}", flush=True
        )
        if arguments.workdir:
            # A network takes its time: fewer settings.
            rows = measure(file, on_digits(arguments.workdir), for_a_network)
        else:
            rows = measure(file, on_mixture(), lambda name, setting: True)
    report(rows)
    picture(file.with_suffix(".png"), rows)


def for_a_network(name: str, setting: float) -> bool:
    """Whether a curve has this setting where an evaluation costs something."""
    if name.startswith("probability flow"):
        return setting in (1e-2, 1e-4)
    if name in PREDICTORS:
        return setting in (50, 200)
    return name in default_curves() and setting in (5, 10, 15, 20)


if __name__ == "__main__":
    main()
