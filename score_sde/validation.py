"""Whether a config can be used: each value by itself, then beside the others."""

from types import ModuleType

from ml_collections import ConfigDict

from score_sde.config import flat, is_own, refuse, resolve, type_in_words, unknown_key
from score_sde.errors import UserError, one_line
from score_sde.schema import SCHEMA


def import_rules() -> ModuleType:
    """Import `score_sde.rules`, and with it JAX and all that a config can name.

    Raises:
        UserError: a variable of the environment that JAX refuses.
    """
    try:
        from score_sde import rules
    except ValueError as error:  # which names it
        raise UserError(f"the environment: {one_line(error)}") from error
    return rules


def validate(config: ConfigDict) -> None:
    """Raise UserError at the first key that is unknown, missing, of a wrong type or impossible, by
    itself or beside the others.

    Rules that depend on the running machine (does the number of devices divide the batch?) are
    those of `rules.check_devices`.
    """
    values = flat(config)
    for key, value in values.items():
        if key not in SCHEMA:
            raise unknown_key(key, value)
    rules = import_rules()
    for key, row in SCHEMA.items():
        if key not in values:
            raise UserError(f"config.{key}: missing; a config starts as score_sde.config.default()")
        value = values[key]
        if value is None and row.default is None:
            continue
        if row.kind is not object and type(value) is not row.kind:
            raise refuse(key, value, type_in_words(key))
        if type(value) is int and abs(value) >= 2**31 and not key.endswith("seed"):
            raise refuse(key, value, "integers below 2**31")
        if not row.allowed.ok(value):
            raise refuse(key, value, row.allowed.words)
        if isinstance(value, str) and is_own(key, value):
            resolve(key, value)
    rules.check(config)
