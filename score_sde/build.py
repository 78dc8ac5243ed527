"""From a config to objects. The only place that reads a config to make something.

An object checks its own settings. `check` makes the objects of a config, and adds the few rules
that cross them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from score_sde.config import flat, is_own, kind_keys, refuse, resolve, takes
from score_sde.data import DatasetInfo
from score_sde.errors import UserError
from score_sde.images import PixelRange
from score_sde.losses import denoising_score_matching, discrete_score_matching
from score_sde.networks import UNet
from score_sde.samplers import ProbabilityFlow
from score_sde.samplers.base import Sampler
from score_sde.schema import SCHEMA
from score_sde.score import level_score, network_score
from score_sde.sde import SDE
from score_sde.training import optimizers

# --- From the names in a config to objects --------------------------------------------------------


@contextmanager
def errors_of(section: str) -> Iterator[None]:
    """Turn the ValueError of an object into the UserError of the section that it is made of.

    Where the error begins with a setting, as in "order = 3: allowed are ...", that is the key.
    """
    try:
        yield
    except ValueError as error:
        setting = re.match(r"(\w+) = ", f"{error}")
        is_key = setting is not None and f"{section}.{setting[1]}" in SCHEMA
        raise UserError(f"config.{section}{'.' if is_key else ': '}{error}") from error


def _made(key: str, config: ConfigDict, **more: Any) -> Any:
    """The object that a key names, with what it takes of the key's section and of `more`."""
    section, _, name = key.partition(".")
    make = resolve(key, config[section][name])
    with errors_of(section):
        return make(**_settings(key, make, config, **more))


def _settings(
    key: str, make: Callable[..., Any], config: ConfigDict, **more: Any
) -> dict[str, Any]:
    """What a class takes of a key's section and of `more`. A value at the schema's default is left
    to the class, whose own default may be another.

    Raises:
        UserError: it takes something else, too, that has no default.
    """
    section, _, own_name = key.partition(".")
    given: dict[str, Any] = {}
    for name, parameter in takes(make).items():
        has_default = parameter.default is not parameter.empty
        setting, value = f"{section}.{name}", config[section].get(name)
        if name in more:
            given[name] = more[name]
        elif value is not None and not (has_default and value == SCHEMA[setting].default):
            given[name] = resolve(setting, value) if is_own(setting, value) else value
        elif not has_default and parameter.kind is not parameter.VAR_KEYWORD:
            own = config[section][own_name]
            raise UserError(f"config.{key} = {own!r}: its setting {name} has no default")
    return given


def sde(config: ConfigDict) -> SDE:
    """Return the process."""
    process: SDE = _made("sde.name", config)
    return process


def dataset(config: ConfigDict) -> DatasetInfo:
    """Return the facts of the config's data set, at the config's image size."""
    info: DatasetInfo = resolve("data.name", config.data.name)
    with errors_of("data"):
        return info.resized(config.data.image_size)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Return (H, W, C) of the data set's images."""
    return dataset(config).shape


def pixel_range(config: ConfigDict) -> PixelRange:
    """Return how the data set's integers become the model's numbers, and back."""
    levels = dataset(config).levels
    return PixelRange(levels, config.model.centered, config.training.dequantize)


def network(config: ConfigDict) -> partial[Any]:
    """Return the network's constructor with all its settings, which wants `rngs` only (for
    `networks.init, abstract`)."""
    info, settings = dataset(config), config.model
    make = resolve("model.name", settings.name)
    given = _settings(
        "model.name",
        partial(make, rngs=None),  # which comes later
        config,
        image_size=info.image_size,
        channels=info.channels,
        num_classes=info.num_classes if settings.class_conditional else None,
        dtype=np.dtype(jnp.dtype(settings.dtype)),
    )
    defaults = {name: parameter.default for name, parameter in takes(make).items()}
    del defaults["rngs"]
    return partial(make, **defaults | given)


def score(
    config: ConfigDict, apply: Callable[..., Array], *, levels: str = "smooth"
) -> Callable[..., Array]:
    """Return `score(params, x, t, labels=None, **options)` of the network `apply`; `levels` as for
    `network_score`."""
    settings = config.model
    return network_score(
        apply,
        sde(config),
        settings.parameterization,
        settings.condition,
        num_levels=settings.num_levels,
        levels=levels,
    )


