"""The config that a workdir keeps: written by training, read by all that follows."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde import __version__
from score_sde.config import changed, default, flat, in_own_words, unknown_key
from score_sde.data import DatasetInfo, is_only_described
from score_sde.errors import DAMAGED, UserError, one_line, why_no_json
from score_sde.locks import SUFFIX
from score_sde.paths import whole, written
from score_sde.schema import SCHEMA
from score_sde.validation import import_rules, validate

FILE = "config.json"
EXPORTED = "model.safetensors"  # a folder with this file is an export of ours
UNFINISHED = "unfinished"  # a file, while a conversion or an export fills a directory
LAST = {"workdir": FILE, "target": EXPORTED}  # by the flag, what they write last

# Keys that may change between two commands on one workdir ("name." stands for a whole section).
AFTERWARDS: tuple[str, ...] = (
    "sampling.",
    "likelihood.",
    "restore.",
    "eval.",
    "data.dir",
    "data.stream",
    "data.workers",
)
WHEN_TRAINING: tuple[str, ...] = (
    "training.num_steps",
    "training.schedule_steps",
    "training.log_every",
    "training.sample_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep",
    "training.keep_every",
    *AFTERWARDS,
)

CLASSIFIER = "classifier"  # folder of a workdir, with the files of one
# Of a classifier that begins beside a run.
OF_CLASSIFIERS: tuple[str, ...] = ("seed", "training.", "model.", *AFTERWARDS)
SHARED = ("sde.", "data.name", "model.centered")  # by a run and its classifier
# What modes may change; others: AFTERWARDS.
MAY_CHANGE = {"train": WHEN_TRAINING, "train_classifier": OF_CLASSIFIERS}


def changes(saved: ConfigDict, config: ConfigDict, free: tuple[str, ...]) -> dict[str, Any]:
    """Return {key: saved value} of the keys that differ, apart from the free ones and the name."""
    old, new = flat(saved), flat(config)
    return {
        key: old[key]
        for key in old
        if old[key] != new[key] and key != "name" and not is_free(key, free)
    }


def is_run(path: Path) -> bool:
    """Whether a training or a conversion has written there; others write a config.json, too."""
    return (path / "checkpoints").is_dir()


def check_no_export(path: Path) -> None:
    """Raise UserError for an export of ours in place of a workdir."""
    if (path / EXPORTED).exists():
        raise UserError(f"--workdir = '{path}': an export; --mode convert makes a run of it")


def check_new(flag: str, path: Path) -> None:
    """Raise UserError unless a directory is new, or empty apart from locks and from what a command
    left that was ended before it had filled it."""
    files = path.iterdir() if path.is_dir() else ()
    there = {each.name for each in files if each.suffix not in (SUFFIX, ".partial")}
    begun = UNFINISHED in there and LAST[flag] not in there
    if path.exists() and not (path.is_dir() and (begun or not there)):
        raise UserError(f"--{flag} = '{path}': not empty; allowed are new or empty directories")


@contextmanager
def filled(flag: str, path: Path) -> Iterator[None]:
    """Mark a new directory until it is filled, so that the same command begins again after an
    interruption; remove what an earlier one left.

    Raises:
        UserError: as `check_new`, or it cannot be written.
    """
    check_new(flag, path)  # again, as another command may have been faster
    mark, left = path / UNFINISHED, path / "checkpoints"
    if mark.exists() and left.exists():
        remove: Any = getattr(left, "rmtree", partial(shutil.rmtree, left))  # of a bucket's path
        with written(path):
            remove()
    with whole(mark):
        pass
    yield
    with written(mark):
        mark.unlink()


def check_changes(mode: str, saved: ConfigDict, config: ConfigDict, path: Path) -> None:
    """Raise UserError where a config differs from that of a workdir in what a mode may not
    change."""
    free = MAY_CHANGE.get(mode, AFTERWARDS)
    if is_only_described(saved.data.name):  # a converted run's data can be named afterwards
        free = (*free, "data.")
    refuse_changes(mode, changes(saved, config, free), config, path)


def refuse_changes(mode: str, changes: dict[str, object], config: ConfigDict, path: Path) -> None:
    """Raise UserError where there are changes, {key: value saved in the path}."""
    if changes:
        now = flat(config)
        found = [
            f"config.{key} = {now[key]!r:.80} ({was!r:.80} in {path})"
            for key, was in changes.items()
        ]
        free = MAY_CHANGE.get(mode, AFTERWARDS)
        allowed = ", ".join(f"{key}*" if key.endswith(".") else key for key in free)
        raise UserError(f"{', '.join(found)}: --mode {mode} may change {allowed}")


def is_free(key: str, free: tuple[str, ...]) -> bool:
    """Return whether a key is among the free ones ("name." stands for a whole section)."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in free)


def to_json(config: ConfigDict, info: DatasetInfo) -> str:
    """Return the config, what is known of the data, and the version of the package, as JSON."""
    document = {"version": __version__, "config": config.to_dict(), "data": info.facts()}
    return json.dumps(document, indent=2) + "\n"


def from_json(text: str | bytes, source: str = FILE) -> ConfigDict:
    """Return the config that `to_json` wrote; keys younger than it take their defaults.

    Raises UserError, naming `source`, for anything else.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_config(source, f"no JSON: {why_no_json(error)}") from None
    if not (isinstance(document, dict) and isinstance(document.get("config"), dict)):
        raise _no_config(source, "it has no section config")
    values = flat(document["config"])
    for key, value in values.items():
        if key not in SCHEMA:
            raise UserError(f"{source}: {unknown_key(key, value)}")
        values[key] = tuple(value) if isinstance(value, list) else value
    import_rules()
    try:
        config = changed(default(), values)
        validate(config)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{source}: {in_own_words(error)}") from None
    return config


def _no_config(source: object, why: str) -> UserError:
    copy = "a run's has to come back from a copy"
    return UserError(f"{source}: not a config written by a run ({why}); {copy}")


def load(workdir: Path) -> ConfigDict:
    """Return the config saved in a workdir; raise UserError where there is none."""
    path = workdir / FILE
    if not path.is_file():
        raise missing(workdir)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _no_config(path, error.strerror or one_line(error)) from None
    return from_json(text, str(path))


def missing(workdir: Path, flag: str = "workdir") -> UserError:
    """Return the error for a workdir without a run."""
    return UserError(
        f"--{flag} = '{workdir}': no {FILE} there; allowed are directories of --mode train"
    )


def load_info(workdir: Path) -> DatasetInfo | None:
    """Return what a workdir keeps of its data; None for one of a version that kept nothing.

    Raises UserError where it cannot be read.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_bytes())["data"]
        return None if facts is None else DatasetInfo.from_facts(facts)
    except KeyError:
        return None
    except DAMAGED as error:
        raise UserError(f"{path}: data: not as a run writes it ({one_line(error):.200})") from None


def save(config: ConfigDict, workdir: Path, info: DatasetInfo) -> Path:
    """Write the config into a workdir (made where it is missing) and return the file's path.

    Raises UserError where it cannot be written.
    """
    path = workdir / FILE
    with whole(path) as file:
        file.write(to_json(config, info).encode())
    return path
