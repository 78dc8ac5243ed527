"""Train a score model, sample from it, compute likelihoods, interpolate.

  score-sde --mode MODE [--config PRESET] [--workdir DIR] [--config.section.key=value ...]

PRESET is NAME[:variant], of those that come with the package, or FILE.py[:variant]. Without
--config and --workdir it is vp_digits; without --workdir the workdir is runs/NAME[-variant]. A
workdir keeps its config: the other modes need nothing but --workdir, and the same --mode train
again resumes. `python main.py` in a checkout and `python -m score_sde` are the same command.

  score-sde --mode convert --source FILE --config PRESET [--workdir DIR] [--weights averaged|raw]
            [--force] [--new_attention_order]
  score-sde --mode export --workdir DIR --target FOLDER [--step N]
  score-sde --mode sample|likelihood|interpolate|evaluate --workdir DIR [--output FOLDER] [--step N]
  score-sde --mode evaluate --workdir DIR [--samples FOLDER|NPZ] [--reference FOLDER|NPZ]
  score-sde --mode restore --workdir DIR --input FILE|FOLDER --task TASK [--degrade] [--resize]
            [--mask PNG|half|box|random] [--output FOLDER] [--step N]
            TASK: inpaint, outpaint, colorize, super_resolve, deblur, edit or relabel
  score-sde --mode train_classifier --workdir DIR
  score-sde --mode report --workdir DIR [--against DIR] [--output FOLDER]
  score-sde --mode data [--config PRESET] [--workdir DIR] [--output FOLDER]

--step takes an earlier checkpoint than the newest, or the best that training found; --mode config
--workdir DIR lists them.
"""

import importlib
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict

from score_sde import commands, overrides, paths, presets
from score_sde.errors import UserError, one_line
from score_sde.locks import writing

# A mode that needs no devices imports no JAX.
MODES = {
    "train": "train the model of --config, or resume the training of --workdir",
    "train_classifier": "train a classifier of noisy data beside a run, for classifier guidance",
    "sample": "draw images: samples.png, .npz, on request samples.gif, samples_png/*.png",
    "likelihood": "bits per dimension of held-out images: likelihood.json, likelihood.npz",
    "interpolate": "held-out images, and what lies between their latents: interpolation.png, .npz",
    "restore": "images with holes, grey, small, blurred or edited: restored.png, restored/*.png",
    "evaluate": "FID, KID, precision, recall and nearest training images: evaluation.json",
    "report": "a run on one page, or two side by side: report.html",
    "convert": "make a workdir of score_sde's, diffusers' or OpenAI's checkpoints, or an export",
    "data": "look at the data: counts, moments, duplicates, config lines, data.png",
    "config": "print every key of --config or --workdir: value, allowed values, help",
    "export": "averaged weights and config as model.safetensors and config.json in --target",
}
# Flags of single modes, with their defaults; None has to be given. Results go to the workdir where
# no output is given, or without one to the current folder.
OPTIONS: dict[str, dict[str, str | bool | None]] = {
    "convert": {"source": None, "weights": "", "force": False, "new_attention_order": False},
    "export": {"target": None, "step": ""},
    "sample": {"output": "", "step": ""},
    "likelihood": {"output": "", "step": ""},
    "interpolate": {"output": "", "step": ""},
    "data": {"output": ""},
    "report": {"output": "", "against": ""},
    "evaluate": {"output": "", "step": "", "samples": "", "reference": ""},
    "restore": {
        **{"input": None, "task": None, "mask": "", "degrade": False, "resize": False},
        **{"output": "", "step": ""},
    },
}
# What a mode writes, one command at a time. Training is many processes, and locks for all of them.
WRITES = {
    "sample": "samples",
    "likelihood": "likelihoods",
    "interpolate": "interpolations",
    "evaluate": "evaluations",
    "restore": "restorations",
    "convert": "checkpoints",
    "export": "weights",
}
TRAINING = ("train", "train_classifier")  # which handle signals themselves
# What makes a mode need less memory. A run's batch and network stay.
SMALLER = {
    **dict.fromkeys(
        TRAINING,
        "config.training.batch_size or network (in a new workdir, if this one has checkpoints), "
        "config.sampling.batch_size (where training.evaluate_every scores)",
    ),
    **dict.fromkeys(("sample", "interpolate", "restore"), "config.sampling.batch_size"),
    "likelihood": "config.likelihood.batch_size",
    "evaluate": "config.sampling.batch_size, config.likelihood.batch_size, config.eval.batch_size",
    "data": "config.eval.batch_size",
}
# What JAX's errors say where memory is lacking. YNNPACK, which XLA has for CPUs, names no reason;
# as XLA has checked all shapes before, one is left.
NO_MEMORY = ("RESOURCE_EXHAUSTED: ", "YNNPACK operation failed: error")
REPORTED = ("train", "train_classifier", "evaluate")  # after which the report is written
LOCAL = ("source", "samples", "reference", "input")  # files that are read as a whole
# Which are no paths.
WORDS = ("weights", "force", "new_attention_order", "task", "mask", "degrade", "resize")
WEIGHTS = ("averaged", "raw")
OF_MODES = tuple(dict.fromkeys(name for flags in OPTIONS.values() for name in flags))
FLAGS = ("mode", "config", "workdir", *OF_MODES)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Command(NamedTuple):
    """A command line: a mode with its config, valid and merged with the saved one."""

    mode: str
    config: ConfigDict
    workdir: Path
    options: Mapping[str, Any]  # of the mode alone

    @property
    def folder(self) -> Path:
        """Where the results go."""
        folder: Path = self.options.get("target") or self.options.get("output") or self.workdir
        return folder


