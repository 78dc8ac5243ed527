"""Draws of posteriors known in closed form, by every method for inverse problems.

    python benchmarks/posteriors.py                      # the table of docs/control.md
    python benchmarks/posteriors.py --dims 64 --processes subvp,cosine --steps 25,100,400
    python benchmarks/posteriors.py --table              # of the lines that are there

The data are Gaussian, or mixtures of four Gaussians, of mean 0 and a variance of 1 for each
coordinate on average. They are measured by random matrices of several ranks, y = A x0 + sigma_y n.
Each number averages over measurements. A line of the CSV is written as soon as it is known, and
lines that are there are not computed again.

Columns of errors: `mean`, root mean square over the coordinates, in posterior standard deviations;
`covariance`, relative in the Frobenius norm; `modes`, total variation of the components' weights;
`wasserstein`, sliced 2-Wasserstein distance to as many exact draws, in the units of `mean`. The
method `draws` is exact draws themselves, which shows what their number alone makes of each column;
`exact` is the posterior's exact score, which shows the error of the sampler.
"""

import argparse
import csv
import itertools
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from score_sde import SDE, VESDE, VPSDE, SubVPSDE, inverse, oracle
from score_sde.samplers import DDIM

MEASUREMENTS, DRAWS, MODES = 3, 1000, 4
FIELDS = ("data", "dims", "rank", "sigma_y", "process", "method", "steps")
ERRORS = ("nfe", "mean", "covariance", "modes", "wasserstein", "seconds")


class Cosine(SDE):
    """alpha = cos, sigma = sin (Nichol, Dhariwal 2021, without the offset)."""

    T = 0.99

    def alpha(self, t):
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t):
        return jnp.sin(0.5 * jnp.pi * t)


PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(0.01, 50.0), "cosine": Cosine()}


def by_score(make, *arguments):
    """Draw by the method's score function."""
    key, sde, prior, operator, y, sigma_y, steps = arguments
    posterior = make(sde, prior.score(sde), operator, y, sigma_y)
    shape = (DRAWS, prior.means.shape[1])
    return DDIM(steps, eta=1.0).sample(key, sde, posterior, shape=shape)


def by_replacement(make, key, sde, prior, operator, y, sigma_y, steps):
    """Draw by the projection."""
    project = inverse.replacement(sde, None, operator, y, sigma_y, iterations=8)
    shape = (DRAWS, prior.means.shape[1])
    return make(steps).sample(key, sde, prior.score(sde), shape=shape, project=project)


def by_particles(particles, key, sde, prior, operator, y, sigma_y, steps):
    """Draw by twisted SMC."""
    posterior = inverse.pigdm(sde, prior.score(sde), operator, y, sigma_y)
    shape = (particles, prior.means.shape[1])
    return inverse.TwistedSMC(steps).sample(key, sde, posterior, shape=shape)


def exactly(key, sde, prior, operator, y, sigma_y, steps):
    """Draw by the posterior's own score."""
    score = prior.given(operator.args[0], y[0], sigma_y).score(sde)
    shape = (DRAWS, prior.means.shape[1])
    return DDIM(steps, eta=1.0).sample(key, sde, score, shape=shape)


METHODS = {
    "exact": exactly,
    "replacement": partial(by_replacement, partial(DDIM, eta=1.0)),
    "repaint 5": partial(by_replacement, partial(inverse.RePaint, resamplings=5)),
    "dps 0.03": partial(by_score, partial(inverse.dps, zeta=0.03)),
    "diffpir": partial(by_score, inverse.diffpir),
    "pigdm": partial(by_score, inverse.pigdm),
    "mmps 1": partial(by_score, partial(inverse.mmps, iterations=1)),
    "mmps 3": partial(by_score, partial(inverse.mmps, iterations=3)),
    "mmps 8": partial(by_score, partial(inverse.mmps, iterations=8)),
    "tds 1000": partial(by_particles, 1000),
    "tds 8000": partial(by_particles, 8000),
}


def prior_of(data, dims):
    """The data's distribution."""
    rng = np.random.default_rng(dims)
    number = 1 if data == "gaussian" else MODES
    factor = rng.normal(size=(number, dims, dims)) / np.sqrt(dims)
    covariances = 0.02 * np.eye(dims) + 0.3 * factor @ np.swapaxes(factor, 1, 2)
    means = rng.normal(size=(number, dims)) if number > 1 else np.zeros((1, dims))
    weights = np.arange(1, number + 1) / np.arange(1, number + 1).sum()
    means = means - weights @ means
    variance = weights @ (means**2 + np.einsum("kdd->kd", covariances))
    scale = 1.0 / np.sqrt(variance.mean())
    arrays = weights, scale * means, scale**2 * covariances
    return oracle.gaussian_mixture(*(jnp.asarray(a, jnp.float32) for a in arrays))


def times_matrix(matrix, x):
    """A x for each row."""
    return jnp.matmul(x, matrix.T, precision="highest")


