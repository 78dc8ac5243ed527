"""The 61.8 M network of configs/vp_cifar10.py on this machine's device, a GPU above all.

    python benchmarks/device.py                     the train step by precision and batch size
    python benchmarks/device.py runs/vp_cifar10     the samplers of a run, images/s and NFE

A line of the first is the median of five timings. A line of the second is one draw, after another
that compiles. Nothing else should run on the device. About five minutes each on an H200, most of it
compilation.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import score_sde
from configs import vp_cifar10
from score_sde import build, networks, objectives
from score_sde.config import changed
from score_sde.modes import start
from score_sde.training.mesh import along_data, data_mesh, replicated
from score_sde.training.state import create
from score_sde.training.step import make_train_step

SIZES = (("float32", 128), ("bfloat16", 128), ("bfloat16", 512))
STEPS, ROUNDS = 20, 5
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"sampling.method": "unipc", "sampling.num_steps": 10},
    {"sampling.method": "unipc", "sampling.num_steps": 15},
    {"sampling.method": "dpmpp", "sampling.num_steps": 30},
    {"sampling.method": "ddim", "sampling.num_steps": 50},
    {"sampling.method": "heun", "sampling.num_steps": 18},
    {"sampling.method": "pc", "sampling.num_steps": 1000},
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="?", help="a run whose samplers are timed")
    parser.add_argument("--images", type=int, default=256, help="that are drawn at a time")
    arguments = parser.parse_args()
    start(arguments.images)
    print(f"jax {jax.__version__}, Python {platform.python_version()}")
    if arguments.workdir:
        for settings in SAMPLERS:
            print_sampler(arguments.workdir, settings, arguments.images)
    else:
        for dtype, batch_size in SIZES:
            print_train_step(dtype, batch_size)


def print_train_step(dtype: str, batch_size: int) -> None:
    """Images/s of the compiled step on a batch that lies on the device."""
    mesh = data_mesh()
    config = changed(vp_cifar10.get_config(), {"model.dtype": dtype})
    info = build.dataset(config)
    apply, params = networks.init(build.network(config, info), jax.random.key(0))
    optimizer = build.optimizer(config)
    loss = objectives.loss(config, apply, info)
    step = make_train_step(loss, optimizer, config.training.ema_rate, mesh)
    state = create(params, optimizer, mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *info.shape)).astype(np.uint8)
    batch = jax.device_put({"x": images, "condition": {}}, along_data(mesh))
    key = jax.device_put(jax.random.key(1), replicated(mesh))

    def steps() -> Any:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch, key)
        return metrics

    seconds(steps)  # compiles
    median = statistics.median(seconds(steps) for _ in range(ROUNDS)) / STEPS
    print(f"train step, {dtype}, batch {batch_size}: {1e3 * median:.1f} ms, "
          f"{batch_size / median:.0f} images/s", flush=True)  # fmt: skip


def print_sampler(workdir: str, settings: dict[str, Any], images: int) -> None:
    """Images/s of one batch, the programs compiled."""
    run = score_sde.load(workdir).changed({**settings, "sampling.batch_size": images})
    run.sample(jax.random.key(0), images)
    begin = time.perf_counter()
    drawn = run.sample(jax.random.key(1), images)
    passed = time.perf_counter() - begin
    name = " ".join(str(value) for value in settings.values())
    print(f"{name}: NFE {drawn.nfe.mean():.0f}, {images / passed:.0f} images/s", flush=True)


def seconds(work: Callable[[], Any]) -> float:
    """How long the work takes, with all that it has put on the device."""
    begin = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
