"""The loop around the train step: it feeds, logs, saves and samples, and does no maths."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from score_sde.training.checkpoints import Checkpoints
from score_sde.training.data_order import batch_indices
from score_sde.training.logs import RunLog
from score_sde.training.mesh import along_data, replicated
from score_sde.training.state import TrainState
from score_sde.training.step import TrainStep

PyTree = Any

# Batches' indices go to the devices so many at a time: one transfer costs as much as many.
_BATCHES_AHEAD = 16


def train(
    state: TrainState,
    step_fn: TrainStep,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    checkpoint_every: int,
    log_every: int,
    sample_every: int,
    workdir: Path,
    on_sample: Callable[[int, PyTree], None],
) -> TrainState:
    """Trains up to ``num_steps`` updates, going on from the newest checkpoint in the workdir.

    A run is a pure function of the first state, the seed and the data: one that was killed and
    started again ends with the unbroken run's numbers, bit for bit on the same devices. SIGTERM
    and SIGINT let the step finish, save, say so on stderr and return early (compare the ``step``
    of what comes back with ``num_steps``); a second signal acts as it would have.

    Args:
        state: the first state; consumed, and not used where there is a checkpoint.
        step_fn: from ``make_train_step``, over the same mesh.
        images: uint8 (N, H, W, C), copied whole to every device.
        labels: int32 (N,).
        num_steps: updates of the whole run, earlier ones included.
        batch_size: examples of one update over all devices, a multiple of their number.
        seed: of the data order and of the steps' keys, not negative.
        mesh: with an axis ``data``.
        checkpoint_every: steps between checkpoints; the last step always has one.
        log_every: steps between lines of metrics.
        sample_every: steps between calls of ``on_sample``, and one after the last; 0 for none.
        workdir: gets ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``.
        on_sample: called with the step and the averaged parameters, which it must not keep: the
            next step reuses their memory.

    Raises:
        FloatingPointError: a loss or gradient is not finite. The checkpoints are those before.
        UserError: the newest checkpoint does not fit the state, or none can be read.
    """
    whole, spread = replicated(mesh), along_data(mesh)
    # All is committed to the mesh, be it fresh or restored: one layout, so one trace of the step.
    state = jax.device_put(state, whole)
    data = jax.device_put({"images": images, "labels": labels}, whole)
    key = jax.device_put(jax.random.key(seed), whole)

    def batches(first: int) -> Iterator[jax.Array]:
        for start in range(first, num_steps, _BATCHES_AHEAD):
            steps = range(start, min(start + _BATCHES_AHEAD, num_steps))
            indices = [batch_indices(seed, step, batch_size, len(images)) for step in steps]
            yield from jax.device_put(indices, spread)

    with _stop_signal() as stop_signal, Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state)
        state = state if restored is None else restored
        step = int(state.step)
        with RunLog(Path(workdir), step, num_steps, batch_size, _steps_ahead(mesh)) as log:
            for indices in batches(step):
                state, metrics = step_fn(state, data, indices, key)
                step += 1
                log.dispatched(metrics)
                last = step == num_steps or stop_signal() is not None
                if last or step % log_every == 0:
                    log.write()
                if last or step % checkpoint_every == 0:
                    with log.pause():
                        checkpoints.save(state, step)
                samples = sample_every and (step == num_steps or step % sample_every == 0)
                if samples and stop_signal() is None:
                    with log.pause():
                        on_sample(step, state.ema)
                if last:
                    break
    if (name := stop_signal()) is not None:
        print(
            f"training stopped by {name} after step {step} of {num_steps}, saved; the same "
            "command goes on from there",
            file=sys.stderr,
        )
    return state


def _steps_ahead(mesh: Mesh) -> int:
    """How many steps to dispatch ahead.

    A few keep the devices busy; few enough for the progress to be true, and for a SIGTERM's save
    not to wait for a long queue. Waiting at every step would leave the host's caches cold at every
    dispatch, which then takes twice as long (measured on a CPU that computes and dispatches). But
    CPU devices of one process share its threads: with two steps under way, each may hold a thread
    that the other's sum over devices waits for (seen: a standstill after some hundred steps).
    """
    return 0 if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu" else 4


@contextmanager
def _stop_signal() -> Iterator[Callable[[], str | None]]:
    """Yields a function that tells the name of the SIGTERM or SIGINT that came, or None."""
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python lets only the main thread handle signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number).name)
        restore()  # who sends a second one does not want to wait

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
