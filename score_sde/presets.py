"""Presets: files whose `get_config(variant)` is the schema's defaults with some values changed.

`presets.load("vp_cifar10:ncsnpp")` is one that comes with the package, from a checkout's `configs/`
or a wheel's copy of it; `presets.load("mine.py:variant")` is a file. A preset that begins with
another one loads it by the same function.
"""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from ml_collections import ConfigDict

from score_sde.config import in_own_words
from score_sde.errors import UserError
from score_sde.paths import local
from score_sde.validation import validate

_PACKAGE = Path(__file__).parent
_WHEEL = _PACKAGE / "configs"  # see pyproject.toml
FOLDER = _WHEEL if _WHEEL.is_dir() else _PACKAGE.parent / "configs"
DEFAULT = "vp_digits"

# A file's path may hold colons, so it reaches to the last ".py" that ends or is followed by one.
_FILE_OR_NAME = re.compile(r"(?:(?P<file>.*\.py)|(?P<name>[\w-]+))(?::(?P<variant>.*))?", re.DOTALL)


def names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load(preset: str) -> ConfigDict:
    """Return the valid config of a preset, "NAME", "FILE.py" or one of them with ":VARIANT".

    Its `name` is the file's and the variant, which names the default workdir.

    Raises:
        UserError: no such preset or variant, or a mistake in the file.
    """
    match = _FILE_OR_NAME.fullmatch(preset)
    if match is None or (match["name"] and match["name"] not in names()):
        allowed = ", ".join([*names(), "FILE.py"])
        raise UserError(f"--config {preset}: no such preset; allowed are {allowed}")
    path = FOLDER / f"{match['name']}.py" if match["name"] else local(match["file"], "--config")
    if not path.is_file():
        the_presets = ", ".join(names())
        raise UserError(f"--config {preset}: no such file; the presets are {the_presets}")
    folder = str(path.parent.resolve())
    if match["file"] and folder not in sys.path:
        sys.path.append(folder)  # where the user's own objects are
    module, variant = ModuleType(f"preset_{path.stem}"), match["variant"]
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
        config = module.get_config(variant) if variant else module.get_config()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() returns {config!r}, not a ConfigDict")
        config.name = f"{path.stem}-{variant}" if variant else path.stem
    except SyntaxError as error:
        raise UserError(f"--config {preset}: line {error.lineno}: {error.msg}") from None
    except (ArithmeticError, AttributeError, ImportError, LookupError) as error:
        _refuse(preset, error)
    except (NameError, OSError, TypeError, ValueError) as error:
        _refuse(preset, error)
    validate(config)
    return config


def _refuse(preset: str, error: Exception) -> NoReturn:
    raise UserError(f"--config {preset}: {in_own_words(error)}") from None
