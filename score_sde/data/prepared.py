"""Sets prepared by TensorFlow Datasets (TFDS), read without TensorFlow where the format allows it.

TFDS lays a set out as FOLDER/NAME/VERSION/, with a `dataset_info.json` and the records. It reads
the format array_record at any position without TensorFlow; its default, tfrecord, it does not.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from score_sde.data.info import Arrays, DatasetInfo
from score_sde.errors import UserError, one_line, why_no_json
from score_sde.progress import bar

_READ_AT_ONCE = 1000  # images
# Preparing CIFAR-10 takes a minute once downloaded. TFDS retries a dead network for 3.5 minutes. A
# process that takes longer than this hangs.
_PREPARE_LIMIT = 1800.0  # seconds

# Run in another process: TensorFlow would take the accelerator's memory from JAX.
_PREPARE = """
import sys
import tensorflow_datasets as tfds
name, folder = sys.argv[1:]
tfds.builder(name, data_dir=folder, file_format="array_record").download_and_prepare()
"""


def default_folder() -> Path:
    """Where TFDS itself puts its sets."""
    return Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def find(folder: Path, name: str) -> Path | None:
    """The newest version of the set `name` prepared in `folder`, array_record before others."""
    found = [
        (_file_format(info.parent) == "array_record", version, info.parent)
        for info in folder.glob(f"{name}/*/dataset_info.json")
        if (version := _version(info.parent.name)) is not None
    ]
    return max(found)[-1] if found else None


def obstacle(prepared: Path, name: str) -> str | None:
    """Why the prepared set of a name cannot be read here, in one line; None if it can."""
    file_format = _file_format(prepared)
    if file_format != "array_record":
        return (
            f"config.data.dir: {prepared} holds TFDS's format {file_format!r}, which only "
            "TensorFlow reads: prepare it as array_record in another folder, where TensorFlow is "
            f"installed: tfds build {name} --file_format=array_record --data_dir=FOLDER"
        )
    if not _importable("tensorflow_datasets", "array_record"):
        return (
            f"config.data.dir: {prepared} was prepared by TFDS; to read it: "
            "pip install 'score-sde[tfds]'"
        )
    return None


def read(prepared: Path, info: DatasetInfo, split: str) -> Arrays:
    """Reads a split of a prepared set (array_record) into memory, in the order it is stored.

    Raises:
      UserError: one line: damaged files, or another number or shape of images than `info` says.
    """
    import tensorflow_datasets as tfds

    count = info.splits[split]
    where = f"config.data.dir: {prepared}"
    images = np.empty((count, *info.shape), np.uint8)
    labels = np.empty(count, np.int32)
    try:
        source = tfds.builder_from_directory(prepared).as_data_source(split)
        if len(source) != count:
            raise UserError(f"{where}: the {split} split has {len(source)} images, not {count}")
        with bar(total=count, desc=f"{info.name} {split}", quiet=True) as shown:
            for start in range(0, count, _READ_AT_ONCE):
                rows = range(start, min(start + _READ_AT_ONCE, count))
                for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
                    image = example["image"]
                    if image.shape != info.shape:
                        raise UserError(f"{where}: an image has {image.shape}, not {info.shape}")
                    images[row] = image
                    labels[row] = example["label"]
                shown.update(len(rows))
    # The record reader's RuntimeError, the JSON's and protobuf's ValueError, Pillow's OSError, the
    # KeyError of a split or feature that is not there.
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = one_line(error)
        raise UserError(f"{where} is damaged or not {info.name}: {reason[:200]}") from error
    return Arrays(images, {"labels": labels})


def can_prepare() -> bool:
    """Whether TFDS can prepare sets here: it encodes images by TensorFlow."""
    return _importable("tensorflow", "tensorflow_datasets", "array_record")


def prepare(name: str, folder: Path) -> Path:
    """Has TFDS download the set and prepare it in `folder` as array_record; returns where.

    It may still succeed where our own download did not: from its own cache of downloads, or by its
    own certificates.

    Raises:
      UserError: one line with the error that TFDS ended with.
    """
    print(f"preparing {name} by TFDS in {folder}; this may take minutes", file=sys.stderr)
    command = [sys.executable, "-c", _PREPARE, name, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PREPARE_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"TFDS did not prepare {name} in {_PREPARE_LIMIT:g} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        errors = [line for line in said if re.match(r"[\w.]+: ", line)]  # where a traceback ends
        raise UserError(f"TFDS could not prepare {name}: {(errors or said)[-1].strip()[:200]}")
    found = find(folder, name)
    assert found is not None, f"{folder} lacks what TFDS just prepared"
    return found


def _version(text: str) -> tuple[int, ...] | None:
    """`3.0.2` as (3, 0, 2), to be ordered; None for a folder that is no version."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", text) else None


def _file_format(prepared: Path) -> str:
    """The format that `dataset_info.json` names; `tfrecord` where it names none, as TFDS has it."""
    path = prepared / "dataset_info.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or why_no_json(error)
        raise UserError(f"config.data.dir: {path} cannot be read: {why}") from error
    if not isinstance(facts, dict):
        raise UserError(f"config.data.dir: {path} is not what TFDS writes: no JSON object")
    return str(facts.get("fileFormat", "tfrecord"))


def _importable(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)
