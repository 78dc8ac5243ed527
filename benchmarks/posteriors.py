"""Draws of posteriors known in closed form, by every method for inverse problems.

    python benchmarks/posteriors.py                      # all lines that the CSV lacks
    python benchmarks/posteriors.py --minutes 4          # as many of them as that allows
    python benchmarks/posteriors.py --dims 16 --processes vp --steps 10,25,50,200   # the figure's
    python benchmarks/posteriors.py --table              # tables and figure of what is there

The data are Gaussian, or mixtures of four Gaussians, of mean 0 and a variance of 1 for each
coordinate on average. They are measured by random matrices of several ranks, y = A x0 + sigma_y n.
Each number averages over measurements: 3, in 64 dimensions 1. Every core runs a process of its own.
Lines of the CSV are written as soon as they are known, and are not computed again.

Columns of errors: `mean`, root mean square over the coordinates, in posterior standard deviations;
`covariance`, relative in the Frobenius norm; `modes`, total variation of the components' weights;
`wasserstein`, sliced 2-Wasserstein distance to as many exact draws, in the units of `mean`. The
method `draws` is exact draws themselves, which shows what their number alone makes of each column;
`exact` is the posterior's exact score, which shows the error of the sampler.
"""

import argparse
import csv
import itertools
import multiprocessing
import os
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.tree_util import Partial

from score_sde import SDE, VESDE, VPSDE, SubVPSDE, inverse, oracle
from score_sde.samplers import DDIM

DRAWS, MODES = 1000, 4
TICKS = (10, 30, 100, 300, 1000, 3000)  # evaluations, in the picture
FIELDS = ("data", "dims", "rank", "sigma_y", "process", "method", "steps")
ERRORS = ("nfe", "mean", "covariance", "modes", "wasserstein", "seconds")
STILL = VESDE(1e-4, 50.0), 1e-5  # a process and a time of nearly no noise


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
    dims = prior.means.shape[1]
    project = inverse.replacement(sde, None, operator, y, sigma_y, iterations=min(dims, 8))
    shape = (DRAWS, dims)
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
    "mmps 30": partial(by_score, partial(inverse.mmps, iterations=30)),
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


def problems(dims, rank, sigma_y, prior):
    """For each measurement its number, its matrix and y. Both have rows of zeros up to the
    dimension, which tell nothing: so one compiled program does for all ranks."""
    rng = np.random.default_rng((dims, rank))
    for index in range(1 if dims > 16 else 3):
        key = jax.random.key(index)
        matrix = np.zeros((dims, dims), np.float32)
        matrix[:rank] = rng.normal(size=(rank, dims)) / np.sqrt(dims)
        noise = np.zeros((1, dims), np.float32)
        noise[:, :rank] = jax.random.normal(jax.random.fold_in(key, 1), (1, rank))
        y = times_matrix(jnp.asarray(matrix), prior.sample(key, 1)) + sigma_y * noise
        yield index, matrix, np.asarray(y), np.float32(sigma_y)


def draw(prior, sde, method, steps, problem):
    """Draws, as many exact ones, the components' weights, found and true, and the true moments."""
    index, matrix, y, sigma_y = problem
    posterior, nfe = prior.given(matrix, y[0], sigma_y), jnp.zeros(1, jnp.int32)
    key = jax.random.key(100 + index)
    if method == "draws":
        x = posterior.sample(key, DRAWS)
    else:
        operator = Partial(times_matrix, matrix)
        x, nfe, _ = METHODS[method](key, sde, prior, operator, y, sigma_y, steps)
    shares = posterior.posterior(STILL[0], x, jnp.full(len(x), STILL[1])).mean(axis=0)
    truth = posterior.sample(jax.random.fold_in(key, 1), len(x))
    weights = shares, jnp.exp(posterior.log_weights)
    return nfe[0], x, truth, weights, posterior.moments(*STILL)