def parse(argv: Sequence[str]) -> Command | None:
    """Read a command line (without the program's name); None asks for the help.

    Raises:
        UserError: for everything that can be known to be wrong before JAX is imported.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be found ({error.strerror})") from None
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow positional arguments, which are refused later
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    switches = [name for names in OPTIONS.values() for name in names if names[name] is False]
    for name in FLAGS:
        define = flags.DEFINE_bool if name in switches else flags.DEFINE_string
        define(name, None, "", flag_values=values)
    try:
        rest = values(["", *argv], known_only=True)[1:]
    except flags.Error as error:
        raise overrides.flag_error(error) from None
    if values.help:
        return None
    overrides.check(rest, [*FLAGS, "help"])
    mode = values.mode
    if mode not in MODES:
        mistake = "--mode: missing;" if mode is None else f"--mode = {mode!r}:"
        raise UserError(f"{mistake} allowed are {', '.join(MODES)}")
    options = _options(values)
    if mode == "convert":
        found = commands.of_conversion(options["source"], values.config, values.workdir, rest)
    elif mode == "train_classifier":
        found = commands.of_classifier(values.config, values.workdir, rest)
    else:
        # Anybody's images, compared with others or with the set of a preset.
        compares = options.get("samples") and (options["reference"] or values.config)
        needs_run = not (mode in ("config", "data") or compares)
        found = commands.of_run(mode, values.config, values.workdir, rest, needs_run)
    if options.get("step") == "best":
        options["step"] = commands.best_step(found[1])
    if "output" in options:
        flag, instead = "workdir", "; --output FOLDER takes another"
        if options["output"]:
            flag, instead = "output", ""
        options["output"] = options["output"] or found[1]
        commands.check_can_be_made(flag, options["output"], instead)
    return Command(mode, *found, options)


def _options(values: flags.FlagValues) -> dict[str, Any]:
    """Return the mode's own flags, files as paths; refuse those of other modes."""
    for name in OF_MODES:
        takes = [mode for mode, names in OPTIONS.items() if name in names]
        given = values[name].value
        if given is not None and values.mode not in takes:
            raise UserError(f"--{name} = {given!r}: goes with --mode {', '.join(takes)} only")
        if given == "":
            raise UserError(f"--{name}: a value is missing")
    options: dict[str, Any] = {}
    for name, default in OPTIONS.get(values.mode, {}).items():
        value = values[name].value or default
        if value is None:
            raise UserError(f"--{name}: missing; --mode {values.mode} needs it")
        if name == "step":
            if not re.fullmatch("[0-9]{0,10}|best", str(value)):  # a step is below 2**31
                raise UserError(f"--step = {value!r:.40}: allowed are steps of checkpoints, best")
            options[name] = value if value == "best" else int(value) if value else None
        elif name in WORDS or not value:
            options[name] = value
        else:
            named = paths.local if name in LOCAL else paths.place
            options[name] = named(str(value), f"--{name}")
    if options.get("weights", "") not in ("", *WEIGHTS):
        raise UserError(f"--weights = {options['weights']!r}: allowed are {', '.join(WEIGHTS)}")
    if "target" in options:
        commands.check_empty("target", options["target"])
    return options


