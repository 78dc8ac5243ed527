"""`--mode train`: train a model from its config, or go on where its workdir stopped."""

import math
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.tree_util import Partial
from ml_collections import ConfigDict

from score_sde import build, data, networks, workdirs
from score_sde.batches import noise_on_devices, shared
from score_sde.errors import UserError
from score_sde.modes import pictures, start
from score_sde.samplers import PredictorCorrector
from score_sde.training.checkpoints import newest_step
from score_sde.training.loop import train
from score_sde.training.mesh import data_mesh
from score_sde.training.state import create
from score_sde.training.step import make_train_step

# The grids drawn on the way are a look, not a result: few steps and few images.
LOOK = PredictorCorrector(num_steps=100, predictor="ancestral")
LOOK_IMAGES = 16
INTERRUPTED = "interrupted; what was done by then is in the workdir"
UNFINISHED = 75  # exit status of a run stopped by a signal: "temporary failure" of sysexits.h


def run(config: ConfigDict, workdir: Path) -> None:
    """Train to `training.num_steps`; everything is in the workdir, the config too."""
    _end_at_once_on_interrupt()
    build.check_devices(config, start(config.training.batch_size))
    settings = config.training
    reached = newest_step(workdir / "checkpoints")
    if settings.num_steps < reached:
        raise UserError(
            f"config.training.num_steps = {settings.num_steps}: allowed are at least {reached}, "
            f"which {workdir} has reached"
        )
    arrays = data.load(config.data.name, "train", config.data.dir)
    path = workdirs.save(config, workdir)

    mesh = data_mesh()
    # The steps' keys are folds of the same key by 0 ... num_steps - 1: stay clear of them.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
    apply, params = networks.init(build.network(config), key)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    print(f"data: {len(arrays.images)} images of {config.data.name}; parameters: {size:,}")
    print(f"config: {path}")
    optimizer = build.optimizer(config)
    step = make_train_step(build.loss(config, apply), optimizer, settings.ema_rate, mesh)
    process, pixels = build.sde(config), build.pixel_range(config)
    score = build.score(config, apply)
    shape = (shared(LOOK_IMAGES), *build.image_shape(config))
    labels = build.classes_in_turn(config, shape[0])

    def look(step: int, ema: Any) -> None:
        key = jax.random.key(config.sampling.seed)
        noise = noise_on_devices(key, process, shape)
        samples = LOOK.sample(key, process, Partial(score, ema, labels=labels), noise)
        picture = workdir / "samples" / f"step_{step:06d}.png"
        pictures.save_png(picture, jax.device_get(pixels.to_uint8(samples.x)), pixels.levels)

    try:
        state = train(
            create(params, optimizer, mesh),
            step,
            arrays.images,
            arrays.labels,
            num_steps=settings.num_steps,
            batch_size=settings.batch_size,
            seed=config.seed,
            mesh=mesh,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
            sample_every=settings.sample_every,
            workdir=workdir,
            on_sample=look,
        )
    except FloatingPointError as error:
        allowed = "allowed are smaller learning rates, in a new workdir"
        raise UserError(f"config.training.learning_rate: {error}; {allowed}") from error
    if int(state.step) < settings.num_steps:
        sys.exit(UNFINISHED)
    if settings.sample_every:
        print(f"pictures: {workdir / 'samples'}")
    print(f"next: --mode sample --workdir {workdir}")


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
