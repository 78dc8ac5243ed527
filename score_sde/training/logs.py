"""The reports of a training run: a progress bar, metrics.jsonl and TensorBoard's scalars."""

import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax

from score_sde.errors import DAMAGED, UserError
from score_sde.paths import is_url, make, whole, written
from score_sde.progress import bar
from score_sde.training.mesh import is_writer
from score_sde.training.step import Metrics

FILE = "metrics.jsonl"
FLUSH_EVERY = 30.0  # seconds, of TensorBoard's file and those of a bucket: each waits for the disk


class RunLog:
    """Collects the steps' metrics and reports them at intervals; the device is read only then.

    A context manager: leaving it closes the bar and the files. Where several processes train
    together, each has one, and only one of them writes.

    Args:
        workdir: gets ``metrics.jsonl`` and ``tensorboard/``; None: there is only the bar. What an
            earlier, killed run wrote of steps after ``first_step`` is dropped, since they are made
            again.
        first_step: updates made before this run.
        num_steps: updates of the whole run.
        ahead: how many steps may be dispatched beyond those known to be finished; up to twice as
            many are. 0 waits for every step.
        lines: a list that gets the lines, too.
    """

    def __init__(
        self,
        workdir: Path | None,
        first_step: int,
        num_steps: int,
        ahead: int,
        lines: list[dict[str, float]] | None = None,
    ):
        self._step = first_step
        self._num_steps = num_steps
        self._ahead = ahead
        self._pending: list[Metrics] = []  # on the device
        self._values: list[dict[str, float]] = []  # read, not yet reported
        self._clock: float | None = None  # when the timed steps began, pauses taken out
        self._timed_images = 0
        self._lines = [] if lines is None else lines
        self._report = _Report(workdir, first_step, num_steps) if is_writer() else None

    def dispatched(self, metrics: Metrics, batch_size: int) -> None:
        """Takes the metrics of the next step, float32 scalars that need not be computed yet."""
        self._pending.append(metrics)
        self._step += 1
        if self._clock is None:
            # The first step of a process compiles for seconds to minutes: it is not timed.
            jax.block_until_ready(metrics)
            self._clock = time.perf_counter()
        else:
            self._timed_images += batch_size
            if len(self._pending) > self._ahead and self._step % max(self._ahead, 1) == 0:
                self._pending[-1 - self._ahead]["loss"].block_until_ready()
        if self._report:
            self._report.bar.update()

    def write(self) -> None:
        """Reports the means since the last time: a line of JSON, TensorBoard's scalars, the bar.

        Raises:
            FloatingPointError: as ``check``.
        """
        self.check()
        mean = {
            name: math.fsum(values[name] for values in self._values) / len(self._values)
            for name in self._values[0]
        }
        if "learning_rate" in mean:
            mean["learning_rate"] = self._values[-1]["learning_rate"]
        assert self._clock is not None  # there are values, so there was a step
        now = time.perf_counter()
        if self._timed_images:
            mean["images_per_second"] = self._timed_images / (now - self._clock)
        self.add(mean)
        self._values.clear()
        self._clock, self._timed_images = now, 0

    def add(self, values: Mapping[str, float]) -> None:
        """Reports figures of the newest step, such as a score of its samples: a line by itself."""
        self._lines.append({"step": self._step, **values})
        if self._report:
            self._report.write(self._step, values)

    def check(self) -> None:
        """Waits for the steps dispatched and sees that their numbers are finite.

        Where loss and gradient norm are finite, so is what Adam makes of them: the state may be
        saved.

        Raises:
            FloatingPointError: naming the first step whose loss or gradient is not.
        """
        values = [{k: float(v) for k, v in m.items()} for m in jax.device_get(self._pending)]
        self._pending.clear()
        for step, metrics in enumerate(values, self._step - len(values) + 1):
            if not all(map(math.isfinite, metrics.values())):
                found = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
                raise FloatingPointError(
                    f"step {step} of {self._num_steps} is not finite ({found}); nothing was saved "
                    "from it"
                )
        self._values += values

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Runs its body with the numbers checked and the clock of images/s stopped."""
        self.check()
        begin = time.perf_counter()
        yield
        assert self._clock is not None  # the loop pauses only after a step
        self._clock += time.perf_counter() - begin

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._report:
            self._report.close()


class _Report:
    """The writing process's reports: the bar, and the files of a workdir."""

    def __init__(self, workdir: Path | None, first_step: int, num_steps: int):
        self._files = _Files(workdir, first_step) if workdir else None
        self.bar = bar(initial=first_step, total=num_steps, desc="training", unit="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._files:
            self._files.write(step, values)
        shown = {"loss": values["loss"]} if "loss" in values else values
        text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if "images_per_second" in values:
            text += f", {values['images_per_second']:.0f} examples/s"
        self.bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        self.bar.close()
        if self._files:
            self._files.close()


class _Files:
    """metrics.jsonl and TensorBoard's scalars."""

    def __init__(self, workdir: Path, first_step: int):
        # Only training pays for this import. The writer that writes at once: SummaryWriter's thread
        # dies of a full disk, and then its queue fills up and the training stands still.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._path, self._board = workdir / FILE, workdir / "tensorboard"
        with written(self._path):
            _drop_after(workdir, first_step)
            self._lines = _Object(self._path) if is_url(workdir) else self._path.open("a")
        with written(self._board):
            make(self._board)
            self._events = EventsWriter(str(self._board / "events"))
            # TensorBoard hides what an earlier, killed run wrote of these steps.
            begun = SessionLog(status=SessionLog.START)
            self._event(first_step + 1, session_log=begun)
        self._flushed = 0.0

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(step=step, wall_time=time.time(), **content))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        due = (now := time.perf_counter()) > self._flushed + FLUSH_EVERY
        with written(self._path):
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            if due or not is_url(self._path):
                self._lines.flush()
        with written(self._board):
            for name, value in values.items():
                self._event(step, summary=scalar(name, value))
            if due:
                self._events.flush()
                self._flushed = now

    def close(self) -> None:
        with written(self._path), closing(self._lines), written(self._board):
            self._events.close()


class _Object(io.StringIO):
    """The lines of a file in a bucket. All of them go there each time, as none can be added."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        if path.exists():
            self.write(path.read_bytes().decode())

    def flush(self) -> None:
        self._path.write_bytes(self.getvalue().encode())

    def close(self) -> None:
        if not self.closed:
            self.flush()
        super().close()


def logged(workdir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a run's metrics.jsonl, as text and as what they say. Others, such as one that a
    kill cut short, are left out: a log must not stop a resume."""
    path = workdir / FILE
    if not path.is_file():
        return
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
            numbers = all(isinstance(each, int | float) for each in values.values())
            is_whole = line.endswith("\n") and numbers and isinstance(values["step"], int)
        except DAMAGED:
            continue
        if is_whole:
            yield line, values


def _drop_after(workdir: Path, step: int) -> None:
    """Rewrites metrics.jsonl without later steps, and reports it."""
    path = workdir / FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        number = sum(1 for _ in file)
    kept = [line for line, values in logged(workdir) if values["step"] <= step]
    if len(kept) == number:
        return
    print(f"{path}: {number - len(kept)} lines are dropped, as training begins at step {step}")
    with whole(path) as file:
        file.write("".join(kept).encode())
