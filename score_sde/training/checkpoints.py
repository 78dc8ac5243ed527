"""Checkpoints of a run: written in the background by Orbax, read back exactly, damage stepped over.

``DIRECTORY/N/default`` holds the state after N updates as nested dicts of arrays, with names such
as ``ema/head/kernel`` or ``opt_state/1/mu/head/kernel``: any Orbax or TensorStore program reads
it, without this package's classes. Saving is atomic (a directory named N is complete), so that a
kill leaves only an unfinished ``N.orbax-checkpoint-tmp``, which the next training run removes. In a
bucket no directory can be renamed. There a step without ``commit_success.txt`` is unfinished.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Sharding, SingleDeviceSharding

from score_sde.errors import DAMAGED, UserError, one_line
from score_sde.paths import absolute, is_url, make, written
from score_sde.training.logs import logged
from score_sde.training.mesh import is_writer
from score_sde.training.state import TrainState

PyTree = Any

BEST, RECORD = "best", "best.json"  # the folder of the best checkpoint, and its score
COMMITTED = "commit_success.txt"  # Orbax writes it last into a checkpoint in a bucket

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints that a training run writes. A context manager: leaving it ends the writing.

    Where several processes train together, each makes the same calls; Orbax divides the work.

    Args:
        directory: the place of the checkpoints, created if absent.
        keep: how many of the newest stay; None: all.
        keep_every: those of its multiples stay, too; 0: none.
    """

    def __init__(self, directory: Path, *, keep: int | None = 2, keep_every: int = 0):
        self._kept = {"max_to_keep": keep, "keep_period": keep_every or None}
        self._directory = absolute(directory)  # Orbax takes no relative paths
        with written(self._directory):
            make(self._directory)
        self._writer: ocp.CheckpointManager | None = None

    def restore(self, target: TrainState) -> TrainState | None:
        """The newest readable state, laid out over the devices as ``target``, or None.

        Unreadable checkpoints newer than it are renamed to ``N.unreadable``, so that the run may
        come to step N again.

        Args:
            target: a state of the run's shapes and dtypes whose leaves have shardings (arrays, or
                ShapeDtypeStructs).

        Raises:
            UserError: a checkpoint is of other shapes, or there are some and none can be read.
        """
        wanted = jax.tree.map(lambda leaf: _abstract(leaf, leaf.sharding), target)
        found = _read_newest(self._directory, _to_dict(wanted))
        if found is None:
            return None
        stored, unreadable = found
        if unreadable:
            # No process may still be reading them, and none may count them as steps afterwards.
            sync_global_devices("read")
            for path in unreadable if is_writer() else ():
                _set_aside(path)
            sync_global_devices("set aside")
        return _from_dict(target, stored)

    def save(self, state: PyTree, step: int) -> None:
        """Saves the state after ``step`` updates, or a part of it; returns when it has been copied,
        before it is written. An error of the writing is raised by the next call or on leaving.

        Raises:
            UserError: a checkpoint cannot be written, as on a full disk. Those before it are whole.
            RuntimeError: this or a later step is there already.
        """
        with self._told():
            if self._writer is None:
                # Opened late: what `restore` renames would otherwise count as steps.
                options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, **self._kept)
                self._writer = ocp.CheckpointManager(self._directory, options=options)
            saved = self._writer.save(step, args=ocp.args.StandardSave(_to_dict(state)))
        if not saved:
            newest = self._writer.latest_step()
            raise RuntimeError(
                f"{self._directory}: step {step} was not saved, the newest there is {newest}"
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            with closing(self._writer), self._told():
                self._writer.wait_until_finished()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the writing, of this step or one before, into a UserError."""
        try:
            yield
        except Exception as error:
            if not _is_damage(error):
                raise
            text, known = one_line(error), map(os.strerror, errno.errorcode)
            reason = next((words for words in known if words in text), text[:200])
            newest = newest_step(self._directory)
            go_on = f"the same command goes on from step {newest}" if newest else "none is whole"
            raise UserError(f"{self._directory}: cannot be written ({reason}); {go_on}") from error


def restore_ema(
    directory: Path,
    ema: PyTree,
    sharding: Sharding | None = None,
    step: int | None = None,
    *,
    name: str = "ema",
) -> tuple[int, PyTree]:
    """The averaged parameters of a checkpoint, and their step; writes nothing.

    Args:
        directory: the run's checkpoints.
        ema: a tree of the shapes and dtypes, e.g. of ShapeDtypeStructs.
        sharding: where every leaf goes; the first device by default.
        step: of the checkpoint; by default the newest that can be read.
        name: of the averages in the state.

    Raises:
        UserError: no checkpoint, none that can be read, one of other shapes, or weights that are
            not finite.
    """
    place = sharding or SingleDeviceSharding(jax.local_devices()[0])
    target = {name: ema, "step": jax.ShapeDtypeStruct((), "int32")}
    target = jax.tree.map(lambda leaf: _abstract(leaf, place), target)
    found = _read_newest(absolute(directory), _to_dict(target), step)
    if found is None:
        if there := ", ".join(path.name for path in reversed(_newest_first(directory))):
            raise UserError(f"step = {step}: not in {directory}; allowed are {there}")
        raise UserError(f"{directory}: no checkpoint there; train first (--mode train)")
    restored = _from_dict(target, found[0])
    step, ema = int(restored["step"]), restored[name]
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(ema)):
        raise UserError(f"{directory}: the averaged weights of step {step} are not finite numbers")
    return step, ema


def _read_newest(
    directory: Path, target: dict, step: int | None = None
) -> tuple[dict, list[Path]] | None:
    """What ``target`` names of the newest readable checkpoint, or of that of a step, and the newer,
    unreadable ones."""
    unreadable: list[Path] = []
    reason = ""
    newest = _newest_first(directory)
    paths = [path for path in newest if step in (None, int(path.name))]
    for path in paths:
        try:
            stored = _read(path / "default", target)
        except Exception as error:
            if not _is_damage(error):
                raise
            if _newest_first(directory)[:1] != newest[:1]:  # a training has put newer ones there
                return _read_newest(directory, target, step)
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            _log.warning("%s: unreadable checkpoint, trying the one before (%s)", path, reason)
            unreadable.append(path)
        else:
            return stored, unreadable
    if unreadable and step is not None:
        whole = [path.name for path in reversed(newest) if _is_readable(path, target, unreadable)]
        allowed = ", ".join(whole) or "none, as the others are damaged, too; restore a copy"
        raise UserError(f"{unreadable[0]}: cannot be read ({reason}); allowed are {allowed}")
    if unreadable:
        names = ", ".join(path.name for path in unreadable)
        raise UserError(
            f"{directory}: none of its checkpoints ({names}) can be read ({reason}); "
            "restore them from a copy, or start again with another --workdir"
        )
    return None


def _is_readable(path: Path, target: dict, but: list[Path]) -> bool:
    try:
        return path not in but and bool(_read(path / "default", target))
    except Exception as error:
        if not _is_damage(error):
            raise
        return False


def _is_damage(error: Exception) -> bool:
    # Directories that are empty, cut short or overwritten give OSError and ValueError (JSON's is
    # one), except for the arrays' own files: Orbax 0.12 wraps those errors in a bare Exception.
    return isinstance(error, OSError | ValueError) or type(error) is Exception


def listing(workdir: Path) -> list[str]:
    """A line for each checkpoint of a run, the oldest first: its step, its date, and the loss of
    the line of metrics.jsonl that counts this step."""
    losses = [(each["step"], each["loss"]) for _, each in logged(workdir) if "loss" in each]
    lines = []
    for path in reversed(_newest_first(workdir / "checkpoints")):
        found = next((loss for step, loss in losses if step >= int(path.name)), None)
        loss = "" if found is None else f"  loss {found:.4g}"  # none of a conversion
        with suppress(FileNotFoundError):  # a training has removed it
            try:
                written = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())
                date = _date(written["commit_timestamp_nsecs"] / 1e9)
            except DAMAGED:  # the folder's own
                date = _date(getattr(path.stat(), "st_mtime", 0))  # 0: in a bucket, without one
            lines.append(f"{path.name:>9}  {date}{loss}")
    if step := newest_step(workdir / BEST):
        best = best_record(workdir)
        score = f"{best['name']} {best['value']:.4g}" if best else f"{RECORD} cannot be read"
        lines.append(f"{BEST:>9}  step {step}, {score}")
    return lines


def best_record(workdir: Path) -> dict[str, Any]:
    """What is known of the best checkpoint: its `step`, and the `name` and `value` of its score;
    {} without one."""
    try:
        found = json.loads((workdir / RECORD).read_bytes())
        known = {"step": int(found["step"]), "value": float(found["value"])}
        return {**found, **known, "name": f"{found['name']}"}
    except DAMAGED:
        return {}


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def newest_step(directory: Path) -> int:
    """The step of the newest checkpoint by its name, readable or not; 0 without any."""
    return max((int(path.name) for path in _newest_first(directory)), default=0)


def folder_of(workdir: Path, step: int | None) -> Path:
    """The folder of a workdir that has a step's checkpoint: `best` where only that has it."""
    newest, best = workdir / "checkpoints", workdir / BEST
    return best if step not in steps(newest) and step in steps(best) else newest


def steps(directory: Path) -> list[int]:
    """The steps of the checkpoints by their names, ascending."""
    return [int(path.name) for path in reversed(_newest_first(directory))]


def _newest_first(directory: Path) -> list[Path]:
    numbered = [path for path in directory.glob("*") if path.name.isdecimal() and path.is_dir()]
    numbered = [path for path in numbered if not is_url(path) or (path / COMMITTED).exists()]
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)


