"""`--mode train`: train a model from its config, or go on where its workdir stopped."""

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ml_collections import ConfigDict

from score_sde import learn, presets
from score_sde.config import default, flat
from score_sde.errors import UserError
from score_sde.modes import say_unread, start
from score_sde.unread import unused

INTERRUPTED = "interrupted; what was done by then is kept"
UNFINISHED = 75  # exit status of a run stopped by a signal: "temporary failure" of sysexits.h


def run(config: ConfigDict, workdir: Path) -> None:
    """Train to `training.num_steps`; everything is in the workdir, the config too."""
    end_at_once_on_interrupt()
    start(config.training.batch_size)
    _tell_unused(config)
    trained = learn.train(config, workdir)
    if trained.step < config.training.num_steps:
        sys.exit(UNFINISHED)
    if config.training.sample_every:
        print(f"pictures: {workdir / 'samples'}")
    print(f"next: --mode sample --workdir {workdir}")


def _tell_unused(config: ConfigDict) -> None:
    """Print the settings of a training that were changed and have no effect: those that are neither
    the default nor the preset's."""
    values, usual, sections = flat(config), flat(default()), ("sde.", "model.", "training.")
    own = usual
    with suppress(UserError):  # a user's own file, which is no preset
        own = flat(presets.load(config.name.replace("-", ":")))
    keys = sorted(key for key in unused(config) if key.startswith(sections))
    say_unread([f"config.{key}" for key in keys if values[key] not in (usual[key], own[key])])


def end_at_once_on_interrupt() -> None:
    """Let Ctrl-C end the process where the loop does not handle it: there is nothing to save, and
    Python's own exception is lost where it comes up in a callback of JAX."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, as in the background, or somebody else's
    if threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, frame: FrameType | None) -> None:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        os._exit(130)

    signal.signal(signal.SIGINT, end)
