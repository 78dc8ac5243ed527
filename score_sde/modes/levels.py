"""The test loss of a run by the level of noise."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from score_sde import build
from score_sde.batches import in_batches
from score_sde.losses import error_by_time
from score_sde.modes.results import progress
from score_sde.run import load
from score_sde.score import Model, full_precision
from score_sde.spaces import item_keys

LEVELS, IMAGES = 16, 512  # the most of the test split, at each level


def loss_by_level(config: ConfigDict, workdir: Path, step: int | None) -> dict[str, Any]:
    """The mean squared error of the noise that the network predicts for images of the test split
    (the integrand of denoising score matching; Ho et al. 2020, eq. 14), at levels that are even in
    log-SNR from `training.t_min` to T. {} without a test split.

    Returns:
        lists `t`, `log_snr`, `loss` and `standard_error` (over images), and what they are of.
    """
    trained = load(workdir, config, step=step)
    info, sde, space = trained.info, trained.sde, trained.space
    if not info.splits["test"]:
        return {}
    arrays = build.arrays(config, info, "test")
    most = min(IMAGES, config.eval.num_samples)
    rows = np.sort(np.random.default_rng(0).permutation(len(arrays.x))[:most])
    given = {name: arrays.condition[name][rows] for name in build.condition_names(config, info)}
    given = build.checked_condition(config, info, len(rows), given)
    top, bottom = (sde.log_snr(jnp.full(1, t)) for t in (config.training.t_min, sde.T))
    log_snr = top + jnp.linspace(0.0, 1.0, LEVELS) * (bottom - top)
    t = jnp.clip(sde.inverse_log_snr(log_snr), config.training.t_min, sde.T)
    key = jax.random.key(0)

    def losses(part: tuple[Array, dict[str, Array]], index: int) -> Array:
        noise = None
        if space.dequantize:
            keys = item_keys(jax.random.fold_in(key, LEVELS), len(part[0]), index)
            noise = jax.vmap(lambda key: jax.random.uniform(key, space.shape))(keys)
        x0 = space.to_model(part[0], noise)
        return _losses(key, trained.smooth_score.given(part[1]), x0, t, index)

    items = (arrays.x[rows], given)
    found = []
    with progress(len(rows), 0, "image", "loss by level") as shown:
        size = config.eval.batch_size
        for part in in_batches(losses, items, len(rows), size, trained.mesh):
            found.append(part)
            shown.done(len(part))
    values = np.concatenate(found).astype(np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return {
        "t": t.tolist(),
        "log_snr": log_snr.tolist(),
        "loss": values.mean(axis=0).tolist(),
        "standard_error": error.tolist(),
        "split": "test",
        "n": len(values),
        "seed": 0,
        "is": "mean of (sigma score + z)^2 over pixels and images, averaged weights",
    }


@jax.jit
def _losses(key: Array, score: Model, x0: Array, t: Array, first: Array) -> Array:
    with full_precision():
        return error_by_time(key, score.sde, score, x0, t, first)
