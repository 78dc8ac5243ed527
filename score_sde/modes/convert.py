"""`--mode convert`: make a workdir of another code base's checkpoint, or of an export of ours."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from score_sde import build, convert, networks, workdirs
from score_sde.config import changed, flat, refuse, resolve, takes
from score_sde.convert import plausible
from score_sde.data import DatasetInfo
from score_sde.errors import UserError
from score_sde.modes import start
from score_sde.networks.plan import plan
from score_sde.samplers.base import from_prior
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.mesh import data_mesh
from score_sde.training.state import TrainState, create

# Settings that stand in no array, beside the process. Some arrays show `fir`, see `_unseen`.
UNSEEN = (
    "data.image_size",
    *("model.parameterization", "model.condition", "model.num_levels", "model.centered"),
    *("model.embedding", "model.activation", "model.skip_rescale", "model.norm_groups"),
    *("model.norm_eps", "model.head_width", "model.num_heads", "model.level_scale"),
    *("model.fir", "model.symmetric_padding"),
)
# Of these, the ones that make another function of the same arrays, and the values to try, beside
# what the source leaves to choose (`convert.choices`).
TRIED: dict[str, tuple[Any, ...]] = {
    "model.skip_rescale": (False, True),
    "model.norm_groups": (0, 32, 16, 8),
    "model.fir": (False, True),
}


def run(
    config: ConfigDict,
    workdir: Path,
    source: Path,
    weights: str,
    force: bool,
    new_attention_order: bool,
) -> None:
    """Convert; nothing is written before everything has been read, fits, and predicts noise.

    Args:
        config: says the network that the source must be one of.
        workdir: new or empty.
        source: a file or folder, see `score_sde.convert`.
        weights: "averaged" or "raw", what sampling and likelihood will take; "" is averaged, if the
            source says what its weights are.
        force: write it even if it does not predict noise.
        new_attention_order: as of `convert.read`.
    """
    start(1)
    info = build.dataset(config)
    is_export = (source / convert.exported.FILE).is_file()
    height, width = info.shape[:2] if info.levels else (1, 1)
    if height * width > plausible.LARGEST and not is_export:
        allowed = f"sizes of up to {plausible.LARGEST} pixels, as a conversion draws an image"
        raise refuse("data.image_size", config.data.image_size, allowed)
    make = build.network(config, info)
    foreign = convert.read(source, make.args[0], new_attention_order)
    _check(config, foreign, weights, source)
    state = _state(config, make, foreign, weights or "averaged", source)
    _print_level_scale(config, source)
    noise = "" if is_export else _predicts_noise(config, info, make, state.ema, source, force)
    with workdirs.filled("workdir", workdir):
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save(state, foreign.step)
        path = workdirs.save(config, workdir, info)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    trained = "with" if foreign.mu and config.training.optimizer == "adam" else "without"
    kind = f"{weights or 'averaged'} weights after {foreign.step} steps"
    if not foreign.step and foreign.params is None and not weights:
        kind = "the only weights there, which do not say their steps"
    print(f"{source}: {kind}, {trained} Adam's moments")
    print(f"parameters: {size:,}")
    if not is_export:
        _print_origins(config, make, foreign, source)
        print(noise)
    print(f"config: {path}")
    print(f"next: --mode sample --workdir {workdir}")


def _check(config: ConfigDict, foreign: convert.Foreign, weights: str, source: Path) -> None:
    """Raise UserError for what a checkpoint says that cannot be, or that the config contradicts."""
    for steps in (foreign.step, foreign.adam_steps):
        if not 0 <= steps < 2**31 - 1:
            raise UserError(f"--source {source}: its steps are {steps}; allowed are 0 to 2**31 - 2")
    if foreign.nameless and not weights:
        raise UserError(
            f"--weights: missing; {source} has one set of weights and does not say which: allowed "
            "are averaged, raw"
        )
    if weights == "raw" and foreign.params is None and not foreign.nameless:
        allowed = "allowed is to leave the flag out"
        raise UserError(f"--weights = 'raw': {source} has one set of weights; {allowed}")
    for name, moment in (foreign.nu or {}).items():
        if moment.size and not (moment >= 0).all():
            raise UserError(
                f"--source {source}: Adam's second moment of {name} is negative; allowed are means "
                "of squares"
            )
    _check_levels(config, foreign.sigmas)


def _predicts_noise(
    config: ConfigDict,
    info: DatasetInfo,
    make: partial[Any],
    ema: Any,
    source: Path,
    force: bool,
) -> str:
    """Return, in words, how well the network predicts the noise that it is given.

    Raises:
        UserError: it does not, and is not forced.
    """
    print("checking that the network predicts noise")
    found = _noise_errors(config, info, make, ema)
    failure = found.failure()
    if failure and not force:
        allowed = ", or ".join([*_others(config, info, make, ema, source), "--force"])
        raise UserError(
            f"--source {source}: with this config its network fails the check: {failure}, or "
            f"{allowed} (docs/checkpoints.md has the settings that no array shows)"
        )
    errors = ", ".join(f"{error:.2f}" for error in found.error)
    ends = f"log-SNRs of {found.log_snr[0]:.0f} to {found.log_snr[-1]:.1f}"
    within = "within the bounds of trained networks"
    verdict = f"not {within}: forced" if failure else within
    bias = f"; the bias of its images: up to {found.bias.max():.2f}" if found.bias.any() else ""
    return f"its error in predicting noise, at {ends}: {errors}{bias} ({verdict})"


def _others(
    config: ConfigDict, info: DatasetInfo, make: partial[Any], ema: Any, source: Path
) -> list[str]:
    """Return the settings, of those tried one by one, with which the network predicts noise, the
    best first. What the source says itself is not tried."""
    says, values = convert.settings(source, config.data.image_size), flat(config)
    passed: dict[str, float] = {}
    _, arrays = networks.abstract(make)
    for key, others in (TRIED | convert.choices(source, config.model.num_levels)).items():
        for value in others if key not in says else ():
            with suppress(UserError):  # it does not go with the other settings
                other = changed(config, {key: value})
                network = build.network(other, info)
                if value == values[key] or networks.abstract(network)[1] != arrays:
                    continue
                print(f"trying config.{key} = {value}")
                found = _noise_errors(other, info, network, ema)
                if not found.failure():
                    passed[f"config.{key} = {value}"] = float(found.error.mean())
    return sorted(passed, key=passed.__getitem__)


def _noise_errors(
    config: ConfigDict, info: DatasetInfo, make: partial[Any], ema: Any
) -> plausible.Errors:
    apply, _ = networks.abstract(make)
    number = max(1, min(8, plausible.MOST_PIXELS // math.prod(info.shape[:-1])))
    given = {k: jnp.asarray(v) for k, v in build.classes_in_turn(config, info, number).items()}
    model = build.model(config, apply, ema, levels="matched").given(given)
    key = jax.random.key(config.seed)
    noise = from_prior(key, model.sde, (number, *info.shape))
    return plausible.noise_errors(key, model, noise, -1.0 if config.model.centered else 0.0, 1.0)


def _state(
    config: ConfigDict,
    make: partial[Any],
    foreign: convert.Foreign,
    weights: str,
    source: Path,
) -> TrainState:
    """The state that training goes on from."""
    _, expected = networks.abstract(make)

    def fitted(flat: Mapping[str, np.ndarray], what: str = "arrays") -> Any:
        return jax.tree.map(jnp.asarray, convert.fit(flat, expected, source, what, foreign.hint))

    ema = fitted(foreign.ema)
    params = ema if foreign.params is None else fitted(foreign.params)
    optimizer = build.optimizer(config)
    state = create(params, optimizer, data_mesh())
    place = state.step.sharding
    # The schedule goes by all steps; Adam's bias correction by those that its moments are of.
    known = {"num_updates": jnp.int32(foreign.step)}
    is_adam = config.training.optimizer == "adam"
    if is_adam and foreign.mu is not None and foreign.nu is not None:
        # What is not trained has no moments there: they stay 0.
        zeros = {name: 0 * leaf for name, leaf in convert.flattened(params).items()}
        frozen = {name: zero for name, zero in zeros.items() if name.endswith("/frequencies")}
        known["count"] = jnp.int32(foreign.adam_steps)
        known["mu"], known["nu"] = (
            fitted({**frozen, **moments}, "Adam's moments") for moments in (foreign.mu, foreign.nu)
        )
    return dataclasses.replace(
        state,
        step=jax.device_put(jnp.int32(foreign.step), place),
        opt_state=jax.device_put(optax.tree_utils.tree_set(state.opt_state, **known), place),
        ema=jax.device_put(params if weights == "raw" else ema, place),
    )


def _print_origins(
    config: ConfigDict, make: partial[Any], foreign: convert.Foreign, source: Path
) -> None:
    """Print where the settings come from that stand in no array."""
    says = convert.settings(source, config.data.image_size)
    (spec,) = make.args
    shown = {"model.fir"} if _shows_fir(spec) else set()
    values = flat(config)
    unseen = [f"{key} = {values[key]}" for key in UNSEEN if key not in says and key not in shown]
    if "sde.name" not in says:
        unseen.insert(0, f"the process {build.sde(config)}")
    path = convert.diffusers.scheduler_file(source) if source.is_dir() else None
    if path is not None:
        print(f"process: {build.sde(config)}, {config.model.parameterization}; from {path}")
        ours, others = convert.scheduler.sampling(path)
        if ours:
            flags = " ".join(f"--config.{key}={value}" for key, value in ours.items())
            print(f"diffusers' DDIM, made of this scheduler, samples as {flags}")
        if others:
            print(f"not taken from it: {str(others)[1:-1]}")
    elif source.is_dir():
        print(f"no {convert.scheduler.FILE} lies beside the network")
    if unseen:
        print(f"taken from the config, as neither arrays nor files show it: {', '.join(unseen)}")
    has_sigmas = "sigma_max" in takes(resolve("sde.name", config.sde.name))
    if foreign.sigmas is None and has_sigmas and path is None:
        print("its noise levels are not in the file: sde.sigma_min and sigma_max are the config's")


def _print_level_scale(config: ConfigDict, source: Path) -> None:
    """Print which of its two scales of levels a network of OpenAI's gets, where they differ."""
    key, scale = "model.level_scale", config.model.level_scale
    off, on = convert.choices(source, config.model.num_levels).get(key, (scale, scale))
    if off == on or scale not in (off, on):
        return
    is_on = scale == on
    print(
        f"config.{key} = {scale}, as of rescale_timesteps = {is_on}; for {not is_on} type "
        f"--config.{key}={off if is_on else on} (improved-diffusion has True by default, "
        "guided-diffusion False)"
    )


def _shows_fir(spec: networks.UNetSpec) -> bool:
    """Whether the original's names tell if it resamples with the filter."""
    convolves = ("down", "up") if spec.resample_with_conv else ()
    return any(block.kind in ("input", "output", *convolves) for block in plan(spec))


def _check_levels(config: ConfigDict, sigmas: np.ndarray | None) -> None:
    """Raise UserError where a checkpoint was trained on other noise levels than the config's. Every
    network of the original code has them, VE's or not, and their number is that of its chain."""
    if sigmas is None:
        return
    if config.model.num_levels not in (0, len(sigmas)):
        raise refuse("model.num_levels", config.model.num_levels, f"the checkpoint's {len(sigmas)}")
    if not hasattr(build.sde(config), "sigma_min"):
        return
    for key, level in (("sigma_min", sigmas[0]), ("sigma_max", sigmas[-1])):
        if not math.isclose(config.sde[key], level, rel_tol=1e-5):
            raise refuse(f"sde.{key}", config.sde[key], f"the checkpoint's {float(level):.6g}")
