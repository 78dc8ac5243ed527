"""The config of a run: the schema's defaults, with some of their values changed.

A preset (`configs/*.py`) is `default()` with other values. Reading this file imports no JAX.
"""

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from ml_collections import ConfigDict, config_dict

from score_sde.allowed import Names
from score_sde.errors import UserError, one_line
from score_sde.schema import SCHEMA, SECTIONS


def default() -> ConfigDict:
    """Return the schema's defaults, locked: setting an unknown key raises AttributeError."""
    config = ConfigDict()
    for key, row in SCHEMA.items():
        section, name = _split(key)
        if section and section not in config:
            config[section] = ConfigDict()
        value: Any = row.default
        if row.unset is not None:
            value = config_dict.FieldReference(row.default, field_type=row.kind)
        (config[section] if section else config)[name] = value
    return config.lock()


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config as {"section.key": value}."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of a config with the values of some of its keys, given flat, changed.

    Another `sampling.method` begins with its own settings: the keys that samplers read take their
    defaults, except the time at which samples are taken.
    """
    config = deepcopy(config)  # ConfigDict(config) would share the sections
    if values.get("sampling.method", config.sampling.method) != config.sampling.method:
        keys = set(config.sampling) & kind_keys("sampling.method") - {"t_min"}
        usual = default().sampling
        with config.unlocked():
            config.sampling.update({key: usual[key] for key in keys})
    config.update_from_flattened_dict(values)
    return config


def check_variant(variant: str, *allowed: str) -> None:
    """Raise ValueError unless a preset has this variant ("" is the preset itself)."""
    if variant and variant not in allowed:
        raise ValueError(f"variant {variant!r}: allowed are {', '.join(allowed) or 'none'}")


def require_variant(variant: str, *allowed: str) -> None:
    """Raise ValueError unless a preset that is nothing by itself has this variant."""
    if not variant:
        raise ValueError(f"a variant is missing (FILE:VARIANT): allowed are {', '.join(allowed)}")
    check_variant(variant, *allowed)


# --- The objects that values name -----------------------------------------------------------------


def resolve(key: str, value: str) -> Any:
    """Return the object that a key's value names: one of the key's table, or as "module:Name" a
    user's own, imported from `sys.path`.

    Raises:
        UserError: there is no such name, or the module cannot be imported or lacks it.
    """
    names = SCHEMA[key].allowed
    assert isinstance(names, Names)
    table = names.load()
    if value in table:
        return table[value]
    if not names.is_own(value):
        raise refuse(key, value, names.words)
    module, _, name = value.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError) as error:
        why = one_line(error)
        raise UserError(
            f"config.{key} = {value!r}: cannot be imported ({why}); allowed are modules beside the "
            "preset or on PYTHONPATH"
        ) from None
    if not names.fits(found):
        kind = "an instance of" if names.instance else "a class derived from"
        raise refuse(key, value, f"{names.words}, where Name is {kind} {names.own}")
    return found


def is_own(key: str, value: object) -> bool:
    """Return whether a key's value hands over a user's own object."""
    allowed = SCHEMA[key].allowed
    return isinstance(allowed, Names) and allowed.is_own(value)


def takes(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the settings that a class can be given, or a `partial` of one."""
    fixed = {"self"}
    if isinstance(make, functools.partial):
        fixed |= make.keywords.keys()
        make = make.func
    # mypy warns that a subclass may change __init__; here it is of the very class that is called.
    call = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    found = inspect.signature(call).parameters
    return {name: found[name] for name in found if name not in fixed}


def kind_keys(key: str) -> set[str]:
    """Return the settings that some object in a key's table takes."""
    names = SCHEMA[key].allowed
    assert isinstance(names, Names)
    return {name for make in names.load().values() for name in takes(getattr(make, "Spec", make))}


# --- Errors ---------------------------------------------------------------------------------------


def refuse(key: str, value: object, allowed: str) -> UserError:
    """Return the error for a value that a key cannot have."""
    return UserError(f"config.{key} = {value!r:.200}: allowed are {allowed}")


def unknown_key(key: str, value: object) -> UserError:
    """Return the error for a key that cannot be set, with the keys closest to it."""
    if key == "name":
        return UserError(f"config.name = {value!r}: cannot be set; it is the name of --config")
    if key in SECTIONS:
        names = ", ".join(sorted(name for section, name in map(_split, SCHEMA) if section == key))
        return UserError(f"config.{key} = {value!r}: a section; its keys are {names}")
    return UserError(f"config.{key} = {value!r}: no such key; {closest(key)}")


def closest(key: str) -> str:
    """Return, in words, the keys that are closest to an unknown one, or else the sections."""
    keys = sorted(SCHEMA)
    section, name = _split(key)
    close = [known for known in keys if _split(known)[1] == name]
    words = ((known, _split(known)[1].split("_")) for known in keys if len(name) > 2)
    parts = [known for known, in_key in words if any(word.startswith(name) for word in in_key)]
    close = close or [known for known in parts if known.startswith(f"{section}.")] or parts
    close = close or difflib.get_close_matches(key, keys, n=1)
    if close:
        verb = "is" if len(close) == 1 else "are"
        return f"closest {verb} {', '.join(f'config.{known}' for known in close)}"
    return f"sections are {', '.join(sorted(SECTIONS))}"


def type_in_words(key: str) -> str:
    """Return the values of the type that a key may have, in words."""
    words = {bool: "True, False", int: "integers", str: "text", tuple: "tuples such as (1, 2)"}
    return words.get(SCHEMA[key].kind, "numbers")


def in_own_words(error: Exception) -> str:
    """Return an error's message in a line: those of ml_collections by the schema's words.

    ml_collections lists all other keys, and names types as Python does.
    """
    text = one_line(error)
    if unknown := re.search(r'Key "(\w+)" does not exist', text):
        return f"{unknown[1]!r}: no such key; {closest(unknown[1])}"
    found = re.match(r"Could not override field '(\w+)' \(reference\)\. (.*) is of original", text)
    if not found:
        return text
    keys = [key for key in SCHEMA if _split(key)[1] == found[1]]
    allowed = " or ".join(sorted(set(map(type_in_words, keys)))) or "its keys, as it is a section"
    return f"{found[1]} = {found[2]}: allowed are {allowed}"


def _split(key: str) -> tuple[str, str]:
    section, _, name = key.rpartition(".")
    return section, name
