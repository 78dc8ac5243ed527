"""`--mode train`: train a model from its config, or go on where its workdir stopped."""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_sde import build, data, networks, workdirs
from score_sde.batches import noise_on_devices, shared
from score_sde.checks import check_devices
from score_sde.errors import UserError
from score_sde.modes import pictures, start
from score_sde.samplers import PredictorCorrector
from score_sde.training.checkpoints import newest_step
from score_sde.training.feed import in_memory
from score_sde.training.loop import train
from score_sde.training.mesh import data_mesh, is_writer, placed, replicated
from score_sde.training.state import TrainState, create
from score_sde.training.step import make_train_step

# The grids drawn on the way are a look, not a result: few steps and few images.
LOOK = PredictorCorrector(num_steps=100, predictor="ancestral")
LOOK_IMAGES = 16
INTERRUPTED = "interrupted; what was done by then is in the workdir"
UNFINISHED = 75  # exit status of a run stopped by a signal: "temporary failure" of sysexits.h


def run(config: ConfigDict, workdir: Path) -> None:
    """Train to `training.num_steps`; everything is in the workdir, the config too."""
    _end_at_once_on_interrupt()
    check_devices(config, start(config.training.batch_size))
    settings, mesh = config.training, data_mesh()
    reached = newest_step(workdir / "checkpoints")
    if settings.num_steps < reached:
        raise UserError(
            f"config.training.num_steps = {settings.num_steps}: allowed are at least {reached}, "
            f"which {workdir} has reached"
        )
    arrays = data.load(config.data.name, "train", config.data.dir)
    if is_writer():
        print(f"config: {workdirs.save(config, workdir)}")
    # The steps' keys are folds of the same key by 0 ... num_steps - 1: stay clear of them.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
    apply, params = networks.init(build.network(config), key)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    print(f"data: {len(arrays.x)} images of {config.data.name}; parameters: {size:,}")
    optimizer, loss = build.optimizer(config), build.loss(config, apply)
    examples = {"x": arrays.x, "condition": arrays.condition}
    look = _pictures_of_samples(config, apply, workdir, mesh)
    try:
        state = train(
            create(params, optimizer, mesh),
            make_train_step(loss, optimizer, settings.ema_rate, mesh),
            in_memory(examples, batch_size=settings.batch_size, seed=config.seed, mesh=mesh),
            [(settings.sample_every, look)] if settings.sample_every else [],
            workdir,
            num_steps=settings.num_steps,
            seed=config.seed,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
        )
    except FloatingPointError as error:
        allowed = "allowed are smaller learning rates, in a new workdir"
        raise UserError(f"config.training.learning_rate: {error}; {allowed}") from error
    if int(state.step) < settings.num_steps:
        sys.exit(UNFINISHED)
    if settings.sample_every:
        print(f"pictures: {workdir / 'samples'}")
    print(f"next: --mode sample --workdir {workdir}")


def _pictures_of_samples(
    config: ConfigDict, apply: Callable[..., Array], workdir: Path, mesh: Mesh
) -> Callable[[int, TrainState], None]:
    """Return a hook for the loop, which draws a grid of samples with the averaged weights."""
    process, pixels = build.sde(config), build.pixel_range(config)
    shape = (shared(LOOK_IMAGES, mesh), *build.image_shape(config))
    labels = build.classes_in_turn(config, shape[0])

    def look(step: int, state: TrainState) -> None:
        key = jax.random.key(config.sampling.seed)
        noise = noise_on_devices(key, process, shape, mesh)
        score = build.model(config, apply, state.ema)
        score = score if labels is None else score.given({"labels": labels})
        samples = LOOK.sample(key, process, score, noise)
        # Whole on every device: a process can read only what its own devices hold.
        images = placed(pixels.from_model(samples.x), replicated(mesh))
        if is_writer():
            picture = workdir / "samples" / f"step_{step:06d}.png"
            pictures.save_png(picture, np.asarray(images), pixels.levels)

    return look


def _end_at_once_on_interrupt() -> None:
    """Let Ctrl-C end the process where the loop does not handle it: there is nothing to save, and
    Python's own exception is lost where it comes up in a callback of JAX."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, as in the background, or somebody else's
    if threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, frame: FrameType | None) -> None:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        os._exit(130)

    signal.signal(signal.SIGINT, end)
