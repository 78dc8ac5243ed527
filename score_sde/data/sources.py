"""The places where a set is looked for, in order."""

import os
from collections.abc import Callable
from pathlib import Path

from score_sde import paths
from score_sde.data import prepared
from score_sde.data.info import Arrays, DatasetInfo
from score_sde.errors import UserError


def cache_folder(name: str) -> Path:
    """Where downloads go by default: $XDG_CACHE_HOME/score_sde/NAME, ~/.cache in its absence."""
    return paths.cache("config.data.dir", "config.data.dir to the folder of the files") / name


def load_in_order(
    info: DatasetInfo,
    split: str,
    data_dir: str | None,
    read_files: Callable[[Path], Arrays | None],
    fetch: Callable[[Path], None],
    hint: str,
) -> Arrays:
    """Takes the first source that has the set.

    1. A set prepared by TFDS in `data_dir`; without `data_dir`, in TFDS's own folder or our cache.
    2. The official files there: `read_files(folder)`, None where there are none.
    3. The official files downloaded there: `fetch(folder)`.
    4. A set that TFDS prepares there, where TensorFlow is installed.

    Args:
      info, split: the set, and "train" or "test".
      data_dir: the user's folder; None or "" for `cache_folder`.
      read_files: reads the official files of `split`.
      fetch: downloads them; raises UserError.
      hint: the ways to provide the official files by hand, for the message where all fail.

    Raises:
      UserError: one line. Damaged files end the search: a run must not read others silently.
    """
    folder = paths.local(data_dir, "config.data.dir") if data_dir else cache_folder(info.name)
    _check_folder(folder)
    places = [folder] if data_dir else [prepared.default_folder(), folder]
    failures = []
    for found in filter(None, (prepared.find(place, info.name) for place in places)):
        obstacle = prepared.obstacle(found, info.name)
        if obstacle is None:
            return prepared.read(found, info, split)
        failures.append(obstacle)
    arrays = read_files(folder)
    if arrays is not None:
        return arrays
    if data_dir and failures:  # the user has the set: say what is in the way, download nothing
        raise UserError(failures[0])
    try:
        fetch(folder)
    except UserError as error:
        failures.append(str(error))
    else:
        arrays = read_files(folder)
        assert arrays is not None, f"{folder} lacks what was just downloaded"
        return arrays
    if prepared.can_prepare():
        try:
            found = prepared.prepare(info.name, folder)
        except UserError as error:
            failures.append(str(error))
        else:
            return prepared.read(found, info, split)
    raise UserError(
        f"config.data.name: {info.name} is not in {folder} and cannot be had "
        f"({'; '.join(failures)}). Point config.data.dir at {hint}, or at a set prepared by TFDS "
        "(array_record; needs score-sde[tfds], which prepares it too where TensorFlow is "
        "installed), or take config.data.name=digits, which is built in"
    )


def _check_folder(folder: Path) -> None:
    try:
        os.listdir(folder)
    except FileNotFoundError:
        pass  # it is made when there is something to put in
    except OSError as error:
        raise UserError(
            f"config.data.dir: cannot read the folder {folder}: {error.strerror}"
        ) from error
