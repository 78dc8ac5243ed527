"""Train a score model, sample from it, compute likelihoods, interpolate.

  python main.py --mode MODE [--config configs/NAME.py[:variant]] [--workdir DIR]
                 [--config.section.key=value ...]

Without --config and --workdir the preset is configs/vp_digits.py; without --workdir the workdir is
runs/NAME[-variant]. A workdir keeps its config: the other modes need nothing but --workdir, and the
same --mode train again resumes.

  python main.py --mode convert --source FILE --config configs/NAME.py[:variant]
                 [--workdir DIR] [--weights averaged|raw]
  python main.py --mode export --workdir DIR --target FOLDER
"""

import difflib
import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from score_sde import config as configs
from score_sde import workdirs
from score_sde.errors import UserError

MODES = {
    "train": "train the model of --config, or resume the training of --workdir",
    "sample": "draw images: samples.png, samples.npz, on request samples.gif",
    "likelihood": "bits per dimension of held-out images: likelihood.json, likelihood.npz",
    "interpolate": "held-out images, and what lies between their latents: interpolation.png, .npz",
    "convert": "make a workdir of score_sde's, score_sde_pytorch's or diffusers' checkpoints",
    "config": "print every key of --config or --workdir: value, allowed values, help",
    "export": "averaged weights and config as model.safetensors and config.json in --target",
}
# Flags of single modes, with their defaults; None has to be given.
OPTIONS: dict[str, dict[str, str | None]] = {
    "convert": {"source": None, "weights": "averaged"},
    "export": {"target": None},
}
WEIGHTS = ("averaged", "raw")
FLAGS = ("mode", "config", "workdir", *(name for flags in OPTIONS.values() for name in flags))
EXPORTED = "model.safetensors"  # a folder with this file is an export of ours
DEFAULT_PRESET = Path(__file__).parent / "configs" / "vp_digits.py"
OVERRIDE = re.compile(r"--?(no)?config\.(?P<key>[^=]*)(=(?P<value>.*))?", re.DOTALL)


class Command(NamedTuple):
    """What a command line asks for: a mode with its config, valid and merged with the saved one."""

    mode: str
    config: ConfigDict
    workdir: Path
    options: Mapping[str, Any] = MappingProxyType({})  # of the mode alone


def parse(argv: Sequence[str]) -> Command | None:
    """Read a command line (without the program's name); None asks for the help.

    Raises:
        UserError: for everything that can be known to be wrong before JAX is imported.
    """
    values = _flags()
    try:
        rest = values(["main.py", *argv], known_only=True)[1:]
    except flags.Error as error:
        raise _flag_error(error) from None
    if values.help:
        return None
    _check_overrides(rest)
    if values.mode is None:
        raise UserError(f"--mode: missing; allowed are {', '.join(MODES)}")
    if values.mode not in MODES:
        raise UserError(f"--mode = {values.mode!r}: allowed are {', '.join(MODES)}")
    options = _options(values)
    if values.mode == "convert":
        return _conversion(values.config, values.workdir, options, rest)
    if values.mode == "config" and values.workdir is None:
        given = _override(_load_preset(values.config or str(DEFAULT_PRESET)), rest)
        configs.validate(given)
        return Command("config", given, Path())
    command = _resolve(values.mode, values.config, values.workdir, rest)
    return command._replace(options=options)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow positional arguments, which are refused later
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    for name in FLAGS:
        flags.DEFINE_string(name, None, "", flag_values=values)
    return values


def _options(values: flags.FlagValues) -> dict[str, Any]:
    """Return the mode's own flags, files as paths; refuse those of other modes."""
    for mode, names in OPTIONS.items():
        for name in names:
            if mode != values.mode and values[name].value is not None:
                raise UserError(f"--{name} = {values[name].value!r}: goes with --mode {mode} only")
    options: dict[str, Any] = {}
    for name, default in OPTIONS.get(values.mode, {}).items():
        value = values[name].value or default
        if not value:
            raise UserError(f"--{name}: missing; --mode {values.mode} needs it")
        options[name] = value if name == "weights" else Path(value)
    if options.get("weights", "raw") not in WEIGHTS:
        raise UserError(f"--weights = {options['weights']!r}: allowed are {', '.join(WEIGHTS)}")
    target = options.get("target")
    if target is not None:
        _check_empty("target", target)
    return options


