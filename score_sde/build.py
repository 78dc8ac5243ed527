"""From a config to objects. The only place that reads a config to make something."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from score_sde.checks import dataset
from score_sde.config import SAMPLER_KEYS
from score_sde.discrete import discretization
from score_sde.losses import denoising_score_matching, discrete_score_matching
from score_sde.networks import NETWORKS
from score_sde.samplers import SAMPLERS, ProbabilityFlow, Sampler
from score_sde.score import Model
from score_sde.sde import SDE, VESDE, VPSDE, SubVPSDE
from score_sde.spaces import Pixels
from score_sde.training import optimizers

_FAST = ("ddim", "dpmpp", "unipc", "heun")


def sde(config: ConfigDict) -> SDE:
    """Return the process."""
    settings = config.sde
    if settings.name == "ve":
        return VESDE(settings.sigma_min, settings.sigma_max)
    process = {"vp": VPSDE, "subvp": SubVPSDE}[settings.name]
    return process(settings.beta_min, settings.beta_max)


def image_shape(config: ConfigDict) -> tuple[int, ...]:
    """Return (H, W, C) of the data set's images."""
    return dataset(config).shape


def pixel_range(config: ConfigDict) -> Pixels:
    """Return how the data set's integers become the model's numbers, and back."""
    info = dataset(config)
    assert info.levels is not None
    return Pixels(info.shape, info.levels, config.model.centered, config.training.dequantize)


def network(config: ConfigDict) -> partial[Any]:
    """Return the network's constructor, which wants `rngs` only (for `networks.init, abstract`);
    its one argument is the specification."""
    info, module = dataset(config), NETWORKS["unet"]
    settings = {
        **config.model,
        "image_size": info.shape[0],
        "channels": info.shape[-1],
        "num_classes": info.num_classes if config.model.class_conditional else 0,
    }
    names = [field.name for field in dataclasses.fields(module.Spec)]
    return partial(module, module.Spec(**{key: settings[key] for key in names if key in settings}))


def model(
    config: ConfigDict, apply: Callable[..., Array], params: Any, *, levels: str = "smooth"
) -> Model:
    """Return the network `apply` with its parameters as a score function; `levels` as of
    `score.Model`."""
    settings = config.model
    return Model(
        params,
        sde(config),
        apply,
        settings.parameterization,
        settings.condition,
        settings.num_levels,
        levels,
    )


def sampler_levels(config: ConfigDict) -> str:
    """Return how the sampler's score takes a discrete chain's levels, as of `score.Model`."""
    if config.sampling.method == "ode":
        return "smooth"
    return "original" if config.sampling.method == "pc" and config.sampling.faithful else "matched"


def classes_in_turn(config: ConfigDict, number: int) -> Array | None:
    """Return the labels of images drawn without a wish: the classes in turn, int32 (number,).

    None for a model without classes.
    """
    if not config.model.class_conditional:
        return None
    return jnp.arange(number, dtype=jnp.int32) % dataset(config).num_classes


def sampler(config: ConfigDict) -> Sampler:
    """Return the sampler; what is unset is the sampler's own default."""
    settings = config.sampling
    if settings.method == "ode":
        return probability_flow(config)
    given = {key: settings[key] for key in SAMPLER_KEYS[settings.method]}
    given = {key: value for key, value in given.items() if value is not None}
    if settings.method in _FAST:
        given["num_levels"] = config.model.num_levels
    return SAMPLERS[settings.method](**given)


def probability_flow(config: ConfigDict) -> ProbabilityFlow:
    """Return the flow that samples (`ode`), encodes and decodes; `num_steps` are those of
    `euler`, 100 unless set."""
    settings = config.sampling
    return ProbabilityFlow(
        rtol=settings.rtol,
        atol=settings.atol,
        solver=settings.solver,
        step_control=settings.step_control,
        num_steps=(settings.num_steps or 100) if settings.solver == "euler" else None,
        denoise=settings.denoise,
        t_min=settings.t_min,
    )


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
) -> Callable[[Any, Any, Mapping[str, Any], Array], Array]:
    """Return `loss(params, state, batch, key)`, the loss of each example, (B,) float32.

    The batch is as it is stored: `x` uint8 (B, H, W, C) and `condition`, a mapping with `labels`
    int32 (B,). Flips, dequantization, times, noise and dropout all come from `key`.
    """
    pixels = pixel_range(config)
    flip, conditional = config.data.flip, config.model.class_conditional
    score_loss = _score_loss(config)

    def loss_of(params: Any, state: Any, batch: Mapping[str, Any], key: Array) -> Array:
        key_flip, key_noise, key_dropout, key_loss = jax.random.split(key, 4)
        images = batch["x"]
        if flip:
            images = pixels.flipped(key_flip, images)
        noise = jax.random.uniform(key_noise, images.shape) if pixels.dequantize else None
        condition = {"labels": batch["condition"]["labels"]} if conditional else {}
        scored = model(config, apply, params).given(condition)
        return score_loss(key_loss, scored, pixels.to_model(images, noise), key_dropout)

    return loss_of


def _score_loss(config: ConfigDict) -> Callable[[Array, Model, Array, Array], Array]:
    """Return `loss(key, model, x0, dropout_key)`, the loss of each x0, (B,)."""
    settings = config.training

    def continuous(key: Array, model: Model, x0: Array, dropout_key: Array) -> Array:
        return denoising_score_matching(
            key,
            model.sde,
            partial(model, dropout_key=dropout_key, reverse_only=True),
            x0,
            weighting=settings.loss,
            t_min=settings.t_min,
            reduce_mean=settings.reduce_mean,
        )

    def discrete(key: Array, model: Model, x0: Array, dropout_key: Array) -> Array:
        def score(x: Array, level: Array) -> Array:
            noise = model.at_level(level)
            return model.score_at(x, noise, dropout_key=dropout_key, reverse_only=True)

        chain = discretization(model.sde).chain(model.num_levels)
        return discrete_score_matching(key, chain, score, x0, reduce_mean=settings.reduce_mean)

    return discrete if config.model.num_levels else continuous