def classes_in_turn(config: ConfigDict, number: int) -> Array | None:
    """Return the labels of images drawn without a wish: the classes in turn, int32 (number,).

    None for a model without classes.
    """
    if not config.model.class_conditional:
        return None
    return jnp.arange(number, dtype=jnp.int32) % dataset(config).num_classes


def sampler(config: ConfigDict) -> Sampler:
    """Return the sampler; what is unset is the sampler's own default."""
    levels = config.model.num_levels
    chosen: Sampler = _made("sampling.method", config, num_levels=levels)
    return chosen


def probability_flow(config: ConfigDict) -> ProbabilityFlow:
    """Return the flow that encodes and decodes, whatever the sampler."""
    with errors_of("sampling"):
        return ProbabilityFlow(**_settings("sampling.method", ProbabilityFlow, config))


def keys_read(config: ConfigDict) -> set[str]:
    """Return the keys of the section `sampling` that the sampler reads, given the other values."""
    make = resolve("sampling.method", config.sampling.method)
    return (takes(make).keys() & set(config.sampling)) - sampler(config).without_effect


def unused(config: ConfigDict) -> set[str]:
    """Return the keys that process, network, sampler and data set do not use, given the others."""
    keys = {f"sampling.{name}" for name in sampler(config).without_effect}
    for key in ("sde.name", "model.name", "sampling.method"):
        section, _, name = key.partition(".")
        others = kind_keys(key) - takes(resolve(key, config[section][name])).keys()
        keys |= {f"{section}.{other}" for other in others}
    return keys & SCHEMA.keys() | {"data.condition", "data.bin_width"}  # of vectors


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimizer with its schedule."""
    settings = config.training
    return optimizers.optimizer(
        settings.learning_rate,
        num_steps=settings.num_steps,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
        gradient_clip=settings.gradient_clip,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
    )


def loss(
    config: ConfigDict, apply: Callable[..., Array]
) -> Callable[[Any, Mapping[str, Array], Array], Array]:
    """Return `loss(params, batch, key)`, the loss of each example, (B,) float32.

    The batch is as it is stored: `images` uint8 (B, H, W, C) and `labels` int32 (B,). Flips,
    dequantization, times, noise and dropout all come from `key`.
    """
    process, pixels = sde(config), pixel_range(config)
    flip, conditional = config.data.flip, config.model.class_conditional
    score_loss = _score_loss(config, process, apply)

    def loss_of(params: Any, batch: Mapping[str, Array], key: Array) -> Array:
        key_flip, key_noise, key_dropout, key_loss = jax.random.split(key, 4)
        images = batch["images"]
        if flip:
            mirrored = jax.random.bernoulli(key_flip, shape=(len(images), 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        noise = jax.random.uniform(key_noise, images.shape) if pixels.dequantize else None
        labels = batch["labels"] if conditional else None
        x0 = pixels.to_model(images, noise)
        return score_loss(key_loss, params, x0, labels, key_dropout)

    return loss_of


def _score_loss(
    config: ConfigDict, process: SDE, apply: Callable[..., Array]
) -> Callable[[Array, Any, Array, Array | None, Array], Array]:
    """Return `loss(key, params, x0, labels, dropout_key)`, the loss of each x0, (B,)."""
    settings = config.training

    def continuous(
        key: Array, params: Any, x0: Array, labels: Array | None, dropout_key: Array
    ) -> Array:
        def score_fn(x: Array, t: Array) -> Array:
            return score_of(params, x, t, labels, dropout_key=dropout_key, train=True)

        return denoising_score_matching(
            key,
            process,
            score_fn,
            x0,
            weighting=settings.loss,
            t_min=settings.t_min,
            reduce_mean=settings.reduce_mean,
        )

    def discrete(
        key: Array, params: Any, x0: Array, labels: Array | None, dropout_key: Array
    ) -> Array:
        chain = process.chain(config.model.num_levels)

        def score_fn(x: Array, level: Array) -> Array:
            told = (level.astype(x.dtype), chain.alpha[level], chain.sigma[level])
            return score_at(params, x, *told, labels, dropout_key=dropout_key, train=True)

        return discrete_score_matching(key, chain, score_fn, x0, reduce_mean=settings.reduce_mean)

    score_of = score(config, apply)
    score_at = level_score(apply, config.model.parameterization)
    return discrete if config.model.num_levels else continuous


# --- Checks ---------------------------------------------------------------------------------------


def check(config: ConfigDict) -> None:
    """Raise UserError for values that do not go together. Nothing is computed.

    Args:
        config: each value must be allowed by itself (`config.validate`, which calls this).
    """
    values, info, process = flat(config), dataset(config), sde(config)
    if config.model.num_levels:
        with errors_of("model"):
            process.check_chain(config.model.num_levels)
    for key, allowed in (*_unet_rules(config, info), *_rules(config, info, process)):
        raise refuse(key, values[key], allowed)
    network(config)
    with errors_of("sampling"):
        sampler(config).check(process)
    probability_flow(config)


def _rules(config: ConfigDict, info: DatasetInfo, process: SDE) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that contradicts another object's or the data."""
    model, likelihood = config.model, config.likelihood
    if model.embedding == "fourier" and model.condition == "time":
        yield "model.condition", "log_sigma, log_snr with config.model.embedding = 'fourier'"
    if model.class_conditional and not info.num_classes:
        yield "model.class_conditional", f"False: {info.name} has no classes"
    train, split = info.splits["train"], info.splits[likelihood.split]
    if config.training.batch_size > train:
        yield "training.batch_size", f"1 to {train}, the training images of {info.name}"
    if likelihood.num_images > split:
        yield (
            "likelihood.num_images",
            f"0 (all) to {split}, the {likelihood.split} images of {info.name}",
        )
    narrow = likelihood.dequantization == "truncated_normal"
    if narrow and likelihood.t_min < process.t_resolved:
        yield (
            "likelihood.t_min",
            f"times from {process.t_resolved:g} with config.likelihood.dequantization = "
            f"'truncated_normal' under {type(process).__name__}, as sigma is next to float32's "
            "rounding before",
        )
    if model.num_levels:
        values = flat(config)
        for key, allowed in (
            ("model.parameterization", ("epsilon", "score")),
            ("model.embedding", ("positional",)),  # Fourier features are of a log sigma or log SNR
            ("model.condition", ("time",)),
            ("training.loss", ("paper",)),
        ):
            if values[key] not in allowed:
                yield key, f"{', '.join(allowed)} with config.model.num_levels = {model.num_levels}"


