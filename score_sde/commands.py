"""The config and the workdir of a command: what a workdir keeps, and what may change in it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from score_sde import overrides, paths, presets, workdirs
from score_sde.config import changed, default, flat, refuse
from score_sde.errors import UserError
from score_sde.validation import validate


def of_run(
    mode: str,
    preset: str | None,
    workdir: str | None,
    typed: Sequence[str],
    needs_run: bool = True,
) -> tuple[ConfigDict, Path]:
    """Find the workdir. Merge the preset, the config saved there and the typed values. What needs
    no run has the current folder where no workdir is given."""
    given = None if preset is None else presets.load(preset)
    if not needs_run and workdir is None:
        return _valid(given or presets.load(presets.DEFAULT), typed), Path()
    if workdir is None:
        given = given or presets.load(presets.DEFAULT)
    path = _path(workdir, given)
    if mode != "config":
        workdirs.check_no_export(path)
    if mode == "train":
        check_can_be_made("workdir", path)
    saved = workdirs.load(path) if (path / workdirs.FILE).exists() else None
    begun = any((path / "checkpoints").glob("[0-9]*"))
    if saved and (begun or mode != "train"):
        return _merged(mode, given, saved, path, typed), path
    if mode != "train":
        raise workdirs.missing(path)
    if begun:
        raise UserError(f"--workdir = '{path}': has checkpoints, but no {workdirs.FILE}")
    # A training that ended before its first checkpoint left its config.
    return _valid(given or saved or presets.load(presets.DEFAULT), typed), path


def of_classifier(
    preset: str | None, workdir: str | None, typed: Sequence[str]
) -> tuple[ConfigDict, Path]:
    """Find the config of a classifier: that of its folder where it has begun, else the run's with
    other settings of training and network, or without a run the preset's; and the run's workdir."""
    given = None if preset is None else presets.load(preset)
    path = _path(workdir, given)
    folder = path / workdirs.CLASSIFIER
    workdirs.check_no_export(path)
    check_can_be_made("workdir", folder)
    if any((folder / "checkpoints").glob("[0-9]*")):
        return _merged("train", None, workdirs.load(folder), folder, typed), path
    if not (path / workdirs.FILE).exists():
        if given is None:
            raise workdirs.missing(path)
        return _valid(given, typed), path
    saved = workdirs.load(path)
    config = _merged("train_classifier", given, saved, path, typed)
    if config.model.centered != saved.model.centered:
        raise refuse("model.centered", config.model.centered, "the run's own, as of its data")
    return config, path


def _path(workdir: str | None, given: ConfigDict | None) -> Path:
    """The workdir's path, by default that of the preset."""
    if workdir is None:
        workdir = f"runs/{(given or presets.load(presets.DEFAULT)).name}"
    path = paths.place(workdir, "--workdir", checkpoints=True)
    if not workdir or (path.exists() and not path.is_dir()):
        raise UserError(f"--workdir = {workdir!r}: not a directory")
    return path


def of_conversion(
    source: Path, preset: str | None, workdir: str | None, typed: Sequence[str]
) -> tuple[ConfigDict, Path]:
    """Find the config of a conversion, the preset's or that of an export of ours, and its workdir,
    which must be new or empty."""
    if not source.exists():
        raise UserError(f"--source = '{source}': no such file or folder")
    if source.suffix == ".safetensors":
        beside = (source.parent / workdirs.FILE).is_file()
        other = f"a folder with the {workdirs.FILE} of its network, too"
        allowed = f"its folder '{source.parent}'" if beside else other
        raise UserError(
            f"--source = '{source}': arrays, which do not say their network; allowed is {allowed}"
        )
    if workdirs.is_run(source):
        raise UserError(
            f"--source = '{source}': a run; --mode export makes of it what convert reads"
        )
    if (source / workdirs.EXPORTED).is_file():
        if not (source / workdirs.FILE).is_file():
            raise UserError(f"--source = '{source}': an export without its {workdirs.FILE}")
        if preset is not None:
            raise UserError(f"--config {preset}: {source} has its own {workdirs.FILE}")
        saved = workdirs.load(source)
        config = _valid(saved, typed)
        changes = workdirs.changes(saved, config, workdirs.AFTERWARDS)
        workdirs.refuse_changes("convert", changes, config, source)
    else:
        config = _foreign(source, preset, typed)
    workdir = f"runs/{config.name}" if workdir is None else workdir
    path = paths.place(workdir, "--workdir", checkpoints=True)
    check_empty("workdir", path)
    return config, path


