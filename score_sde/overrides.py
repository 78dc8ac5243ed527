"""Settings as they are typed, `--config.section.key=value`, put into a config."""

import difflib
import re
from collections.abc import Collection, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from score_sde.config import changed, type_in_words, unknown_key
from score_sde.errors import UserError, one_line
from score_sde.schema import SCHEMA

_OVERRIDE = re.compile(r"--?(no)?config\.(?P<key>[^=]*)(=(?P<value>.*))?", re.DOTALL)

_FROM = re.compile(r"^(--?config\.training)\.from\b")  # ml_collections reads names as Python's


def check(arguments: Sequence[str], others: Collection[str]) -> None:
    """Raise UserError at the first flag that is neither `--config.key` of a key of the schema nor
    one of the others, for which it may be a slip."""
    known = SCHEMA.keys() - {"name"}  # which is the preset's file
    for argument in arguments:
        override = _OVERRIDE.fullmatch(argument)
        if override and override["key"] not in known:
            raise unknown_key(override["key"], override["value"] or "")
        if argument.startswith("-") and not override and not re.fullmatch(r"-[\d.].*", argument):
            name = argument.split("=")[0]
            allowed = [f"--{other}" for other in others]
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"closest is {close[0]}" if close else f"allowed are {', '.join(allowed)}"
            raise UserError(f"{name}: no such flag; {hint} (and --config.section.key=value)")


def keys(arguments: Sequence[str]) -> set[str]:
    """Return the keys that the arguments set."""
    return {match["key"] for match in map(_OVERRIDE.fullmatch, arguments) if match}


def apply(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Return a config with the arguments' values, not validated. Another sampler than the config's
    begins with its own settings.

    Raises:
        UserError: a value of another type, a missing one, or what is no flag.
    """
    found = _applied(config, arguments)
    method = found.sampling.method
    if method == config.sampling.method:
        return found
    return _applied(changed(config, {"sampling.method": method}), arguments)


def _applied(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    config = changed(config, {})
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    argv = ["", *(_FROM.sub(r"\1['from']", argument) for argument in _last_tuples(arguments))]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        found = re.match(r"flag --(config\.(.+?))=(.*?): ", f"{error}", re.DOTALL)
        assert found, error  # the only flags here are ours
        allowed = type_in_words(found[2])
        raise UserError(f"{found[1]} = {found[3]!r}: allowed are {allowed}") from None
    except flags.Error as error:
        raise flag_error(error) from None
    except ValueError as error:  # --noconfig.section.key=value
        raise UserError(one_line(error)) from None
    if left:
        raise UserError(
            f"{left[0]!r}: not a flag; values follow their key as --config.section.key=value"
        )
    return config


def _last_tuples(arguments: Sequence[str]) -> list[str]:
    """The arguments, each tuple in them once: ml_collections joins those that are given twice, and
    of all other keys the last value holds."""
    places: dict[str, list[range]] = {}
    end = 0  # of the last one
    for place, argument in enumerate(arguments):
        found = _OVERRIDE.fullmatch(argument)
        if place >= end and found and found["key"] in SCHEMA and SCHEMA[found["key"]].kind is tuple:
            end = place + (2 if found["value"] is None else 1)  # "--key value" or "--key=value"
            places.setdefault(found["key"], []).append(range(place, end))
    earlier = {place for each in places.values() for parts in each[:-1] for place in parts}
    return [argument for place, argument in enumerate(arguments) if place not in earlier]


def flag_error(error: flags.Error) -> UserError:
    """Return the user's mistake that absl reports."""
    missing = re.fullmatch(r"Missing value for flag (\S+)", f"{error}")
    return UserError(f"{missing[1]}: a value is missing" if missing else one_line(error))
