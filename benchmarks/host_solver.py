"""Our solves inside XLA and the same mathematics driven from the host, side by side.

    python benchmarks/host_solver.py runs/vp_digits

Likelihoods and probability-flow samples of a trained run, by this code and as the original code
goes about them: `scipy.integrate.solve_ivp` with RK45 over the whole batch as one float64 vector,
of which every call goes to the device, where a compiled float32 drift and, for likelihoods, a
compiled divergence of its own, the gradient of probe . drift, are evaluated. Images, probes, noise,
weights and tolerance are the same on both sides, which take turns in this process; the first round,
in which all compile, does not count.

The host has one step size for the whole batch. Ours are one for each image, so that an image does
not depend on its batch, and for samples in the last row one for all (`sampling.step_control`).

Both sides work on the same devices, a core each where the batch allows, as `--mode likelihood` and
`--mode sample` do; `--devices 1` gives XLA all cores as one device.

NFE is evaluations of the field: ours for each image (mean and largest, which is what a batch waits
for), the host's for the whole batch. The field of a likelihood is one forward-mode pass here; two
evaluations of the network, one of them differentiated in reverse, on the host.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from scipy.integrate import solve_ivp

import score_sde
from score_sde import data
from score_sde.likelihood import log_likelihood
from score_sde.modes import start
from score_sde.samplers import ProbabilityFlow
from score_sde.samplers.base import from_prior
from score_sde.score import Model, denoise, full_precision
from score_sde.sde import SDE
from score_sde.spaces import bits_per_dim, item_keys
from score_sde.training.mesh import along_data, placed

T_MIN_LIKELIHOOD = 1e-5


class Solved(NamedTuple):
    """What one batch gave: log p (B,) or samples (B, H, W, C), and NFE (B,) or one for all."""

    values: np.ndarray
    nfe: np.ndarray


class Host:
    """The original's way, for one process, score and batch shape."""

    def __init__(self, sde: SDE, score: Model, tolerance: float, mesh: Mesh) -> None:
        self.sde, self.score, self.tolerance, self.mesh = sde, score, tolerance, mesh

        def drift(score: Model, x: Array, t: Array) -> Array:
            return sde.probability_flow(score)(x, t)

        def divergence(score: Model, x: Array, t: Array, probe: Array) -> Array:
            gradient = jax.grad(lambda x: jnp.sum(drift(score, x, t) * probe))(x)
            return jnp.sum(gradient * probe, axis=(1, 2, 3))

        with full_precision():
            self.drift, self.divergence = jax.jit(drift), jax.jit(divergence)
            self.denoise = jax.jit(lambda score, x, t: denoise(sde, score, x, t))
            self.prior = jax.jit(sde.prior_log_prob)

    def on_devices(self, flat: np.ndarray, shape: tuple[int, ...], t: float) -> tuple[Array, Array]:
        """States and times, spread over the devices."""
        x = flat.reshape(shape).astype(np.float32)
        return jax.device_put((x, np.full(shape[0], t, np.float32)), along_data(self.mesh))

    def log_likelihood(self, x0: np.ndarray, probe: Array) -> Solved:
        """log p (B,) of x0 (B, H, W, C)."""
        shape, size = x0.shape, x0.size

        def field(t: float, state: np.ndarray) -> np.ndarray:
            x, times = self.on_devices(state[:size], shape, t)
            with full_precision():
                drift = np.asarray(self.drift(self.score, x, times)).reshape(-1)
                divergence = np.asarray(self.divergence(self.score, x, times, probe))
            return np.concatenate([drift, divergence])

        state = np.concatenate([np.asarray(x0).reshape(-1), np.zeros(shape[0])])
        solution = self.solve(field, state, T_MIN_LIKELIHOOD, self.sde.T)
        latent, change = solution.y[:size, -1], solution.y[size:, -1]
        x, _ = self.on_devices(latent, shape, self.sde.T)
        return Solved(np.asarray(self.prior(x)) + change, np.asarray(solution.nfev))

    def sample(self, x: np.ndarray) -> Solved:
        """Denoised samples from the noise x (B, H, W, C)."""
        shape = x.shape

        def field(t: float, state: np.ndarray) -> np.ndarray:
            with full_precision():
                drift = self.drift(self.score, *self.on_devices(state, shape, t))
            return np.asarray(drift).reshape(-1)

        t_min = self.sde.t_min
        solution = self.solve(field, np.asarray(x).reshape(-1), self.sde.T, t_min)
        with full_precision():
            end = self.denoise(self.score, *self.on_devices(solution.y[:, -1], shape, t_min))
        return Solved(np.asarray(end), np.asarray(solution.nfev + 1))

    def solve(self, field: Callable, state: np.ndarray, begin: float, end: float) -> object:
        """RK45 over the flat batch."""
        solution = solve_ivp(
            field, (begin, end), state, method="RK45", rtol=self.tolerance, atol=self.tolerance
        )
        assert solution.success, solution.message
        return solution


