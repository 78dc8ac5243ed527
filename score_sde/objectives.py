"""From a config to the losses of training, as functions of parameters and a stored batch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from score_sde import build, consistency, guidance, losses, second_order, uncertainty, variances
from score_sde.augmentation import augmented
from score_sde.data import DatasetInfo
from score_sde.discrete import discretization
from score_sde.errors import require
from score_sde.learned import constants
from score_sde.score import Model
from score_sde.spaces import Pixels, Space
from score_sde.variational import variational_loss


def loss(
    config: ConfigDict, apply: Callable[..., Array], info: DatasetInfo
) -> Callable[[Any, Any, Mapping[str, Any], Array], Any]:
    """Return `loss(params, state, batch, key)`, the loss of each example, (B,) float32; a loss that
    keeps a `history` in the state returns it beside that.

    The batch is as it is stored: `x`, the space's data (B, *shape), and `condition`, a mapping.
    Flips, dequantization, augmentation, times, noise and all dropout come from `key`.

    Raises:
        UserError: a loss that does not train the variances that the network learns.
    """
    where, names = build.space(config, info), build.condition_names(config, info)
    settings, on_levels = config.training, bool(config.model.num_levels)
    trains_all = settings.loss in losses.OF_VARIANCES or not config.model.learned_variance
    with build.errors_of("training"):
        allowed = f"{', '.join(losses.OF_VARIANCES)} with config.model.learned_variance = True"
        require(trains_all, "loss", settings.loss, allowed)

    def loss_of(params: Any, state: Any, batch: Mapping[str, Any], key: Array) -> Any:
        *keys, dropout_key, key_loss, key_label = jax.random.split(key, 5)
        condition = {name: batch["condition"][name] for name in names}
        if settings.label_dropout:
            labels, share = condition["labels"], jnp.float32(settings.label_dropout)
            dropped = jax.random.bernoulli(key_label, share, labels.shape)
            condition["labels"] = jnp.where(dropped, guidance.NO_LABEL, labels)
        data, x0 = _trained_on(config, where, keys, batch["x"])
        if config.data.augment:
            # The key after those of the split: `split` and `fold_in` count alike.
            own, how = jax.random.fold_in(key, 5), (config.data.augment, config.data.augmentations)
            x0, condition["augmentation"] = augmented(own, x0, *how)
        model = build.model(config, apply, params).given(condition)
        options: Any = {"dropout_key": dropout_key, "reverse_only": True}
        if on_levels:
            return _on_levels(config, where, key_loss, model, x0, data, state, **options)
        return _in_time(config, key_loss, model, x0, state, **options)

    return loss_of


def history(config: ConfigDict) -> variances.History | None:
    """Return what the loss keeps from step to step, before the first; None where it keeps
    nothing."""
    keeps = build.loss_pair(config).weight == "vlb"
    return variances.no_history(config.model.num_levels) if keeps else None


def _in_time(
    config: ConfigDict, key: Array, model: Model, x0: Array, state: Any, **options: Any
) -> Array:
    """The loss of a model in continuous time."""
    if constants(model.sde):
        return variational_loss(key, model, x0, **options)
    settings, pair = config.training, build.loss_pair(config)
    keys = {"t_min"} | build.times_keys(config)
    more: Any = {key: settings[key] for key in keys if settings[key] is not None}
    if pair.weight == "consistency":
        every = settings.halve_every or -(-settings.num_steps // consistency.STAGES)
        more |= {"times": pair.times, "halvings": state.step // every}
        return consistency.loss(key, model.sde, partial(model.denoised, **options), x0, **more)
    more |= {"reduce_mean": settings.reduce_mean}
    if pair.weight == "second_order":
        score = partial(model, **options | {"reverse_only": False})
        return second_order.loss(key, model.sde, score, x0, times=pair.times, **more)
    more |= {"loss": pair, "log_size": _log_size(config, model), "pairing": settings.pairing}
    score, error = partial(model, **options), partial(model.error, **options)
    return losses.denoising_score_matching(key, model.sde, score, x0, error=error, **more)


def _on_levels(
    config: ConfigDict,
    where: Space,
    key: Array,
    model: Model,
    x0: Array,
    data: Array,
    state: Any,
    **options: Any,
) -> Any:
    """The loss of a model of a chain's levels, as of `loss`."""
    weight = build.loss_pair(config).weight
    if weight == "hybrid":
        return variances.hybrid_loss(key, model, x0, data, where, **options)
    if weight == "vlb":
        return variances.vlb_loss(key, model, x0, data, where, state.history, **options)
    chain = discretization(model.sde).chain(model.num_levels)

    def score(x: Array, level: Array) -> Array:
        return model.score_at(x, model.at_level(level), **options)

    more: Any = {"reduce_mean": config.training.reduce_mean, "log_size": _log_size(config, model)}
    return losses.discrete_score_matching(key, chain, score, x0, **more)


def _log_size(config: ConfigDict, model: Model) -> losses.LogSize | None:
    """The learned logarithm of the loss by noise level; None where none is learned."""
    if not config.training.uncertainty:
        return None
    return partial(uncertainty.log_size, model.params["constants"][uncertainty.NAME])


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
        (_, x0), labels = _trained_on(config, where, keys, batch["x"]), batch["condition"]["labels"]
        return losses.cross_entropy(key_loss, process, logits, x0, labels, t_min=t_min)

    return loss_of


def _trained_on(
    config: ConfigDict, where: Space, keys: Sequence[Array], x: Array
) -> tuple[Array, Array]:
    """Stored items as a training sees them, flipped; and these dequantized, in the model's
    units."""
    if config.data.flip and isinstance(where, Pixels):
        x = where.flipped(keys[0], x)
    noise = jax.random.uniform(keys[1], x.shape, jnp.float32) if where.dequantize else None
    return x, where.to_model(x, noise)