# TO BE DELETED with UNetSpec, which checks the same in its `__post_init__`. `class_conditional`
# moves to `_rules`: it is the key of `num_classes`.
def _unet_rules(config: ConfigDict, info: DatasetInfo) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that the U-Net cannot have."""
    model = config.model
    if resolve("model.name", model.name) is not UNet:
        return
    levels = len(model.multipliers)
    factor = 2 ** (levels - 1)
    if info.image_size % factor:
        most = (info.image_size & -info.image_size).bit_length()
        yield (
            "model.multipliers",
            f"1 to {most} resolutions, as {info.name}'s {info.image_size} pixels are not divisible "
            f"by the U-Net's factor {factor}",
        )
    resolutions = [info.image_size // 2**level for level in range(levels)]
    if not set(model.attention_resolutions) <= set(resolutions):
        yield "model.attention_resolutions", f"the levels' {', '.join(map(str, resolutions))}"
    if model.norm_groups and model.width % model.norm_groups:
        yield "model.norm_groups", f"0 and divisors of config.model.width = {model.width}"
    if not model.conditional and model.class_conditional:
        yield "model.class_conditional", "False with config.model.conditional = False"
    if not model.conditional and model.input_frequencies:
        yield "model.input_frequencies", "() with config.model.conditional = False"


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raise UserError unless the devices divide the training batch."""
    size = config.training.batch_size
    if size % devices:
        raise refuse("training.batch_size", size, f"multiples of the {devices} devices")
