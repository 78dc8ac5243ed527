"""Evaluations, error and time of the probability flow's solvers on a trained run.

    python benchmarks/flow_solvers.py runs/vp_digits

32 latents to images without denoising, each solver at equal tolerances. The error is the root mean
square over an image, in the model's units, against dopri8 at 1e-7; the time the least of three.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import score_sde
from score_sde.samplers import ProbabilityFlow


def main(workdir: str) -> None:
    """Print the table."""
    run = score_sde.load(workdir)
    shape = (32, *run.space.shape)
    latents = run.sde.prior_std() * jax.random.normal(jax.random.key(5), shape)

    def solve(**settings: Any) -> tuple[np.ndarray, np.ndarray, float]:
        flow, seconds = ProbabilityFlow(**settings), []
        for _ in range(4):  # the first compiles
            began = time.perf_counter()
            out = jax.block_until_ready(flow.decode(run.sde, run.smooth_score, latents))
            seconds.append(time.perf_counter() - began)
        return np.asarray(out.x), np.asarray(out.nfe), min(seconds[1:])

    reference, _, _ = solve(solver="dopri8", rtol=1e-7, atol=1e-7)
    cases: list[tuple[str, dict[str, Any]]] = []
    for tolerance in (1e-3, 1e-4, 1e-5):
        equal = {"rtol": tolerance, "atol": tolerance}
        for solver in ("dopri5", "tsit5", "dopri8", "heun"):
            cases.append((f"{solver}, {tolerance:g}", {"solver": solver, **equal}))
        cases.append((f"dopri5, {tolerance:g}, one step", {"step_control": "batch", **equal}))
    for num_steps in (100, 200, 1000):
        cases.append((f"euler, {num_steps}", {"solver": "euler", "num_steps": num_steps}))
    print("| solver, tolerance or steps | NFE | most | error | worst image | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, settings in cases:
        x, nfe, seconds = solve(**settings)
        squares = jnp.square(x - reference).reshape(len(x), -1).mean(axis=1)
        error, worst = float(jnp.sqrt(squares.mean())), float(jnp.sqrt(squares.max()))
        print(
            f"| {name} | {nfe.mean():.0f} | {nfe.max()} | {error:.1e} | {worst:.1e} "
            f"| {seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