def _check_empty(flag: str, path: Path) -> None:
    """Raise UserError unless the path is a new or empty directory that can be made."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"--{flag} = '{path}': not empty; allowed are new or empty directories")
    _check_can_be_made(flag, path)


def _conversion(
    preset: str | None, workdir: str | None, options: dict[str, Any], overrides: Sequence[str]
) -> Command:
    """Find the config of a conversion: the preset's, or that of an export of ours."""
    source = options["source"]
    if not source.exists():
        raise UserError(f"--source = '{source}': no such file or folder")
    if source.name == EXPORTED:
        raise UserError(f"--source = '{source}': a file of an export; allowed is its folder")
    if (source / "checkpoints").is_dir():
        raise UserError(
            f"--source = '{source}': a run; --mode export makes of it what convert reads"
        )
    if (source / EXPORTED).is_file():
        if not (source / workdirs.FILE).is_file():
            raise UserError(f"--source = '{source}': an export without its {workdirs.FILE}")
        if preset is not None:
            raise UserError(f"--config {preset}: {source} has its own {workdirs.FILE}")
        saved = workdirs.load(source)
        config = _override(saved, overrides)
        configs.validate(config)
        changes = workdirs.changes(saved, config, workdirs.AFTERWARDS)
        _refuse_changes("convert", changes, config, source)
    elif preset is None:
        raise UserError("--config: missing; it says the network that --source is one of")
    else:
        config = _override(_load_preset(preset), overrides)
        configs.validate(config)
    path = Path(f"runs/{config.name}" if workdir is None else workdir)
    _check_empty("workdir", path)
    return Command("convert", config, path, options)


def _check_overrides(arguments: Sequence[str]) -> None:
    """Raise UserError at the first --flag that is not --config.key of a key of the schema."""
    known = configs.flat(configs.default()).keys() - {"name"}  # which is the preset's file
    for argument in arguments:
        override = OVERRIDE.fullmatch(argument)
        if override and override["key"] not in known:
            raise configs.unknown_key(override["key"], override["value"] or "")
        if argument.startswith("-") and not override and not re.fullmatch(r"-[\d.].*", argument):
            name = argument.split("=")[0]
            allowed = [*(f"--{name}" for name in FLAGS), "--help"]
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"closest is {close[0]}" if close else f"allowed are {', '.join(allowed)}"
            raise UserError(f"{name}: no such flag; {hint} (and --config.section.key=value)")


def _resolve(
    mode: str, preset: str | None, workdir: str | None, overrides: Sequence[str]
) -> Command:
    """Find the workdir and merge the preset, the config saved there and the overrides."""
    given = None if preset is None else _load_preset(preset)
    if workdir is None:
        given = given or _load_preset(str(DEFAULT_PRESET))
        workdir = f"runs/{given.name}"
    path = Path(workdir)
    if not workdir or (path.exists() and not path.is_dir()):
        raise UserError(f"--workdir = {workdir!r}: not a directory")
    begun = any((path / "checkpoints").glob("[0-9]*"))
    if (path / workdirs.FILE).exists() and (begun or mode != "train"):
        _check_can_be_made("workdir", path)
        return Command(mode, _merge(mode, given, workdirs.load(path), path, overrides), path)
    if mode != "train":
        raise workdirs.missing(path)
    if begun:
        raise UserError(f"--workdir = {workdir!r}: has checkpoints, but no {workdirs.FILE}")
    if given is None and (path / workdirs.FILE).exists():  # training ended before it began
        given = workdirs.load(path)
    config = _override(given or _load_preset(str(DEFAULT_PRESET)), overrides)
    configs.validate(config)
    _check_can_be_made("workdir", path)
    return Command(mode, config, path)


def _check_can_be_made(flag: str, path: Path) -> None:
    """Raise UserError unless one may write into this directory, there or not yet."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--{flag} = '{path}': {existing} is not a directory one may write to")


def _merge(
    mode: str, given: ConfigDict | None, saved: ConfigDict, path: Path, overrides: Sequence[str]
) -> ConfigDict:
    """Return the config for a workdir that has one; refuse changes that it does not allow.

    For training the given config holds, where its changes are allowed. Afterwards the saved one
    holds, with the overrides, and a given preset only names the workdir.
    """
    if mode == "interpolate":  # by the flow, whatever the config's own sampler is
        saved = configs.changed(saved, {"sampling.method": "ode"})
        given = given and configs.changed(given, {"sampling.method": "ode"})
    if mode == "train":
        config = _override(saved if given is None else given, overrides)
        free = workdirs.WHEN_TRAINING
    else:
        if given is not None and given.name != saved.name:
            changes = workdirs.changes(saved, given, workdirs.WHEN_TRAINING)
            _refuse_changes(mode, changes, given, path)
        config = _override(saved, overrides)
        free = workdirs.AFTERWARDS
    _refuse_changes(mode, workdirs.changes(saved, config, free), config, path)
    configs.validate(config)
    if mode == "interpolate" and config.sampling.method != "ode":
        raise configs.refuse(
            "sampling.method", config.sampling.method, "ode with --mode interpolate"
        )
    if given is not None and mode != "train":
        _note_differences(given, config, overrides, path)
    return config


def _refuse_changes(mode: str, changes: dict[str, object], config: ConfigDict, path: Path) -> None:
    if changes:
        now = configs.flat(config)
        told = [f"config.{key} = {now[key]!r} ({was!r} in {path})" for key, was in changes.items()]
        free = workdirs.WHEN_TRAINING if mode == "train" else workdirs.AFTERWARDS
        allowed = ", ".join(f"{key}*" if key.endswith(".") else key for key in free)
        raise UserError(f"{', '.join(told)}: --mode {mode} may change {allowed}")


def _note_differences(
    given: ConfigDict, config: ConfigDict, overrides: Sequence[str], path: Path
) -> None:
    """Say where the workdir's saved config, which holds, differs from the preset as it is now."""
    overridden = {match["key"] for match in map(OVERRIDE.fullmatch, overrides) if match}
    held = [
        f"config.{key} = {value!r}"
        for key, value in workdirs.changes(config, given, ()).items()
        if key not in overridden
    ]
    if held:
        print(f"note: {path / workdirs.FILE} holds: {', '.join(held)}", file=sys.stderr)


