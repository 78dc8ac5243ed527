"""A whole run of a tiny model, for tests to call and, as a program, to kill: WORKDIR NUM_STEPS, and
WORKERS for a stream."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.training.checkpoints import Checkpoints
from score_sde.training.feed import in_memory, streaming
from score_sde.training.loop import train
from score_sde.training.mesh import data_mesh
from score_sde.training.optimizers import learning_rate_schedule, optimizer
from score_sde.training.state import TrainState, create
from score_sde.training.step import make_train_step

# 23 images in batches of 8: every epoch ends inside a batch.
IMAGES = np.random.default_rng(0).integers(0, 17, (23, 3, 3, 1), dtype=np.uint8)
EXAMPLES = {"x": IMAGES, "condition": {"labels": np.arange(23, dtype=np.int32) % 10}}


class TinyRun:
    """A two-layer denoiser with noise from the key; counts how often its loss is traced."""

    def __init__(
        self, num_steps: int = 12, learning_rate: float = 1e-2, workers: int | None = None
    ):
        self.num_steps, self.workers, self.num_powers = num_steps, workers, 0
        self.traces = 0
        self.mesh = data_mesh()
        rate = learning_rate_schedule(
            learning_rate, num_steps=num_steps, warmup_steps=3, schedule="cosine"
        )
        self.optimizer = optimizer(rate, weight_decay=0.01)
        self.step = make_train_step(self.loss, self.optimizer, 0.9, self.mesh)

    def loss(self, params, state, batch, key):
        self.traces += 1
        x0 = batch["x"].reshape(-1, 9).astype(jnp.float32) / 16
        z = jax.random.normal(key, x0.shape)
        hidden = jnp.tanh((x0 + z) @ params["in"] + params["labels"][batch["condition"]["labels"]])
        return jnp.mean((hidden @ params["out"] - z) ** 2, axis=-1)

    def state(self) -> TrainState:
        normal = np.random.default_rng(1).normal
        shapes = {"in": (9, 16), "labels": (10, 16), "out": (16, 9)}
        params = {k: jnp.asarray(normal(0, 0.3, s), jnp.float32) for k, s in shapes.items()}
        return create(params, self.optimizer, self.mesh, num_powers=self.num_powers)

    def batches(self, first_step: int):
        options = {"batch_size": 8, "seed": 5, "mesh": self.mesh}
        if self.workers is None:
            return in_memory(EXAMPLES, **options)(first_step)
        return streaming(EXAMPLES, workers=self.workers, **options)(first_step)

    def train(self, workdir: Path, hooks=(), **changes) -> TrainState:
        settings = dict(num_steps=self.num_steps, seed=5, checkpoint_every=4, log_every=2)
        checkpoints = Checkpoints(workdir / "checkpoints")
        parts = (self.state(), self.step, self.batches, hooks, checkpoints, workdir)
        return train(*parts, **settings | changes)


if __name__ == "__main__":
    # A hook at every step, a slow one: leaves the parent time to act at any moment of the run.
    run = TinyRun(int(sys.argv[2]), workers=int(sys.argv[3]) if sys.argv[3:] else None)
    run.train(Path(sys.argv[1]), [(1, lambda step, state: time.sleep(0.03))])
