"""From a config to objects. The only place that reads a config to make something."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from score_sde.checks import dataset
from score_sde.config import SAMPLER_KEYS
from score_sde.images import PixelRange
from score_sde.losses import denoising_score_matching, discrete_score_matching
from score_sde.networks import UNet
from score_sde.samplers import (
    DDIM,
    AnnealedLangevin,
    ExponentialMultistep,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)
from score_sde.samplers.base import Sampler
from score_sde.score import level_score, network_score
from score_sde.sde import SDE, VESDE, VPSDE, SubVPSDE
from score_sde.training import optimizers

_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "pc": PredictorCorrector,
    "ald": AnnealedLangevin,
    "ddim": DDIM,
    "dpmpp": ExponentialMultistep,
    "unipc": partial(ExponentialMultistep, corrector=True),
    "heun": Heun,
}
_FAST = ("ddim", "dpmpp", "unipc", "heun")


def sde(config: ConfigDict) -> SDE:
    """Return the process."""
    settings = config.sde
    if settings.name == "ve":
        return VESDE(settings.sigma_min, settings.sigma_max)
    process = {"vp": VPSDE, "subvp": SubVPSDE}[settings.name]
    return process(settings.beta_min, settings.beta_max)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Return (H, W, C) of the data set's images."""
    return dataset(config).shape


def pixel_range(config: ConfigDict) -> PixelRange:
    """Return how the data set's integers become the model's numbers, and back."""
    levels = dataset(config).levels
    return PixelRange(levels, config.model.centered, config.training.dequantize)


def network(config: ConfigDict) -> partial[UNet]:
    """Return the network's constructor, which wants `rngs` only (for `networks.init, abstract`)."""
    info = dataset(config)
    settings = config.model
    return partial(
        UNet,
        image_size=info.image_size,
        channels=info.channels,
        width=settings.width,
        multipliers=settings.multipliers,
        num_blocks=settings.num_blocks,
        block=settings.block,
        resample_with_conv=settings.resample_with_conv,
        attention_resolutions=settings.attention_resolutions,
        decoder_attention=settings.decoder_attention,
        dropout=settings.dropout,
        activation=settings.activation,
        init_scale=settings.init_scale,
        norm_groups=settings.norm_groups,
        conditional=settings.conditional,
        embedding=settings.embedding,
        fourier_scale=settings.fourier_scale,
        skip_rescale=settings.skip_rescale,
        fir=settings.fir,
        progressive_input=settings.progressive_input,
        combine=settings.combine,
        progressive_output=settings.progressive_output,
        num_classes=info.num_classes if settings.class_conditional else None,
        centered=settings.centered,
        input_frequencies=settings.input_frequencies,
        remat=settings.remat,
        dtype=np.dtype(jnp.dtype(settings.dtype)),
    )


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


def sampler_levels(config: ConfigDict) -> str:
    """Return how the sampler's score takes a discrete chain's levels, as for `network_score`."""
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
    return _SAMPLERS[settings.method](**given)


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
    process, pixels = sde(config), pixel_range(config)
    flip, conditional = config.data.flip, config.model.class_conditional
    score_loss = _score_loss(config, process, apply)

    def loss_of(params: Any, state: Any, batch: Mapping[str, Any], key: Array) -> Array:
        key_flip, key_noise, key_dropout, key_loss = jax.random.split(key, 4)
        images = batch["x"]
        if flip:
            mirrored = jax.random.bernoulli(key_flip, shape=(len(images), 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        noise = jax.random.uniform(key_noise, images.shape) if pixels.dequantize else None
        labels = batch["condition"]["labels"] if conditional else None
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
