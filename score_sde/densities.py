"""Likelihoods by the config's method: `likelihood.method`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array
from ml_collections import ConfigDict

from score_sde import build
from score_sde.bounds import Bound, chain_bound, likelihood_bound
from score_sde.data import DatasetInfo
from score_sde.likelihood import DataLikelihood, data_log_likelihood
from score_sde.score import Model
from score_sde.sde import SDE

Likelihoods = DataLikelihood | Bound


class Method(NamedTuple):
    """One way to a likelihood.

    Attributes:
        compute: (key, sde, model, data, space, first=..., **settings) -> those of a batch.
        keys: of the section `likelihood` that it reads, beside those that all read.
        check: (sde, score) -> None; ValueError for a process that it cannot have.
    """

    compute: Callable[..., Likelihoods]
    keys: tuple[str, ...]
    check: Callable[[SDE, Any], None]


IN_TIME = ("num_times", "t_min")
SOLVE = ("divergence", "num_probes", "rtol", "atol", "max_steps", "t_min")
METHODS = {
    "ode": Method(
        data_log_likelihood,
        ("dequantization", "num_importance", *SOLVE),
        lambda sde, score: sde.check_flow(score),
    ),
    # The levels of a chain end before alpha is 0. Beyond them its network was not trained.
    "bound": Method(
        likelihood_bound, IN_TIME, lambda sde, score: sde.check() if score.num_levels else None
    ),
    "vlb": Method(
        # The model has its process.
        lambda key, sde, *parts, **settings: chain_bound(key, *parts, **settings),
        ("variance", *IN_TIME),
        lambda sde, score: None,
    ),
}
"""The methods by their names in a config."""
COMMON = ("seed", "split", "num_images", "batch_size", "method")


def compute(
    config: ConfigDict, info: DatasetInfo, key: Array, model: Model, data: Array, first: int
) -> Likelihoods:
    """Return the likelihoods of items (B, *shape) under a model that is smooth in t, by the
    config's settings. `first` is the index of the first item."""
    method = METHODS[config.likelihood.method]
    settings = {name: config.likelihood[name] for name in method.keys}
    if "divergence" in settings:
        settings["divergence"] = build.divergence(config, info)
    space = build.space(config, info)
    return method.compute(key, model.sde, model, data, space, first=first, **settings)


def keys_read(config: ConfigDict, info: DatasetInfo | None) -> set[str]:
    """Return the keys of the section `likelihood` that are read, given the other values; without
    `info` those that are read of some data."""
    unread = set()
    divergence = build.divergence(config, info) if info else config.likelihood.divergence
    if divergence == "exact":
        unread.add("num_probes")
    if info and not build.space(config, info).has_bins:
        unread |= {"dequantization", "num_importance"}
    if config.likelihood.method == "vlb" and config.model.num_levels:
        unread |= set(IN_TIME)
    return {*COMMON, *METHODS[config.likelihood.method].keys} - unread


def of_rows(rows: Mapping[str, Any]) -> Likelihoods:
    """Return the likelihoods of a file's columns. A missing column is None."""
    kind: Any = Bound if "prior" in rows else DataLikelihood
    likelihoods: Likelihoods = kind(**{name: rows.get(name) for name in kind._fields})
    return likelihoods
