"""What the training loop costs over its bare step: `python benchmarks/loop_overhead.py`.

Both run in this process on the digits, in turn, 10 steps each: the loop as `--mode train` runs it
(its own feed, metrics, progress, TensorBoard, checkpoints), and the same compiled step called on
batches that lie ready. It prints loop speed / bare speed, from the medians over the rounds and from
the fastest tenth of each (what is left when other work on the machine slows most rounds). The
project asks for 0.97. About a minute on 2 quiet cores; `--width 8` makes the steps short, the
harder case.
"""

import argparse
import itertools
import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from configs import vp_digits
from score_sde import build, data, networks, objectives
from score_sde.modes import start
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.feed import in_memory
from score_sde.training.loop import train
from score_sde.training.mesh import data_mesh, replicated
from score_sde.training.state import create
from score_sde.training.step import make_train_step

INTERVAL = 10
LOG_EVERY = 50  # the schema's default
# Not a multiple of the interval: a checkpoint is written inside one, and so is its cost. Far more
# often than a run writes them.
CHECKPOINT_EVERY = 105


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="pairs of measurements")
    parser.add_argument("--width", type=int, help="the network's width, instead of the config's")
    arguments = parser.parse_args()
    config = vp_digits.get_config()
    if arguments.width:
        config.model.width = arguments.width
    batch_size, num_steps = config.training.batch_size, INTERVAL * (arguments.rounds + 1)

    start(batch_size)
    mesh = data_mesh()
    images, condition = data.load("digits", "train", "")
    info = build.dataset(config)
    apply, params = networks.init(build.network(config, info), jax.random.key(0))
    optimizer = build.optimizer(config)
    loss = objectives.loss(config, apply, info)
    step = make_train_step(loss, optimizer, config.training.ema_rate, mesh)

    examples = {"x": images, "condition": condition}
    batches = in_memory(examples, batch_size=batch_size, seed=0, mesh=mesh)
    ready = list(itertools.islice(batches(0), INTERVAL))
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    own_state = create(params, optimizer, mesh)
    bare_seconds: list[float] = []
    loop_seconds: list[float] = []
    left_at = 0.0

    def measure_bare(number: int, state: object) -> None:
        # Called by the loop after each interval, with all its steps done.
        nonlocal own_state, left_at
        loop_seconds.append(time.perf_counter() - left_at)
        begin = time.perf_counter()
        for batch in ready:
            own_state, metrics = step(own_state, batch, key)
            if mesh.size > 1:  # of CPU devices one process may have one step under way, see loop.py
                jax.block_until_ready(metrics)
        jax.block_until_ready(own_state)
        bare_seconds.append(time.perf_counter() - begin)
        left_at = time.perf_counter()

    with tempfile.TemporaryDirectory() as workdir:
        train(
            create(params, optimizer, mesh), step, batches, [(INTERVAL, measure_bare)],
            Checkpoints(Path(workdir) / "checkpoints"), Path(workdir), num_steps=num_steps, seed=0,
            checkpoint_every=CHECKPOINT_EVERY, log_every=LOG_EVERY,
        )  # fmt: skip
    # The first pair compiles.
    bare, loop = (
        1e3 * np.array(seconds[1:]) / INTERVAL for seconds in (bare_seconds, loop_seconds)
    )
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()},")
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; jax {jax.__version__}")
    for name, quantile in (("median", 0.5), ("fastest tenth", 0.1)):
        slow, fast = np.quantile(loop, quantile), np.quantile(bare, quantile)
        print(
            f"{name}: bare step {fast:.2f} ms, {1e3 * batch_size / fast:.0f} images/s; loop "
            f"{slow:.2f} ms, {1e3 * batch_size / slow:.0f} images/s; ratio {fast / slow:.3f}"
        )


if __name__ == "__main__":
    main()
