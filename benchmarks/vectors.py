"""Vectors against what is known of them, through the commands that a user types.

    python benchmarks/vectors.py [FOLDER]

Moons: the held-out log density beside a kernel density estimate and a mixture of 10 Gaussians,
fitted to the same training split. Linear-Gaussian: p(x | y) for y = A x + noise, x normal, against
its closed form: log density, mean and covariance. Both train in the folder (runs/ by default).
"""

import sys
from pathlib import Path

import jax
import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

import score_sde
from score_sde import cli, data

A = np.asarray([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5]])
NOISE, PAIRS, HELD_OUT, DRAWN = 0.5, 20_000, 2000, 4000
# The last lies 3.6 standard deviations out: hardly a training pair is near.
CONDITIONS = ((0.0, 0.0), (1.0, -1.0), (2.0, 2.0), (-2.0, 3.0))


def command(*arguments: object) -> None:
    """Run a command line; stop where it fails."""
    if cli.main([str(argument) for argument in arguments]):
        sys.exit(1)


def in_words(values: np.ndarray) -> str:
    """Mean and standard error."""
    return f"{values.mean():.4f} +- {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def moons(folder: Path) -> None:
    """Print held-out log densities in nats, and their paired difference from the others'."""
    workdir = folder / "vp_moons"
    command("--mode=train", "--config=vp_moons", f"--workdir={workdir}")
    command("--mode=sample", f"--workdir={workdir}")
    command("--mode=likelihood", f"--workdir={workdir}")
    ours = np.load(workdir / "likelihood.npz")["log_weight"][:, 0].astype(float)
    train, test = (data.load("moons", split).x.astype(float) for split in ("train", "test"))
    widths = {"bandwidth": np.geomspace(0.02, 0.2, 12)}
    kernel = GridSearchCV(KernelDensity(), widths, cv=5).fit(train).best_estimator_
    mixture = GaussianMixture(10, random_state=0, n_init=3).fit(train)
    print(f"\nmoons, mean log p of {len(test)} held-out points, nats: {in_words(ours)}")
    others = {f"kernels of {kernel.bandwidth:.3f}": kernel, "10 Gaussians": mixture}
    for name, other in others.items():
        theirs = other.score_samples(test)
        print(f"  {name}: {in_words(theirs)}; ours less theirs {in_words(ours - theirs)}")


def linear_gaussian(folder: Path) -> None:
    """Print how far p(x | y) is from the closed form."""
    rng, workdir = np.random.default_rng(0), folder / "linear_gaussian"
    x = rng.normal(size=(PAIRS + HELD_OUT, 3))
    y = x @ A.T + NOISE * rng.normal(size=(len(x), 2))
    rows = np.concatenate([x, y], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    names = np.asarray(["x0", "x1", "x2", "y0", "y1"])
    file = folder / "linear_gaussian.npz"
    np.savez(file, x=rows[:PAIRS], x_test=rows[PAIRS:], columns=names)
    of_data = ("--config.data.name=npz", f"--config.data.dir={file}")
    columns = "--config.data.condition=('y0', 'y1')"
    command("--mode=train", "--config=vp_moons", f"--workdir={workdir}", *of_data, columns)
    command("--mode=likelihood", f"--workdir={workdir}")

    gain = A.T @ np.linalg.inv(A @ A.T + NOISE**2 * np.eye(2))
    covariance = np.eye(3) - gain @ A
    apart = x[PAIRS:] - y[PAIRS:] @ gain.T
    exact = -0.5 * np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
    exact -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    ours = np.load(workdir / "likelihood.npz")["log_weight"][:, 0].astype(float)
    print(f"\np(x | y), mean log p of {HELD_OUT} held-out pairs, nats: {in_words(ours)}")
    print(f"  closed form: {in_words(exact)}; ours less it {in_words(ours - exact)}")
    run = score_sde.load(workdir)
    for given in CONDITIONS:
        vector = np.repeat(run.info.standardised([given]), DRAWN, axis=0)
        drawn = run.sample(jax.random.key(1), DRAWN, vector=vector).x.astype(float)
        mean = np.abs(drawn.mean(axis=0) - gain @ given).max()
        spread = np.abs(np.cov(drawn.T) - covariance).max()
        print(f"  y = {given}: error of the mean {mean:.3f}, of the covariance {spread:.3f}")
    error = np.sqrt(np.diag(covariance).max() / DRAWN)
    print(f"  (a mean of {DRAWN} draws has a standard error of {error:.3f} at most)")


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    moons(where)
    linear_gaussian(where)
