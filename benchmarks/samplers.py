"""How near each sampler comes to the truth for how many evaluations of the score.

    python benchmarks/samplers.py                    a Gaussian mixture, its exact score
    python benchmarks/samplers.py --held-out         another one, on which nothing was chosen
    python benchmarks/samplers.py runs/vp_digits     a run trained on the digits; or several
    python benchmarks/samplers.py --few runs/…       as that, methods for the fewest evaluations

Each prints what is found and writes a table (CSV) beside this file: `samplers_mixture`,
`samplers_held_out`, `samplers_digits`, `samplers_digits_few`. The first and the third also write a
picture (PNG). Rows that the table has already are not measured again: an interrupted run goes on,
and to begin anew delete the file.

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
import numpy as np
from samplers_table import TRUTH, Judge, Row, picture, read, report, words, write

import score_sde
from score_sde import data
from score_sde.modes import start
from score_sde.oracle import GaussianMixture, gaussian_mixture
from score_sde.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    AnnealedLangevin,
    ExponentialMultistep,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)
from score_sde.samplers.base import Sampler
from score_sde.sde import SDE, VESDE, VPSDE, SubVPSDE

SEEDS = 5
FEW = (5, 7, 10, 15, 20, 30, 50)
FEWEST = (5, 7, 10, 15)  # all that is asked of methods for the fewest evaluations
HEUNS = (37,)  # its default
OTHER_GRIDS = (5, 10, 15, 20)  # each setting is a program to compile
MANY = (20, 50, 100, 200, 500)
SOME = (50, 200)
TOLERANCES = (1e-1, 1e-2, 1e-4)
PREDICTORS = (
    *("Euler–Maruyama, uniform", "ancestral, uniform", "reverse diffusion + Langevin, uniform"),
    "annealed Langevin",
)
BASELINE = (PREDICTORS[0], 500)


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
    "iPNDM": (_steps, IPNDM),
    "DEIS": (_steps, DEIS),
    "DDIM": (_steps, DDIM),
    "DDIM eta 1": (_steps, partial(DDIM, eta=1.0)),
    "Heun": (_pairs, Heun),
}
OF_FEWEST = ("iPNDM", "DEIS")


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
            f"{name}, {sampler().grid}": kind(
                FEWEST if name in OF_FEWEST else FEW + HEUNS * (sampler is Heun), sampler
            )
            for name, (kind, sampler) in FAST.items()
        },
    }


def curves() -> dict[str, Curve]:
    """These, and the fast ones on other grids."""
    others = {
        "UniPC": ("log_snr", "karras", "uniform"),
        "DPM-Solver++ 2M": ("log_snr", "karras"),
        "DPM-Solver++ SDE": ("log_snr",),
        "iPNDM": ("angle", "karras"),
        "DEIS": ("angle", "karras"),
        "DDIM": ("log_snr", "uniform"),
        "Heun": ("log_snr", "karras", "angle"),
    }
    return default_curves() | {
        f"{name}, {grid}": FAST[name][0](
            FEWEST if name in OF_FEWEST else OTHER_GRIDS + HEUNS * (name == "Heun"),
            FAST[name][1],
            grid=grid,
        )
        for name, grids in others.items()
        for grid in grids
        if grid != FAST[name][1]().grid
    }


# --- The mixture ----------------------------------------------------------------------------------

DIMS, COMPONENTS, SAMPLES = 8, 6, 32768
HELD_OUT, MORE_SAMPLES = 1, 131072  # seed of the mixture on which nothing was chosen
PROCESSES: dict[str, SDE] = {
    "VP": VPSDE(0.1, 20.0),
    "sub-VP": SubVPSDE(0.1, 20.0),
    "VE": VESDE(0.01, 50.0),
}


def mixture(seed: int) -> GaussianMixture:
    """Six components in 8 dimensions, about unit size in all: means some two of their standard
    deviations apart, deviations between 0.1 and 0.6 along axes of their own."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1.0, COMPONENTS + 1.0)
    weights /= weights.sum()
    means = rng.standard_normal((COMPONENTS, DIMS))
    means -= weights @ means
    stds = np.exp(rng.uniform(np.log(0.1), np.log(0.6), (COMPONENTS, DIMS)))
    axes = np.linalg.qr(rng.standard_normal((COMPONENTS, DIMS, DIMS)))[0]
    covariances = np.einsum("kde,ke,kfe->kdf", axes, np.square(stds), axes)
    return gaussian_mixture(*(array.astype(np.float32) for array in (weights, means, covariances)))


