"""Figures of the test split by the level of noise: a run's loss, a classifier's accuracy."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_sde import build
from score_sde.batches import in_batches
from score_sde.data import DatasetInfo
from score_sde.losses import correct_by_time, error_by_time
from score_sde.modes.results import progress
from score_sde.run import Run
from score_sde.score import Logits, Model, full_precision
from score_sde.sde import SDE
from score_sde.spaces import item_keys

ACCURACY = "accuracy.json"  # in a classifier's folder
LEVELS, ITEMS = 16, 512  # the most of the test split, at each level
LEAST_LOG_SNR = -20.0  # where alpha(T) = 0 it is infinite
# Of x0 (B, *shape), its condition, times (K,) and the index of the first: (B, K).
Values = Callable[[Array, dict[str, Array], Array, Array], Array]


def loss_by_level(trained: Run) -> dict[str, Any]:
    """The mean squared error of the noise that the network predicts for images of the test split
    (the integrand of denoising score matching; Ho et al. 2020, eq. 14), at levels that are even in
    log-SNR from `training.t_min` to T. {} without a test split, for a network that was trained with
    noise that depends on the data, and for a consistency model.

    Returns:
        lists `t`, `log_snr`, `loss` and `standard_error` (over images), and what they are of.
    """
    config = trained.config
    consistency = build.loss_pair(config).weight == "consistency"
    if consistency or config.training.pairing != "independent":
        return {}
    key, names = jax.random.key(0), build.condition_names(config, trained.info)

    def losses(x0: Array, given: dict[str, Array], t: Array, first: Array) -> Array:
        return _losses(key, trained.smooth_score.given(given), x0, t, first)

    most = min(ITEMS, config.eval.num_samples)
    told = "mean of (sigma score + z)^2 over pixels and images, averaged weights"
    parts = trained.sde, config, trained.info, trained.mesh, names, most
    found = _by_level("loss", losses, told, *parts)
    return found and {**found, "step": trained.step}


def accuracy_by_level(
    config: ConfigDict, info: DatasetInfo, mesh: Mesh, logits: Logits
) -> dict[str, Any]:
    """The share of the test split whose class a classifier of noisy data finds. As
    `loss_by_level`, with `accuracy` in place of the loss."""
    key, names = jax.random.key(0), ("labels", *(["vector"] if info.condition else []))

    def correct(x0: Array, given: dict[str, Array], t: Array, first: Array) -> Array:
        labels = given.pop("labels")
        return _correct(key, logits.given(given), x0, labels, t, first)

    told = "share of the items whose class the classifier finds, averaged weights"
    return _by_level("accuracy", correct, told, logits.model.sde, config, info, mesh, names, ITEMS)


def _by_level(
    name: str,
    values: Values,
    told: str,
    sde: SDE,
    config: ConfigDict,
    info: DatasetInfo,
    mesh: Mesh,
    names: Sequence[str],
    most: int,
) -> dict[str, Any]:
    """The means of values of the test split at each level, given its conditions of these names."""
    space, key = build.space(config, info), jax.random.key(0)
    if not info.splits["test"]:
        return {}
    arrays = build.arrays(config, info, "test")
    rows = np.sort(np.random.default_rng(0).permutation(len(arrays.x))[:most])
    given = {each: arrays.condition[each][rows] for each in names}
    top, bottom = (sde.log_snr(jnp.full(1, t)) for t in (config.training.t_min, sde.T))
    bottom = jnp.maximum(bottom, LEAST_LOG_SNR)
    log_snr = top + jnp.linspace(0.0, 1.0, LEVELS) * (bottom - top)
    t = jnp.clip(sde.inverse_log_snr(log_snr), config.training.t_min, sde.T)

    def of_part(part: tuple[Array, dict[str, Array]], index: int) -> Array:
        noise = None
        if space.dequantize:
            keys = item_keys(jax.random.fold_in(key, LEVELS), len(part[0]), index)
            noise = jax.vmap(lambda key: jax.random.uniform(key, space.shape))(keys)
        return values(space.to_model(part[0], noise), dict(part[1]), t, jnp.asarray(index))

    items = (arrays.x[rows], given)
    found = []
    with progress(len(rows), 0, "item", f"{name} by level") as shown:
        for part in in_batches(of_part, items, len(rows), config.eval.batch_size, mesh):
            found.append(part)
            shown.done(len(part))
    table = np.concatenate(found).astype(np.float64)
    error = table.std(axis=0, ddof=1) / np.sqrt(len(table))
    return {
        "t": t.tolist(),
        "log_snr": log_snr.tolist(),
        name: table.mean(axis=0).tolist(),
        "standard_error": error.tolist(),
        "split": "test",
        "n": len(table),
        "seed": 0,
        "is": told,
    }


@jax.jit
def _losses(key: Array, score: Model, x0: Array, t: Array, first: Array) -> Array:
    with full_precision():
        return error_by_time(key, score.sde, score, x0, t, first)


@jax.jit
def _correct(key: Array, logits: Logits, x0: Array, labels: Array, t: Array, first: Array) -> Array:
    with full_precision():
        return correct_by_time(key, logits.model.sde, logits, x0, labels, t, first)
