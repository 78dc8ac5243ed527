"""The loop around the train step: it feeds, logs, saves and calls hooks, and does no maths."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax import Array
from jax.sharding import Sharding

from score_sde.errors import UserError
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.feed import Batches
from score_sde.training.logs import RunLog
from score_sde.training.mesh import placed
from score_sde.training.state import TrainState
from score_sde.training.step import TrainStep

PyTree = Any
# Pairs (every, function). `function(step, state)` is called every so many steps and after the last.
# It must not keep the state, whose memory the next step reuses. Figures that it returns get a line
# of the logs.
Hook = tuple[int, Callable[[int, TrainState], Mapping[str, float] | None]]


def train(
    state: TrainState,
    step: TrainStep,
    batches: Batches,
    hooks: Sequence[Hook],
    checkpoints: Checkpoints | None,
    workdir: Path | None,
    *,
    num_steps: int,
    seed: int,
    checkpoint_every: int,
    log_every: int,
    metrics: list[dict[str, float]] | None = None,
) -> TrainState:
    """Trains up to ``num_steps`` updates, going on from the newest checkpoint.

    A run is a pure function of the first state, the seed and the data. Killed and started again, it
    ends with the unbroken run's numbers, bit for bit on the same devices. SIGTERM and SIGINT let
    the step finish, save and return early; a second signal acts at once.

    Args:
        state: the first state, from ``create``; consumed, and not used where there is a checkpoint.
        step: from ``make_train_step``, over the state's mesh.
        batches: the feed; ``batches(n)`` yields without end, from update number n (from 0) on.
        hooks: see ``Hook``.
        checkpoints: of the run, closed at the end; None: nothing is saved.
        workdir: gets the logs; None: only ``metrics`` does.
        num_steps: updates of the whole run, earlier ones included.
        seed: of the steps' keys, not negative.
        checkpoint_every: steps between checkpoints; the last step always has one.
        log_every: steps between lines of metrics.
        metrics: a list that gets the lines, too.

    Raises:
        FloatingPointError: a loss or gradient is not finite; the checkpoints are earlier ones.
        UserError: no checkpoint fits the state or can be read, a file cannot be written, or a batch
            cannot be read; what was trained by then is saved.
    """
    place = state.step.sharding
    key = placed(jax.random.key(seed), place)  # elsewhere it would be copied at every step
    with _stop_signal() as stopped, checkpoints or nullcontext():
        state = (checkpoints and checkpoints.restore(state)) or state
        first, ahead = int(state.step), _steps_ahead(place)
        with (
            closing(batches(first)) as feed,
            RunLog(workdir, first, num_steps, ahead, metrics) as log,
        ):
            kept = _Kept(log, checkpoints, first, log_every, checkpoint_every)
            state = _updates(state, step, feed, key, hooks, kept, num_steps, stopped)
    if (name := stopped()) is not None:
        at, left = f"after step {int(state.step)} of {num_steps}", "the run so far is returned"
        if checkpoints is not None:
            left = "saved; the same command goes on from there"
        print(f"training stopped by {name} {at}, {left}", file=sys.stderr)
    return state


@dataclass(frozen=True)
class _Kept:
    """What a training leaves: lines of the log, and checkpoints, if there are any."""

    log: RunLog
    checkpoints: Checkpoints | None
    first: int
    log_every: int
    checkpoint_every: int

    def keep(self, state: TrainState, step: int, last: bool) -> None:
        """Write what is due after a step."""
        if last or step % self.log_every == 0:
            self.log.write()
        if last or step % self.checkpoint_every == 0:
            self._save(state, step)

    def rescue(self, state: TrainState, step: int) -> None:
        """Write what a step left that an error ended."""
        # Processes save together, and the others do not know of this one's error.
        if step > self.first and step % self.checkpoint_every and jax.process_count() == 1:
            if step % self.log_every:
                self.log.write()
            self._save(state, step)

    def _save(self, state: TrainState, step: int) -> None:
        if self.checkpoints:
            with self.log.pause():
                self.checkpoints.save(state, step)


def _updates(
    state: TrainState,
    step: TrainStep,
    feed: Iterator[PyTree],
    key: Array,
    hooks: Sequence[Hook],
    kept: _Kept,
    num_steps: int,
    stopped: Callable[[], str | None],
) -> TrainState:
    """Step until the end, or until a signal came; arguments as of ``train``."""
    done = kept.first
    feed = _rescued(feed, lambda: kept.rescue(state, done))
    for number, batch in zip(range(done + 1, num_steps + 1), feed, strict=False):
        state, values = step(state, batch, key)
        done = number
        kept.log.dispatched(values, len(jax.tree.leaves(batch)[0]))
        last = done == num_steps or stopped() is not None
        kept.keep(state, done, last)
        for every, function in hooks:
            if stopped() is None and (done == num_steps or done % every == 0):
                with kept.log.pause():
                    figures = function(done, state)
                if figures:
                    kept.log.add(figures)
        if last:
            break
    return state


def _rescued(feed: Iterator[PyTree], rescue: Callable[[], None]) -> Iterator[PyTree]:
    """The batches. Where one cannot be read, `rescue` is called before the error goes on."""
    try:
        yield from feed
    except UserError:
        rescue()
        raise


def _steps_ahead(place: Sharding) -> int:
    """How many steps to dispatch ahead.

    A few keep the devices busy; few enough for the progress to be true, and for a SIGTERM's save
    not to wait for a long queue. Waiting at every step would leave the host's caches cold at every
    dispatch, which then takes twice as long (measured on a CPU that computes and dispatches). But
    CPU devices of one process share its threads: with two steps under way, each may hold a thread
    that the other's sum over devices waits for (seen: a standstill after some hundred steps).
    """
    return 0 if place.num_devices > 1 and jax.default_backend() == "cpu" else 4


@contextmanager
def _stop_signal() -> Iterator[Callable[[], str | None]]:
    """Yields a function that returns the name of the SIGTERM or SIGINT that came, or None."""
    received: list[str] = []
    # Python lets only the main thread handle signals. Several processes do not handle them: they
    # could not agree on a last step.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield lambda: None
        return

    def note(number: int, frame: FrameType | None) -> None:
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