def errors(x, truth, weights, moments):
    """The columns from `mean` to `wasserstein`."""
    (mean, covariance), (shares, true_shares) = moments, weights
    spread = np.sqrt(np.trace(covariance) / len(mean))
    lines = np.random.default_rng(0).normal(size=(len(mean), 200))
    lines /= np.linalg.norm(lines, axis=0)
    sorted_ = [np.sort(points @ lines, axis=0) for points in (x, truth)]
    difference = np.cov(x.T) - covariance
    return (
        np.sqrt(np.mean((x.mean(axis=0) - mean) ** 2)) / spread,
        np.linalg.norm(difference) / np.linalg.norm(covariance),
        0.5 * np.abs(shares - true_shares).sum(),
        np.sqrt(np.mean((sorted_[0] - sorted_[1]) ** 2)) / spread,
    )


def measure(group):
    """Lines of one compiled program: evaluations, errors, and seconds with compilation."""
    (data, dims, process, method, steps), cases = group
    begin, prior = time.perf_counter(), prior_of(data, int(dims))
    each = [[*problems(int(dims), int(rank), float(noise), prior)] for rank, noise in cases]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *itertools.chain(*each))
    sde = PROCESSES[process]
    program = jax.jit(partial(jax.lax.map, partial(draw, prior, sde, method, int(steps))))
    found = jax.tree.map(lambda leaf: np.asarray(leaf, float), program(stacked))
    rows = [
        (nfe, *errors(*rest))
        for nfe, *rest in (jax.tree.map(lambda a, i=i: a[i], found) for i in range(len(found[0])))
    ]
    means = np.mean(np.reshape(rows, (len(cases), -1, 5)), axis=1)
    seconds = (time.perf_counter() - begin) / len(cases)
    lines = []
    for (rank, noise), values in zip(cases, means, strict=True):
        key = (data, dims, rank, noise, process, method, steps)
        numbers = (f"{value:.4g}" for value in (*values, seconds))
        lines.append(dict(zip((*FIELDS, *ERRORS), (*key, *numbers), strict=True)))
    return lines


def groups(chosen, lines):
    """The lines that the CSV lacks, those of one compiled program together; the longest first."""
    there = {tuple(line[field] for field in FIELDS) for line in lines}
    names = chosen.dims, chosen.steps, chosen.methods, chosen.data, chosen.processes
    for dims, steps, method, data, process in itertools.product(*(n.split(",") for n in names)):
        words = {"half": f"{int(dims) // 2}", "full": dims}
        ranks = dict.fromkeys(words.get(rank, rank) for rank in chosen.ranks.split(","))
        cases = itertools.product(ranks, chosen.sigma_y.split(","))
        lacking = [
            (rank, noise)
            for rank, noise in cases
            if (data, dims, rank, noise, process, method, steps) not in there
        ]
        if lacking:
            yield (data, dims, process, method, steps), lacking


def on_core(cores):
    """Keep a worker to a core of its own, whose threads would otherwise wait for each other."""
    os.sched_setaffinity(0, {cores.get()})