def _load_preset(preset: str) -> ConfigDict:
    """Return `get_config(variant)` of "FILE[:variant]", named after both."""
    file, _, variant = preset.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(
            f"--config {preset}: no such file; presets are in {DEFAULT_PRESET.parent.name}/"
        )
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.append(folder)  # where the user's own objects are
    spec = importlib.util.spec_from_file_location(f"preset_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config {preset}: not a Python file (NAME.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() returns {config!r}, not a ConfigDict")
        config.name = f"{path.stem}-{variant}" if variant else path.stem
    except SyntaxError as error:
        raise UserError(f"--config {preset}: line {error.lineno}: {error.msg}") from None
    except (ArithmeticError, AttributeError, ImportError, LookupError) as error:
        raise _preset_error(preset, error) from None
    except (NameError, TypeError, ValueError) as error:
        raise _preset_error(preset, error) from None
    configs.validate(config)
    return config


def _preset_error(preset: str, error: Exception) -> UserError:
    text = " ".join(f"{error}".split())
    unknown = re.search(r'Key "(\w+)" does not exist', text)  # ml_collections lists all others
    if unknown:
        text = f"{unknown[1]!r}: no such key; {configs.closest(unknown[1])}"
    return UserError(f"--config {preset}: {text}")


def _flag_error(error: flags.Error) -> UserError:
    missing = re.fullmatch(r"Missing value for flag (\S+)", f"{error}")
    if missing:
        return UserError(f"{missing[1]}: a value is missing")
    return UserError(" ".join(f"{error}".split()))


def _override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Return the config with --config.section.key=value applied; another sampler than the config's
    begins with its own settings."""
    method = _applied(config, overrides).sampling.method
    return _applied(configs.changed(config, {"sampling.method": method}), overrides)


def _applied(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    config = configs.changed(config, {})
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    argv = ["main.py", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        found = re.match(r"flag --(config\.(.+?))=(.*?): ", f"{error}", re.DOTALL)
        assert found, error  # the only flags here are ours
        allowed = configs.type_in_words(found[2])
        raise UserError(f"{found[1]} = {found[3]!r}: allowed are {allowed}") from None
    except flags.Error as error:
        raise _flag_error(error) from None
    except ValueError as error:  # --noconfig.section.key=value
        raise UserError(" ".join(f"{error}".split())) from None
    if left:
        raise UserError(
            f"{left[0]!r}: not a flag; values follow their key as --config.section.key=value"
        )
    return config


def help_text() -> str:
    """Return what --help prints."""
    modes = "\n".join(f"  {name:<12}{does}" for name, does in MODES.items())
    return f"{__doc__}\nmodes:\n{modes}\n\nkeys with their values and what they are: --mode config"


def main(argv: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    try:
        command = parse(argv)
        if command is None:
            print(help_text())
            return 0
        if command.mode != "train":  # which has its own
            # Schedulers and `timeout` send it: as with Ctrl-C, what was done is kept.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        mode = importlib.import_module(f"score_sde.modes.{command.mode}")
        mode.run(command.config, command.workdir, **command.options)
    except UserError as error:
        for line in error.details:
            print(line)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _ignore_signals()  # once is enough
        print("interrupted; what was done by then is in the workdir", file=sys.stderr)
        return 130  # as shells tell SIGINT
    return 0


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    _ignore_signals()  # nothing is left but to end
    sys.exit(status)
