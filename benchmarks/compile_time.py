"""Seconds to the first training step of a preset, and what shortens them.

    python benchmarks/compile_time.py                     configs/vp_cifar10.py: 61.8 M parameters
    python benchmarks/compile_time.py --config vp_digits --batch 64

Each row is a process of its own, with an empty compilation cache unless it says otherwise:

plain gradients        what jax makes of the convolutions
own gradients          the convolutions' gradients in one layout (networks/convolution.py): the code
default cache, again   a second process, on the cache that jax's own threshold of 1 s has kept
cache, again           a second process, on the cache as it is kept here: every program
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

ROWS = ("plain gradients", "own gradients", "default cache, again", "cache, again")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="vp_cifar10", help="a file of configs/, with :variant")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--row", choices=ROWS, help="measure this row, in this process")
    parser.add_argument("--remat", action="store_true", help="with model.remat")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments)))
        return
    print(f"{arguments.config}, batch {arguments.batch}, {os.cpu_count()} cores, ", end="")
    print(f"{platform.machine()}, Python {platform.python_version()}")
    phases = None
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as partial:
        for row, cache in zip(ROWS, (None, empty, partial, empty), strict=True):
            seconds = in_a_process(row, cache)
            if row == "default cache, again":  # the first run filled the cache
                seconds = in_a_process(row, cache)
            if phases is None:
                phases = list(seconds)
                print("| | " + " | ".join(phases) + " | all |")
                print("|---" * (len(phases) + 2) + "|")
            values = [*seconds.values(), sum(seconds.values())]
            print(f"| {row} | " + " | ".join(f"{value:.1f}" for value in values) + " |", flush=True)


def in_a_process(row: str, cache: str | None) -> dict[str, float]:
    """Seconds of each phase, by this program called with --row."""
    with tempfile.TemporaryDirectory() as nothing:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache or nothing}
        command = [sys.executable, *sys.argv, "--row", row]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of each phase of what `--mode train` does before its second step."""
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    import importlib

    import jax
    import jax.numpy as jnp

    from score_sde import build, networks, objectives
    from score_sde.modes import start
    from score_sde.networks import convolution
    from score_sde.training.mesh import along_data, data_mesh
    from score_sde.training.state import create
    from score_sde.training.step import make_train_step

    file, _, variant = arguments.config.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    config.model.remat = arguments.remat
    if arguments.row == "plain gradients":
        convolution.convolve_reverse_only = convolution.convolve
    start(arguments.batch)
    if arguments.row == "default cache, again":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    seconds = {"import": lap()}
    info = build.dataset(config)
    apply, params = networks.init(build.network(config, info), jax.random.key(0))
    optimizer, mesh = build.optimizer(config), data_mesh()
    loss = objectives.loss(config, apply, info)
    step = make_train_step(loss, optimizer, config.training.ema_rate, mesh)
    state = create(params, optimizer, mesh)
    shape = (arguments.batch, *info.shape)
    images, labels = jnp.zeros(shape, jnp.uint8), jnp.zeros(arguments.batch, jnp.int32)
    batch = jax.device_put({"x": images, "condition": {"labels": labels}}, along_data(mesh))
    key = jax.random.key(1)
    jax.block_until_ready((state, batch))
    seconds["initial weights"] = lap()
    lowered = step.lower(state, batch, key)
    seconds["trace"] = lap()
    compiled = lowered.compile()
    seconds["compile"] = lap()
    jax.block_until_ready(compiled(state, batch, key))
    seconds["first step"] = lap()
    return seconds


if __name__ == "__main__":
    main()