def problems(data, dims, rank, sigma_y):
    """The prior, and for each measurement the operator, y and the exact posterior."""
    prior, rng = prior_of(data, dims), np.random.default_rng((dims, rank))
    for index in range(MEASUREMENTS):
        key = jax.random.key(index)
        matrix = jnp.asarray(rng.normal(size=(rank, dims)) / np.sqrt(dims), jnp.float32)
        x0 = prior.sample(key, 1)
        noise = jax.random.normal(jax.random.fold_in(key, 1), (1, rank))
        y = times_matrix(matrix, x0) + sigma_y * noise
        yield prior, Partial(times_matrix, matrix), y, prior.given(matrix, y[0], sigma_y)


def errors(x, posterior, sde, key):
    """The columns from `mean` to `wasserstein`."""
    still = jnp.asarray(1e-5)
    mean, covariance = (np.asarray(a, float) for a in posterior.moments(sde, 1e-5))
    spread = np.sqrt(np.trace(covariance) / len(mean))
    found = np.asarray(x, float)
    shares = posterior.posterior(sde, x, jnp.full(len(x), still)).mean(axis=0)
    truth = np.asarray(posterior.sample(key, len(x)), float)
    lines = np.random.default_rng(0).normal(size=(len(mean), 200))
    lines /= np.linalg.norm(lines, axis=0)
    sorted_ = [np.sort(points @ lines, axis=0) for points in (found, truth)]
    difference = np.cov(found.T) - covariance
    return (
        np.sqrt(np.mean((found.mean(axis=0) - mean) ** 2)) / spread,
        np.linalg.norm(difference) / np.linalg.norm(covariance),
        0.5 * float(np.abs(shares - np.exp(posterior.log_weights)).sum()),
        np.sqrt(np.mean((sorted_[0] - sorted_[1]) ** 2)) / spread,
    )


def measure(data, dims, rank, sigma_y, process, method, steps):
    """A line: evaluations, errors, and seconds with compilation."""
    sde, begin, rows, nfe = PROCESSES[process], time.perf_counter(), [], 0
    for index, (prior, *given, posterior) in enumerate(problems(data, dims, rank, sigma_y)):
        key = jax.random.key(100 + index)
        if method == "draws":
            x = posterior.sample(key, DRAWS)
        else:
            drawn = METHODS[method](key, sde, prior, *given, sigma_y, steps)
            x, nfe = drawn.x, int(drawn.nfe[0])
        rows.append(errors(x, posterior, VESDE(1e-4, 50.0), jax.random.fold_in(key, 1)))
    return (nfe, *np.mean(rows, axis=0), time.perf_counter() - begin)


def table(lines, by=("method", "steps"), over=ERRORS[:5]):
    """Averages over the lines of each value of some fields, as Markdown."""
    groups = defaultdict(list)
    for line in lines:
        groups[tuple(line[field] for field in by)].append([float(line[name]) for name in over])
    print(f"| {' | '.join((*by, *over))} |\n|{'---|' * (len(by) + len(over))}")
    for group, values in groups.items():
        nfe, *means = np.mean(values, axis=0)
        print(f"| {' | '.join((*group, f'{nfe:.0f}', *(f'{each:.3f}' for each in means)))} |")


def main():
    """Measure what the CSV lacks, and print the table."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--csv", default=Path(__file__).with_suffix(".csv"), type=Path)
    parser.add_argument("--data", default="gaussian,mixture")
    parser.add_argument("--dims", default="2,16")
    parser.add_argument("--ranks", default="1,half", help="of each dimension: numbers, half, full")
    parser.add_argument("--sigma_y", default="0.05,0.2,0.8")
    parser.add_argument("--processes", default="vp,ve")
    parser.add_argument("--methods", default=",".join(("draws", *METHODS)))
    parser.add_argument("--steps", default="100")
    parser.add_argument("--table", action="store_true", help="print averages of what is there")
    chosen = parser.parse_args()
    lines = list(csv.DictReader(chosen.csv.open())) if chosen.csv.exists() else []
    if not chosen.table:
        there = {tuple(line[field] for field in FIELDS) for line in lines}
        names = (chosen.data, chosen.dims, chosen.ranks, chosen.processes, chosen.methods)
        names = (
            *names,
            chosen.steps,
            chosen.sigma_y,
        )  # sigma_y last: another value compiles nothing
        for data, dims, rank, process, method, steps, sigma_y in itertools.product(
            *(each.split(",") for each in names)
        ):
            full = int(dims)
            rank = {"half": f"{full // 2}", "full": dims}.get(rank, rank)
            case = (data, dims, rank, sigma_y, process, method, steps)
            if case in there:
                continue
            there.add(case)
            found = measure(data, full, int(rank), float(sigma_y), process, method, int(steps))
            line = dict(zip(FIELDS, case, strict=True)) | {
                name: f"{value:.4g}" for name, value in zip(ERRORS, found, strict=True)
            }
            with chosen.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, (*FIELDS, *ERRORS))
                if not lines:
                    writer.writeheader()
                writer.writerow(line)
            lines.append(line)
            print(" ".join(line.values()), flush=True)
    table(lines, ("data", "method", "steps"))


if __name__ == "__main__":
    main()
