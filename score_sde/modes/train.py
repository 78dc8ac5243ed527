"""`--mode train`: train a model from its config, or go on where its workdir stopped."""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_sde import build, networks, rules, workdirs
from score_sde.batches import batch_size
from score_sde.data import DatasetInfo
from score_sde.errors import UserError
from score_sde.locks import writing
from score_sde.modes import pictures, start
from score_sde.run import info_of
from score_sde.samplers import PredictorCorrector
from score_sde.samplers.base import from_prior
from score_sde.training.checkpoints import Checkpoints, newest_step
from score_sde.training.feed import in_memory
from score_sde.training.loop import train
from score_sde.training.mesh import along_data, data_mesh, is_writer, on_host, placed
from score_sde.training.state import TrainState, create
from score_sde.training.step import make_train_step

# The grids drawn on the way are a look, not a result: few steps and few images.
LOOK = PredictorCorrector(num_steps=100, predictor="ancestral")
LOOK_IMAGES, LOOK_VECTORS = 16, 1024
INTERRUPTED = "interrupted; what was done by then is kept"
UNFINISHED = 75  # exit status of a run stopped by a signal: "temporary failure" of sysexits.h


def run(config: ConfigDict, workdir: Path) -> None:
    """Train to `training.num_steps`; everything is in the workdir, the config too."""
    _end_at_once_on_interrupt()
    rules.check_devices(config, start(config.training.batch_size))
    with _one_writer(workdir):
        _train(config, workdir)


@contextmanager
def _one_writer(workdir: Path) -> Iterator[None]:
    """Hold the workdir in the process that writes. Where it cannot, none of them begins."""
    refusal = None
    with ExitStack() as stack:
        if is_writer():
            try:
                stack.enter_context(writing(workdir, "checkpoints"))
            except UserError as error:
                refusal = error
        if broadcast_one_to_all(np.int32(refusal is not None)):
            raise refusal or UserError(f"{workdir}: the process that writes may not write there")
        yield


def _train(config: ConfigDict, workdir: Path) -> None:
    settings, mesh = config.training, data_mesh()
    reached = newest_step(workdir / "checkpoints")
    if settings.num_steps < reached:
        raise UserError(
            f"config.training.num_steps = {settings.num_steps}: allowed are at least {reached}, "
            f"which {workdir} has reached"
        )
    info = build.dataset(config)
    rules.check(config, info)
    kept = workdirs.load_info(workdir)
    if kept is not None and info_of(config, kept) != info:
        raise UserError(f"config.data: the data are not those that {workdir} was trained on")
    arrays = build.arrays(config, info, "train")
    if reached:
        _compare_rates(workdirs.load(workdir), config, reached)
    if is_writer():
        print(f"config: {workdirs.save(config, workdir, info)}")
    # The steps' keys are folds of the same key by 0 ... num_steps - 1: stay clear of them.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
    apply, params = networks.init(build.network(config, info), key)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    kind = "images" if info.levels else "vectors"
    print(f"data: {len(arrays.x)} {kind} of {config.data.name}; parameters: {size:,}")
    optimizer, loss = build.optimizer(config), build.loss(config, apply, info)
    examples = {"x": arrays.x, "condition": arrays.condition}
    look = _pictures_of_samples(config, info, apply, arrays.x, workdir, mesh)
    try:
        state = train(
            create(params, optimizer, mesh),
            make_train_step(loss, optimizer, settings.ema_rate, mesh),
            in_memory(examples, batch_size=settings.batch_size, seed=config.seed, mesh=mesh),
            [(settings.sample_every, look)] if settings.sample_every else [],
            Checkpoints(
                workdir / "checkpoints", keep=settings.keep, keep_every=settings.keep_every
            ),
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


def _compare_rates(saved: ConfigDict, config: ConfigDict, reached: int) -> None:
    """Report a learning rate that does not go on as it would have: a cosine's end has moved."""
    before, after = (float(build.learning_rate(each)(reached)) for each in (saved, config))
    if not math.isclose(before, after, rel_tol=1e-3):
        end = saved.training.schedule_steps or saved.training.num_steps
        keep = f"--config.training.schedule_steps={end} keeps the schedule that it had"
        print(f"note: step {reached} has the learning rate {after:.2g}, not {before:.2g}; {keep}")


def _pictures_of_samples(
    config: ConfigDict,
    info: DatasetInfo,
    apply: Callable[..., Array],
    real: np.ndarray,
    workdir: Path,
    mesh: Mesh,
) -> Callable[[int, TrainState], None]:
    """Return a hook for the loop, which draws samples with the averaged weights; vectors are shown
    beside the real ones."""
    space = build.space(config, info)
    number = LOOK_IMAGES if info.levels else LOOK_VECTORS
    shape = (batch_size(number, number, mesh), *space.shape)
    given = build.classes_in_turn(config, info, shape[0])
    if info.condition:  # the mean of the training data
        given["vector"] = np.zeros((shape[0], len(info.condition)), np.float32)

    def look(step: int, state: TrainState) -> None:
        key, model = jax.random.key(config.sampling.seed), build.model(config, apply, state.ema)
        noise = from_prior(key, model.sde, shape)
        spread = placed({"noise": noise, "given": given}, along_data(mesh))
        samples = LOOK.sample(key, model.sde, model.given(spread["given"]), spread["noise"])
        x = on_host(space.from_model(samples.x), mesh)
        path = workdir / "samples" / f"step_{step:06d}.png"
        if is_writer() and info.levels:
            pictures.save_png(path, x, info.levels)
        elif is_writer():
            pictures.scatter(path, x, real, info.columns)

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