def _foreign(source: Path, preset: str | None, typed: Sequence[str]) -> ConfigDict:
    """Return the config of another code base's checkpoint: the preset's, with what the source says
    of itself, and what is typed of the rest."""
    from score_sde import convert  # here, as it imports JAX

    if preset is None:
        named = source.resolve()
        name = named.stem if named.is_file() else named.name
        given = changed(default(), {"data.name": "images", "name": name})
        levels = overrides.apply(given, typed).model.num_levels
        given = changed(given, convert.likely(source, levels))
    else:
        given = presets.load(preset)
    says = convert.settings(source, overrides.apply(given, typed).data.image_size)
    if preset is None and not says:
        raise UserError(
            "--config: missing; it says the network that --source is one of, as that is no folder "
            "of diffusers and no whole .pt file of OpenAI's"
        )
    config = overrides.apply(changed(given, says), typed)
    now = flat(config)
    for key, value in says.items():
        if now[key] != value:
            raise refuse(key, now[key], f"{value!r}, as {source} says")
    outputs = convert.choices(source, config.model.num_levels).get("model.parameterization", ())
    if outputs and (output := config.model.parameterization) not in outputs:
        allowed = f"{', '.join(outputs)}, as {source} is of OpenAI's"
        raise refuse("model.parameterization", output, allowed)
    validate(config)
    if preset is not None:
        before = flat(given)
        sets = [
            f"config.{key} = {value!r:.80} (not {before[key]!r:.80})"
            for key, value in says.items()
            if value != before[key] and not (key.startswith("data.") and not before[key])
        ]
        if sets:
            print(f"note: {source} sets {', '.join(sets)}", file=sys.stderr)
    return config


def _valid(given: ConfigDict, typed: Sequence[str]) -> ConfigDict:
    config = overrides.apply(given, typed)
    validate(config)
    return config


def check_empty(flag: str, path: Path) -> None:
    """Raise UserError unless the path is a new or empty directory (`workdirs.check_new`) that can
    be made."""
    workdirs.check_new(flag, path)
    check_can_be_made(flag, path)


def check_can_be_made(flag: str, path: Path, instead: str = "") -> None:
    """Raise UserError unless one may write into this directory, there or not yet. Of a bucket only
    writing shows it."""
    if paths.is_url(path):
        return
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--{flag} = '{path}': {existing} is not a directory one may write to{instead}"
        )


def best_step(workdir: Path) -> int:
    """Return the step of the best checkpoint; raise UserError where none is kept."""
    from score_sde.training.checkpoints import BEST, newest_step  # here, as it imports JAX

    if step := newest_step(workdir / BEST):
        return step
    raise UserError(
        f"--step = '{BEST}': {workdir / BEST} has no checkpoint; training keeps the best with "
        "config.training.evaluate_every"
    )


def _merged(
    mode: str, given: ConfigDict | None, saved: ConfigDict, path: Path, typed: Sequence[str]
) -> ConfigDict:
    """Return the config for a workdir that has one; refuse changes that it does not allow.

    For training the given config holds, where its changes are allowed. Afterwards the saved one
    holds, with the typed values, and a given preset only names the workdir.
    """
    if mode == "interpolate":  # by the flow, with any sampler in the config
        saved = changed(saved, {"sampling.method": "ode"})
        given = given and changed(given, {"sampling.method": "ode"})
    if mode != "train" and given is not None and given.name != saved.name:
        changes = workdirs.changes(saved, given, workdirs.WHEN_TRAINING)
        workdirs.refuse_changes(mode, changes, given, path)
    config = overrides.apply(given if given is not None and mode == "train" else saved, typed)
    workdirs.check_changes(mode, saved, config, path)
    validate(config)
    if mode == "interpolate" and config.sampling.method != saved.sampling.method:
        allowed = f"{saved.sampling.method} with --mode interpolate"
        raise refuse("sampling.method", config.sampling.method, allowed)
    if mode != "train" and given is not None:
        differ = workdirs.changes(config, given, ()).items()
        set_here = overrides.keys(typed)
        held = [f"config.{key} = {value!r:.80}" for key, value in differ if key not in set_here]
        if held:
            print(f"note: {path / workdirs.FILE} holds: {', '.join(held)}", file=sys.stderr)
    return config
