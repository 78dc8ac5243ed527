"""A config that is valid, and what is said to it with other values."""

import pytest

from score_sde import build, rules
from score_sde.config import changed, default
from score_sde.errors import UserError
from score_sde.validation import validate


def valid():
    """The schema's defaults with a network that fits the digits."""
    return changed(default(), {"model.multipliers": (1, 2), "model.attention_resolutions": (4,)})


def refusal(values):
    """What is said to the valid config with these values, by itself or beside its data."""
    with pytest.raises(UserError) as caught:
        checked(changed(valid(), values))
    return str(caught.value)


def checked(config):
    """As a training checks it."""
    validate(config)
    rules.check(config, build.dataset(config))
