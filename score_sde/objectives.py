"""From a config to the losses of training, as functions of parameters and a stored batch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from score_sde import build, consistency, guidance, losses, uncertainty
from score_sde.augmentation import augmented
from score_sde.data import DatasetInfo
from score_sde.discrete import discretization
from score_sde.learned import constants
from score_sde.score import Model
from score_sde.spaces import Pixels, Space
from score_sde.variational import variational_loss


def loss(
    config: ConfigDict, apply: Callable[..., Array], info: DatasetInfo
) -> Callable[[Any, Any, Mapping[str, Any], Array], Array]:
    """Return `loss(params, state, batch, key)`, the loss of each example, (B,) float32.

    The batch is as it is stored: `x`, the space's data (B, *shape), and `condition`, a mapping.
    Flips, dequantization, augmentation, times, noise and all dropout come from `key`.
    """
    where, names = build.space(config, info), build.condition_names(config, info)
    settings = config.training

    def log_size(model: Model) -> losses.LogSize | None:
        if not settings.uncertainty:
            return None
        return partial(uncertainty.log_size, model.params["constants"][uncertainty.NAME])

    def continuous(key: Array, model: Model, x0: Array, state: Any, **options: Any) -> Array:
        if constants(model.sde):
            return variational_loss(key, model, x0, **options)
        keys, pair = {"t_min"} | build.times_keys(config), build.loss_pair(config)
        more: Any = {key: settings[key] for key in keys if settings[key] is not None}
        if pair.weight == "consistency":
            every = settings.halve_every or -(-settings.num_steps // consistency.HALVINGS)
            more |= {"times": pair.times, "halvings": state.step // every}
            return consistency.loss(key, model.sde, partial(model.denoised, **options), x0, **more)
        more |= {"reduce_mean": settings.reduce_mean, "loss": pair, "log_size": log_size(model)}
        more["pairing"] = settings.pairing
        score, error = partial(model, **options), partial(model.error, **options)
        return losses.denoising_score_matching(key, model.sde, score, x0, error=error, **more)

    def discrete(key: Array, model: Model, x0: Array, state: Any, **options: Any) -> Array:
        chain, mean = discretization(model.sde).chain(model.num_levels), settings.reduce_mean

        def score(x: Array, level: Array) -> Array:
            return model.score_at(x, model.at_level(level), **options)

        more: Any = {"reduce_mean": mean, "log_size": log_size(model)}
        return losses.discrete_score_matching(key, chain, score, x0, **more)

    def loss_of(params: Any, state: Any, batch: Mapping[str, Any], key: Array) -> Array:
        *keys, dropout_key, key_loss, key_label = jax.random.split(key, 5)
        condition = {name: batch["condition"][name] for name in names}
        if settings.label_dropout:
            labels, share = condition["labels"], jnp.float32(settings.label_dropout)
            dropped = jax.random.bernoulli(key_label, share, labels.shape)
            condition["labels"] = jnp.where(dropped, guidance.NO_LABEL, labels)
        x0 = _trained_on(config, where, keys, batch["x"])
        if config.data.augment:
            # The key after those of the split: `split` and `fold_in` count alike.
            own, how = jax.random.fold_in(key, 5), (config.data.augment, config.data.augmentations)
            x0, condition["augmentation"] = augmented(own, x0, *how)
        scored = build.model(config, apply, params).given(condition)
        score_loss = discrete if config.model.num_levels else continuous
        return score_loss(key_loss, scored, x0, state, dropout_key=dropout_key, reverse_only=True)

    return loss_of


def classifier_loss(
    config: ConfigDict, apply: Callable[..., Array], info: DatasetInfo
) -> Callable[[Any, Any, Mapping[str, Any], Array], Array]:
    """As `loss`, the cross entropy of a classifier of noisy data."""
    where, process, t_min = build.space(config, info), build.sde(config), config.training.t_min

    def loss_of(params: Any, state: Any, batch: Mapping[str, Any], key: Array) -> Array:
        *keys, dropout_key, key_loss = jax.random.split(key, 4)
        given = {name: each for name, each in batch["condition"].items() if name != "labels"}
        of_batch = build.classifier(config, apply, params).given(given)
        logits = partial(of_batch, dropout_key=dropout_key)
        x0, labels = _trained_on(config, where, keys, batch["x"]), batch["condition"]["labels"]
        return losses.cross_entropy(key_loss, process, logits, x0, labels, t_min=t_min)

    return loss_of


def _trained_on(config: ConfigDict, where: Space, keys: Sequence[Array], x: Array) -> Array:
    """Stored items as a training sees them: flipped, dequantized, in the model's units."""
    if config.data.flip and isinstance(where, Pixels):
        x = where.flipped(keys[0], x)
    noise = jax.random.uniform(keys[1], x.shape, jnp.float32) if where.dequantize else None
    return where.to_model(x, noise)