def on_mixture(of: int, samples: int) -> Iterator[tuple[str, Judge, list[np.ndarray], Callable]]:
    """For each process its name, judge, second true samples, and what draws a sampler's; noise and
    truth are each process's own."""
    oracle = mixture(of)
    for index, (name, sde) in enumerate(PROCESSES.items()):
        keys = [jax.random.fold_in(jax.random.key(seed), index) for seed in range(SEEDS)]
        density = jax.jit(oracle.log_prob)

        def log_prob(x: np.ndarray, sde: SDE = sde, density: Callable = density) -> float:
            return float(jnp.mean(density(sde, x, jnp.full(len(x), sde.t_min))))

        def draw(
            sampler: Sampler, seed: int, sde: SDE = sde, keys: list[jax.Array] = keys
        ) -> tuple[np.ndarray, float]:
            shape = (samples, DIMS)
            drawn = sampler.sample(keys[seed], sde, oracle.score(sde), shape=shape)
            return np.asarray(drawn.x), float(np.mean(drawn.nfe))

        first, second = (
            [np.asarray(oracle.sample(jax.random.fold_in(key, n), samples)) for key in keys]
            for n in (2**31, 2**31 + 1)  # beyond the indices of the images
        )
        yield name, Judge(first, log_prob), second, draw


# --- The digits -----------------------------------------------------------------------------------


def on_digits(workdirs: list[str]) -> Iterator[tuple[str, Judge, list[np.ndarray], Callable]]:
    """As ``on_mixture``, for trained runs of different processes."""
    for workdir in workdirs:
        yield on_run(workdir)


def on_run(workdir: str) -> tuple[str, Judge, list[np.ndarray], Callable]:
    """As ``on_mixture``, for one trained run."""
    run = score_sde.load(workdir)
    pixels = run.space
    images = np.concatenate([data.load("digits", split, "").x for split in ("train", "test")])
    vectors = images.reshape(len(images), -1).astype(np.float32) / (pixels.levels - 1)
    size = len(vectors) // 4
    orders = [np.random.default_rng(seed).permutation(len(vectors)) for seed in range(SEEDS)]

    def draw(sampler: Sampler, seed: int) -> tuple[np.ndarray, float]:
        key = jax.random.key(seed)
        score = run.smooth_score if isinstance(sampler, ProbabilityFlow) else run.score
        drawn = sampler.sample(key, run.sde, score, shape=(size, *pixels.shape))
        drawn_pixels = np.asarray(pixels.from_model(drawn.x), np.float32) / (pixels.levels - 1)
        return drawn_pixels.reshape(size, -1), float(np.mean(drawn.nfe))

    first, second = (
        [vectors[order[part]] for order in orders] for part in (slice(size), slice(size, 2 * size))
    )
    name = {"vp": "VP", "subvp": "sub-VP", "ve": "VE"}[run.config.sde.name]
    return name, Judge(first), second, draw


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


def main() -> None:
    """Measure what is missing, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="*", help="of runs trained on the digits")
    parser.add_argument("--held-out", action="store_true", help="another mixture, a few settings")
    parser.add_argument("--few", action="store_true", help="of the runs: 5, 7, 10, 15 evaluations")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    here = Path(__file__).parent
    name = "samplers_held_out" if arguments.held_out else "samplers_mixture"
    if arguments.workdirs:
        name = "samplers_digits_few" if arguments.few else "samplers_digits"
    file = here / f"{name}.csv"
    if arguments.report:
        rows = read(file)
    else:
        start(449 if arguments.workdirs else SAMPLES)
        print(
            f"{platform.machine()}, {os.cpu_count()} CPU cores; jax {jax.__version__}", flush=True
        )
        if arguments.workdirs:
            asked = for_the_fewest if arguments.few else for_a_network
            rows = measure(file, on_digits(arguments.workdirs), asked)
        elif arguments.held_out:
            rows = measure(file, on_mixture(HELD_OUT, MORE_SAMPLES), for_the_claim)
        else:
            rows = measure(file, on_mixture(0, SAMPLES), lambda name, setting: True)
    report(rows, BASELINE, PREDICTORS, FEW[:5])
    if not (arguments.held_out or arguments.few):
        picture(file.with_suffix(".png"), rows, list(default_curves()), PREDICTORS)


def for_a_network(name: str, setting: float) -> bool:
    """Whether a curve has this setting where an evaluation costs something."""
    if name.startswith("probability flow"):
        return setting in (1e-2, 1e-4)
    if name in PREDICTORS:
        return setting in (50, 200)
    if name.startswith("Heun"):  # whose grid is the open question
        return setting in (10, 15, 20, *HEUNS)
    return name in default_curves() and setting in (5, 10, 15, 20, 30)


def for_the_fewest(name: str, setting: float) -> bool:
    """Whether a curve has this setting where a network's few evaluations are compared."""
    names = ("UniPC, angle", "DPM-Solver++ 3M, angle", "iPNDM", "DEIS")
    return name.startswith(names) and setting in FEWEST


def for_the_claim(name: str, setting: float) -> bool:
    """Whether a curve has this setting where it is only asked what few evaluations reach."""
    converged = name.startswith("probability flow") and setting == 1e-4
    fewest = name.startswith(("DPM-Solver++ 3M", "iPNDM", "DEIS")) and setting in FEWEST
    return converged or fewest or (name, setting) == BASELINE or name.startswith("UniPC, angle")


if __name__ == "__main__":
    main()