def main() -> None:
    """Measure and print the table."""
    arguments = _arguments()
    if arguments.devices:
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    start(arguments.batch)
    run, tolerance = score_sde.load(arguments.workdir), arguments.tolerance
    sde, score = run.sde, run.smooth_score
    images = data.load("digits", "test", "").x[: arguments.batch]
    shape, spread = images.shape, along_data(run.mesh)
    pixels = run.space
    keys = item_keys(jax.random.key(0), len(images))
    one = jnp.ones(())
    dequantized = pixels.dequantized(keys, jnp.asarray(images), "uniform", one, one)
    x0 = jax.device_put(dequantized.x, spread)
    probe = jax.device_put(jax.random.rademacher(jax.random.key(1), shape, jnp.float32), spread)
    noise = from_prior(jax.random.key(2), sde, shape)
    noise = placed(noise, spread)
    host = Host(sde, score, tolerance, run.mesh)

    def our_likelihood() -> Solved:
        result = log_likelihood(
            jax.random.key(0), sde, score, x0, probes=probe[:, None], rtol=tolerance,
            atol=tolerance, t_min=T_MIN_LIKELIHOOD,
        )  # fmt: skip
        return Solved(np.asarray(result.log_prob), np.asarray(result.nfe))

    def our_samples(step_control: str) -> Solved:
        sampler = ProbabilityFlow(rtol=tolerance, atol=tolerance, step_control=step_control)
        samples = sampler.sample(jax.random.key(0), sde, score, noise)
        return Solved(np.asarray(samples.x), np.asarray(samples.nfe))

    def host_samples() -> Solved:
        return host.sample(np.asarray(noise))

    pairs = {
        "likelihood": (our_likelihood, lambda: host.log_likelihood(np.asarray(x0), probe)),
        "samples": (lambda: our_samples("sample"), host_samples),
        "samples, one step size": (lambda: our_samples("batch"), host_samples),
    }
    print(f"batch {len(images)}, rtol = atol = {tolerance:g}, {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; jax {jax.__version__}")
    print("| | ours, s | images/s | NFE, mean (most) | host, s | images/s | NFE | host / ours |")
    print("|---" * 8 + "|")
    solved = {}
    for name, sides in pairs.items():
        solved[name] = [side() for side in sides]  # compiles
        rounds = [[seconds_of(side) for side in sides] for _ in range(arguments.rounds)]
        print(_row(name, rounds, solved[name], len(images)), flush=True)
    _print_differences(solved, np.asarray(dequantized.log_density), x0[0].size)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="of a trained run on the digits")
    parser.add_argument("--batch", type=int, default=100, help="images at a time")
    parser.add_argument("--rounds", type=int, default=4, help="that count")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative and absolute")
    parser.add_argument("--devices", type=int, help="instead of a core each")
    return parser.parse_args()


def _row(name: str, rounds: list[list[float]], solved: list[Solved], images: int) -> str:
    """A row of the table, from the seconds of both sides in each round."""
    mine, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [host / ours for ours, host in rounds]
    ours_nfe, host_nfe = (side.nfe for side in solved)
    return (
        f"| {name} | {mine:.2f} | {images / mine:.1f} "
        f"| {ours_nfe.mean():.0f} ({ours_nfe.max()}) | {theirs:.2f} "
        f"| {images / theirs:.1f} | {host_nfe} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


def _print_differences(solved: dict[str, list[Solved]], log_density: np.ndarray, dims: int) -> None:
    ours, theirs = (
        np.asarray(bits_per_dim(side.values - log_density, dims)) for side in solved["likelihood"]
    )
    print(
        f"bits/dim: ours {ours.mean():.5f}, host {theirs.mean():.5f}; of one image they differ by "
        f"{np.abs(ours - theirs).max():.1e} at most"
    )
    ours, theirs = (side.values for side in solved["samples"])
    print(
        f"samples, in the model's range: differ by {np.sqrt(np.square(ours - theirs).mean()):.1e} "
        f"(root mean square), {np.abs(ours - theirs).max():.1e} at most"
    )


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of a call that waits for its result."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