def fill(chosen, lines):
    """Measure what the CSV lacks, a group on each core, until the time is up."""
    spawn, until = multiprocessing.get_context("spawn"), time.monotonic() + 60.0 * chosen.minutes
    cores, todo = spawn.Queue(), [*groups(chosen, lines)]
    usable = sorted(os.sched_getaffinity(0))
    for index in range(chosen.jobs):
        cores.put(usable[index * len(usable) // chosen.jobs])
    print(f"{len(todo)} programs on {chosen.jobs} cores", flush=True)
    with spawn.Pool(chosen.jobs, on_core, (cores,)) as pool:
        found = pool.imap_unordered(measure, todo)
        for number in range(len(todo)):
            try:
                rows = found.next(timeout=max(until - time.monotonic(), 0.0))
            except multiprocessing.TimeoutError:
                print(f"{len(todo) - number} programs are left: the time is up")
                break
            with chosen.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, (*FIELDS, *ERRORS))
                if not lines:
                    writer.writeheader()
                writer.writerows(rows)
            lines += rows
            print(*rows[-1].values(), flush=True)


def table(lines, by=()):
    """Averages over the lines of each method and each value of some fields, as Markdown."""
    columns = [
        (data, name)
        for data in ("gaussian", "mixture")
        for name in ERRORS[1:5]
        if (data, name) != ("gaussian", "modes")  # one component has no weights to miss
    ]
    groups, order = defaultdict(list), ("draws", *METHODS)
    for line in sorted(lines, key=lambda line: order.index(line["method"])):
        groups[tuple(line[field] for field in (*by, "method"))].append(line)
    heads = (*by, "method", "NFE", *(f"{data}: {name}" for data, name in columns))
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for group, of in sorted(groups.items(), key=lambda item: item[0][:-1]):
        cells = [f"{np.mean([float(line['nfe']) for line in of]):.0f}"]
        for data, name in columns:
            values = [float(line[name]) for line in of if line["data"] == data]
            cells.append(f"{np.mean(values):.3f}" if values else "")
        print(f"| {' | '.join((*group, *cells))} |")


def picture(path, lines):
    """Errors against evaluations, for each method that was drawn with several numbers of steps:
    averages over measurements and noise in 16 dimensions under VP."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws
    from matplotlib.ticker import NullFormatter

    figure, panels = pyplot.subplots(
        2, 4, figsize=(13, 6.2), sharex=True, squeeze=False, layout="constrained"
    )
    of = [line for line in lines if (line["dims"], line["process"]) == ("16", "vp")]
    colours = pyplot.get_cmap("tab20")
    for row, data in zip(panels, ("gaussian", "mixture"), strict=True):
        for panel, name in zip(row, ERRORS[1:5], strict=True):
            for number, method in enumerate(("draws", *METHODS)):
                points = defaultdict(list)
                for line in of:
                    if (line["data"], line["method"]) == (data, method):
                        points[float(line["nfe"])].append(float(line[name]))
                curve = sorted((nfe, np.mean(values)) for nfe, values in points.items())
                if method == "draws" and curve:
                    panel.axhline(curve[0][1], color="black", linestyle="--", linewidth=1)
                elif curve:
                    panel.plot(*zip(*curve, strict=True), ".-", label=method, color=colours(number))
            panel.set(title=f"{data}: {name}", xscale="log")
            if (data, name) != ("gaussian", "modes"):
                panel.set(yscale="log")
    panels[0, 2].clear()  # one component has no weights to miss
    panels[0, 2].set_axis_off()
    for panel in panels.flat:  # last: clearing one resets the others, as they share the axis
        panel.set_xticks(TICKS, TICKS)
        panel.xaxis.set_minor_formatter(NullFormatter())
    panels[0, 2].legend(*panels[1, 0].get_legend_handles_labels(), ncols=2, loc="center")
    figure.supxlabel("passes through the network; dashed: as many exact draws")
    figure.savefig(path, dpi=70)


def main():
    """Measure what the CSV lacks, and print the tables."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--csv", default=Path(__file__).with_suffix(".csv"), type=Path)
    parser.add_argument("--dims", default="64,16,2")
    parser.add_argument("--steps", default="100")
    parser.add_argument("--methods", default=",".join(("draws", *METHODS)))
    parser.add_argument("--data", default="mixture,gaussian")
    parser.add_argument("--processes", default="vp,subvp,ve,cosine")
    parser.add_argument("--ranks", default="1,half,full", help="of each dimension: numbers, words")
    parser.add_argument("--sigma_y", default="0.05,0.2,0.8")
    parser.add_argument("--minutes", default=600.0, type=float, help="a limit of time")
    parser.add_argument("--jobs", default=len(os.sched_getaffinity(0)), type=int, help="processes")
    parser.add_argument("--table", action="store_true", help="the tables, and the figure (PNG)")
    chosen = parser.parse_args()
    chosen.csv.parent.mkdir(parents=True, exist_ok=True)
    lines = list(csv.DictReader(chosen.csv.open())) if chosen.csv.exists() else []
    if not chosen.table:
        fill(chosen, lines)
        return
    whole = [line for line in lines if line["steps"] == "100"]
    for by in ((), ("dims",), ("process",), ("sigma_y",)):
        table(whole, by)
    picture(chosen.csv.with_suffix(".png"), lines)


if __name__ == "__main__":
    main()