def _read(path: Path, target: dict) -> dict:
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        # The handler's own reader of metadata: the Checkpointer's turns its errors into None.
        _check_fit(path, handler.metadata(epath.Path(path)).tree, target)
        return reader.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=target,
                # Without explicit shardings Orbax asks for the devices that the writer had.
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )


def _check_fit(path: Path, stored: dict, target: dict) -> None:
    # Orbax refuses other shapes in many lines and converts other dtypes without a word.
    has = {name: _form(leaf) for name, leaf in _named_leaves(stored) if name[0] in target}
    wants = {name: _form(leaf) for name, leaf in _named_leaves(target)}
    wrong = [
        f"{'/'.join(name)} is {has.get(name, 'absent')} there, {wants.get(name, 'absent')} here"
        for name in wants | has
        if has.get(name) != wants.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{path.parent}: the checkpoint does not fit this model: {'; '.join(wrong[:3])}{more}"
        )


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _abstract(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _set_aside(path: Path) -> None:
    number = 0
    while (aside := path.with_name(f"{path.name}.unreadable{number or ''}")).exists():
        number += 1
    path.rename(aside)
    _log.warning("%s: kept as %s", path, aside.name)


def _named_leaves(tree: PyTree) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves with their paths: attributes and dict keys by name, items by number."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(jax.tree_util.keystr((k,), simple=True) for k in p), leaf) for p, leaf in leaves]


def _to_dict(tree: PyTree) -> dict:
    """Any pytree as nested dicts of its leaves: optax's named tuples become plain names."""
    return unflatten_dict(dict(_named_leaves(tree)))


def _from_dict(like: PyTree, nested: dict) -> PyTree:
    """The inverse of ``_to_dict`` for a tree of the structure of ``like``."""
    leaves = flatten_dict(nested)
    ordered = [leaves[name] for name, _ in _named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)