def help_text() -> str:
    """Return what --help prints."""
    modes = "\n".join(f"  {name:<18}{does}" for name, does in MODES.items())
    named = ", ".join(presets.names())
    keys = "keys, their values and what they are: --mode config"
    return f"{__doc__}\nmodes:\n{modes}\n\npresets: {named}\n{keys}"


def main(argv: Sequence[str]) -> int:
    """Run a command line in this process, any number of times; return the exit status.

    Handlers of signals are restored. JAX stays as `start` in `score_sde.modes` sets it up. A
    stopped training raises SystemExit(75).
    """
    before = [(number, signal.getsignal(number) or signal.SIG_DFL) for number in SIGNALS]
    try:
        return _run(argv)
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def end_with_main() -> NoReturn:
    """Run the process's own command line, and end the process."""
    _mend_streams()
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    _ignore_signals()  # nothing is left but to end
    sys.exit(status)


def _run(argv: Sequence[str]) -> int:
    command = None
    try:
        command = parse(argv)
        if command is None:
            print(help_text())
            return 0
        if command.mode not in TRAINING:
            # Schedulers and `timeout` send it. As with Ctrl-C, the results so far are kept.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        results = WRITES.get(command.mode)
        with writing(command.folder, results) if results else nullcontext():
            mode = importlib.import_module(f"score_sde.modes.{command.mode}")
            mode.run(command.config, command.workdir, **command.options)
        if command.mode in REPORTED:
            report = importlib.import_module("score_sde.modes.report")
            report.after(command.config, command.workdir, command.folder)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        if _is_interruption(error):
            return _interrupted()
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif _is_about_memory(error):
            print(f"error: {_out_of_memory(command and command.mode, error)}", file=sys.stderr)
        else:
            raise
        return 2
    return 0


def _interrupted() -> int:
    _ignore_signals()  # once is enough
    print("interrupted; what was done by then is kept", file=sys.stderr)
    return 130  # as shells report SIGINT


def _is_interruption(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt became this error. It may come while compiled code calls Python
    code, such as a comparison of jit's arguments. Then JAX raises a ValueError with its text, or
    Python a SystemError with it as the cause."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in f"{error}":
            return True
        error = error.__cause__
    return False


def _is_about_memory(error: Exception) -> bool:
    from_jax = isinstance(error, RuntimeError) and any(each in f"{error}" for each in NO_MEMORY)
    return from_jax or isinstance(error, MemoryError)


def _out_of_memory(mode: str | None, error: Exception) -> str:
    said = one_line(error).rpartition(NO_MEMORY[0])[2]
    smaller = f"a smaller {SMALLER[mode]}, or " if mode in SMALLER else ""
    return (
        f"{f'--mode {mode}: ' if mode else ''}too little memory ({said or 'MemoryError':.150}); "
        f"allowed are {smaller}a device with more that nobody else uses"
    )


def _mend_streams() -> None:
    """Have what is printed go somewhere: a daemon's streams are closed, and a terminal's encoding
    may lack the characters of a path."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115  (for good)
            setattr(sys, name, stream)
        elif stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
