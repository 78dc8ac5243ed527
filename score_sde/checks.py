"""What the values of a config may be: each by itself, and beside the others."""

import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from score_sde.config import SAMPLER_KEYS, default, flat
from score_sde.data import DATASETS, Dataset, DatasetInfo, describe
from score_sde.errors import UserError


class Check(NamedTuple):
    """A key, what its value must satisfy, and the allowed values in words."""

    key: str
    ok: Callable[[Any], bool]
    allowed: str


def _one_of(key: str, *names: str) -> Check:
    return Check(key, lambda value: value in names, ", ".join(names))


def _unset_or_one_of(key: str, *names: str) -> Check:
    return Check(key, lambda value: value is None or value in names, ", ".join(names))


def _at_least(key: str, least: int) -> Check:
    return Check(key, lambda value: value >= least, f"integers of at least {least}")


def _unset_or_at_least(key: str, least: int) -> Check:
    def ok(value: int | None) -> bool:
        return value is None or value >= least

    return Check(key, ok, f"integers of at least {least}")


def _not_negative(key: str) -> Check:
    return Check(key, lambda value: 0 <= value < math.inf, "numbers of at least 0")


def _positive(key: str) -> Check:
    return Check(key, lambda value: 0 < value < math.inf, "positive numbers")


def _tolerance(key: str) -> Check:
    # Below, float32's rounding is all that a step's error estimate sees.
    return Check(key, lambda value: 1e-7 <= value < 1, "numbers from 1e-7 to below 1")


def _fraction(key: str) -> Check:
    return Check(key, lambda value: 0 <= value < 1, "numbers from 0 to below 1")


def _time(key: str) -> Check:
    # None: the key's placeholder, which leaves the time to the process. Below 1e-5 float32 and the
    # networks' training end; next to 1 there is nothing left to do.
    return Check(key, lambda value: value is None or 1e-5 <= value <= 0.9, "times from 1e-5 to 0.9")


def _has_images(dataset: Dataset) -> bool:
    return isinstance(dataset.info, DatasetInfo) and bool(dataset.info.levels)


def _integers(value: tuple[Any, ...]) -> bool:
    return all(type(item) is int and item > 0 for item in value)


def _frequencies(value: tuple[Any, ...]) -> bool:
    return all(type(item) in (int, float) and 0 < item < math.inf for item in value)


CHECKS = (
    Check("seed", lambda value: 0 <= value < 2**32, "integers from 0 to 2**32 - 1"),
    _one_of("data.name", *(name for name, each in DATASETS.items() if _has_images(each))),
    _at_least("data.image_size", 0),
    _one_of("sde.name", "vp", "subvp", "ve"),
    _positive("sde.beta_min"),
    _positive("sde.beta_max"),
    _positive("sde.sigma_min"),
    _positive("sde.sigma_max"),
    Check("model.width", lambda value: value > 0 and value % 4 == 0, "positive multiples of 4"),
    Check(
        "model.multipliers",
        lambda value: bool(value) and _integers(value),
        "tuples of positive integers, one per resolution",
    ),
    Check("model.num_blocks", lambda value: 1 <= value <= 100, "integers from 1 to 100"),
    Check("model.attention_resolutions", _integers, "tuples of positive integers"),
    _fraction("model.dropout"),
    _one_of("model.embedding", "positional", "fourier"),
    _positive("model.fourier_scale"),
    _one_of("model.block", "biggan", "ddpm"),
    _one_of("model.decoder_attention", "once", "every"),
    _one_of("model.activation", "swish", "elu", "relu", "lrelu"),
    _not_negative("model.init_scale"),
    _at_least("model.norm_groups", 0),
    _one_of("model.progressive_input", "none", "input_skip", "residual"),
    _one_of("model.combine", "sum", "cat"),
    _one_of("model.progressive_output", "none", "output_skip", "residual"),
    Check("model.input_frequencies", _frequencies, "tuples of positive numbers"),
    _one_of("model.parameterization", "epsilon", "score", "velocity"),
    _one_of("model.condition", "time", "log_sigma", "log_snr"),
    Check("model.num_levels", lambda value: value == 0 or value > 1, "0, integers of at least 2"),
    _one_of("model.dtype", "float32", "bfloat16"),
    _at_least("training.num_steps", 1),
    _at_least("training.batch_size", 1),
    _positive("training.learning_rate"),
    _at_least("training.warmup_steps", 0),
    _one_of("training.schedule", "constant", "cosine"),
    _positive("training.gradient_clip"),
    _fraction("training.beta2"),
    _not_negative("training.weight_decay"),
    _fraction("training.ema_rate"),
    _one_of("training.loss", "paper", "likelihood", "mixture"),
    _time("training.t_min"),
    _at_least("training.checkpoint_every", 1),
    _at_least("training.log_every", 1),
    _at_least("training.sample_every", 0),
    Check("sampling.seed", lambda value: 0 <= value < 2**32, "integers from 0 to 2**32 - 1"),
    _one_of("sampling.method", *SAMPLER_KEYS),
    _at_least("sampling.num_samples", 1),
    _at_least("sampling.batch_size", 1),
    _unset_or_at_least("sampling.num_steps", 1),
    _one_of("sampling.predictor", "euler_maruyama", "reverse_diffusion", "ancestral", "none"),
    _one_of("sampling.corrector", "none", "langevin", "ald"),
    _at_least("sampling.corrector_steps", 1),
    _positive("sampling.snr"),
    _at_least("sampling.steps_per_level", 1),
    Check(
        "sampling.step_size",
        lambda value: value is None or 0 < value < 1,
        "numbers above 0 and below 1",
    ),
    _time("sampling.t_min"),
    _unset_or_one_of("sampling.grid", "uniform", "paper", "log_snr", "karras", "angle"),
    Check("sampling.rho", lambda value: 1 <= value <= 100, "numbers from 1 to 100"),
    Check("sampling.eta", lambda value: 0 <= value <= 1, "numbers from 0 to 1"),
    Check("sampling.order", lambda value: value in (None, 1, 2, 3), "1, 2, 3"),
    _not_negative("sampling.churn"),
    _not_negative("sampling.churn_from"),
    Check("sampling.churn_to", lambda value: value is None or value > 0, "numbers above 0"),
    Check("sampling.churn_noise", lambda value: 0 < value <= 2, "numbers above 0, up to 2"),
    _tolerance("sampling.rtol"),
    _tolerance("sampling.atol"),
    _one_of("sampling.solver", "dopri5", "tsit5", "dopri8", "heun", "euler"),
    _one_of("sampling.step_control", "sample", "batch"),
    _at_least("sampling.num_pairs", 1),
    Check("sampling.num_between", lambda value: 1 <= value <= 1000, "integers from 1 to 1000"),
    Check("likelihood.seed", lambda value: 0 <= value < 2**32, "integers from 0 to 2**32 - 1"),
    _one_of("likelihood.split", "train", "test"),
    _at_least("likelihood.num_images", 0),
    _at_least("likelihood.batch_size", 1),
    _one_of("likelihood.dequantization", "uniform", "truncated_normal"),
    _at_least("likelihood.num_importance", 1),
    _one_of("likelihood.divergence", "rademacher", "gaussian", "exact"),
    _at_least("likelihood.num_probes", 1),
    _tolerance("likelihood.rtol"),
    _tolerance("likelihood.atol"),
    _time("likelihood.t_min"),
)


def validate(config: ConfigDict) -> None:
    """Raise UserError at the first key that is unknown, missing, of a wrong type or impossible.

    What only the running machine can tell (does the number of devices divide the batch?) is left
    to `check_devices`.
    """
    values = flat(config)
    schema = flat(default())
    for key, value in values.items():
        if key not in schema:
            raise unknown_key(key, value)
    for key, usual in schema.items():
        if key not in values:
            raise UserError(f"config.{key}: missing; a config starts as score_sde.config.default()")
        may_be_unset = usual is None and values[key] is None
        if not may_be_unset and type(values[key]) is not type_of(key):
            raise refuse(key, values[key], type_in_words(key))
    for key, value in values.items():
        if type(value) is int and abs(value) >= 2**31 and not key.endswith("seed"):
            raise refuse(key, value, "integers below 2**31")
    for check in CHECKS:
        if not check.ok(values[check.key]):
            raise refuse(check.key, values[check.key], check.allowed)
    info = dataset(config)
    for key, allowed in (*_across_keys(config, info), *_across_discrete(config)):
        raise refuse(key, values[key], allowed)


def dataset(config: ConfigDict) -> DatasetInfo:
    """Return the facts of the config's data set, at the config's image size."""
    return describe(config.data.name, image_size=config.data.image_size)


def _across_keys(config: ConfigDict, info: DatasetInfo) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that contradicts another one or the data."""
    if config.sde.beta_max <= config.sde.beta_min:
        yield "sde.beta_max", f"numbers above config.sde.beta_min = {config.sde.beta_min}"
    if config.sde.sigma_max <= config.sde.sigma_min:
        yield "sde.sigma_max", f"numbers above config.sde.sigma_min = {config.sde.sigma_min}"
    size = info.shape[0]
    levels = len(config.model.multipliers)
    factor = 2 ** (levels - 1)
    if size % factor:
        most = (size & -size).bit_length()
        yield (
            "model.multipliers",
            f"1 to {most} resolutions, as {info.name}'s {size} pixels are not divisible "
            f"by the U-Net's factor {factor}",
        )
    resolutions = [size // 2**level for level in range(levels)]
    if not set(config.model.attention_resolutions) <= set(resolutions):
        yield "model.attention_resolutions", f"the levels' {', '.join(map(str, resolutions))}"
    if config.model.embedding == "fourier" and config.model.condition == "time":
        yield "model.condition", "log_sigma, log_snr with config.model.embedding = 'fourier'"
    groups = config.model.norm_groups
    if groups and config.model.width % groups:
        yield "model.norm_groups", f"0 and divisors of config.model.width = {config.model.width}"
    if not config.model.conditional and config.model.class_conditional:
        yield "model.class_conditional", "False with config.model.conditional = False"
    if not config.model.conditional and config.model.input_frequencies:
        yield "model.input_frequencies", "() with config.model.conditional = False"
    if config.model.class_conditional and not info.num_classes:
        yield "model.class_conditional", f"False: {info.name} has no classes"
    train, split = info.splits["train"], info.splits[config.likelihood.split]
    if config.training.batch_size > train:
        yield "training.batch_size", f"1 to {train}, the training images of {info.name}"
    if config.likelihood.num_images > split:
        yield (
            "likelihood.num_images",
            f"0 (all) to {split}, the {config.likelihood.split} images of {info.name}",
        )
    sampling = config.sampling
    chained = sampling.predictor in ("ancestral", "reverse_diffusion")
    chained = sampling.faithful and (chained or sampling.corrector != "none")
    chained = chained and sampling.method == "pc"
    # The beta of a step of the chain, some beta_max / num_steps, is below 1.
    few = sampling.num_steps is not None and sampling.num_steps <= config.sde.beta_max
    if config.sde.name == "vp" and chained and few:
        yield (
            "sampling.num_steps",
            f"integers above config.sde.beta_max = {config.sde.beta_max:g} with "
            "config.sampling.faithful = True",
        )
    if sampling.method == "pc" and sampling.predictor == sampling.corrector == "none":
        yield "sampling.corrector", "langevin, ald with config.sampling.predictor = 'none'"
    no_flow = sampling.predictor in ("ancestral", "none")
    if sampling.method == "pc" and sampling.probability_flow and no_flow:
        yield (
            "sampling.predictor",
            "euler_maruyama, reverse_diffusion with config.sampling.probability_flow = True",
        )
    if sampling.method == "dpmpp" and sampling.eta and sampling.order == 3:
        yield (
            "sampling.order",
            f"1, 2 with config.sampling.eta = {sampling.eta:g} (3 with --config.sampling.eta=0)",
        )
    if sampling.method == "ald" and sampling.num_steps == 1:
        yield "sampling.num_steps", "integers of at least 2 with config.sampling.method = 'ald'"
    likelihood = config.likelihood
    narrow = config.sde.name == "subvp" and likelihood.dequantization == "truncated_normal"
    if narrow and likelihood.t_min < 1e-3:
        yield (
            "likelihood.t_min",
            "times from 1e-3 with config.likelihood.dequantization = 'truncated_normal' under "
            "sub-VP, as sigma is next to float32's rounding before",
        )
    highest = math.inf if sampling.churn_to is None else sampling.churn_to
    if sampling.method == "heun" and highest < sampling.churn_from:
        yield (
            "sampling.churn_to",
            f"numbers from config.sampling.churn_from = {sampling.churn_from:g} on",
        )
    fast = sampling.method in ("ddim", "dpmpp", "unipc", "heun")
    if fast and sampling.grid == "paper" and sampling.num_steps == 1:
        yield "sampling.num_steps", "integers of at least 2 with config.sampling.grid = 'paper'"
    levels, steps = config.model.num_levels, sampling.num_steps
    if fast and levels and steps is not None and steps >= levels:
        yield (
            "sampling.num_steps",
            f"1 to {levels - 1} with config.model.num_levels = {levels}, as each time is a level",
        )


def _across_discrete(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that contradicts training on discrete levels."""
    if not config.model.num_levels:
        return
    given = f"with config.model.num_levels = {config.model.num_levels}"
    if config.sde.name == "subvp":
        yield "model.num_levels", "0 with config.sde.name = 'subvp', which has no discrete chain"
    if config.sde.name == "vp" and config.model.num_levels <= config.sde.beta_max:
        yield (
            "model.num_levels",
            f"0, integers above config.sde.beta_max = {config.sde.beta_max}, as the chain's betas "
            "are below 1",
        )
    for key, allowed in (
        ("model.parameterization", ("epsilon", "score")),
        ("model.embedding", ("positional",)),  # Fourier features are of a log sigma or log SNR
        ("model.condition", ("time",)),
        ("training.loss", ("paper",)),
    ):
        if flat(config)[key] not in allowed:
            yield key, f"{', '.join(allowed)} {given}"


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raise UserError unless the devices divide the training batch."""
    if config.training.batch_size % devices:
        raise refuse(
            "training.batch_size",
            config.training.batch_size,
            f"multiples of the {devices} devices",
        )


def refuse(key: str, value: object, allowed: str) -> UserError:
    """Return the error for a value that a key cannot have."""
    return UserError(f"config.{key} = {value!r}: allowed are {allowed}")


def unknown_key(key: str, value: object) -> UserError:
    """Return the error for a key that nobody can set, with those that are close to it."""
    schema = default()
    if key == "name":
        return UserError(f"config.name = {value!r}: cannot be set; it is the name of --config")
    sections = {name: item for name, item in schema.items() if isinstance(item, ConfigDict)}
    if key in sections:
        names = ", ".join(sections[key].keys())
        return UserError(f"config.{key} = {value!r}: a section; its keys are {names}")
    return UserError(f"config.{key} = {value!r}: no such key; {closest(key)}")


def closest(key: str) -> str:
    """Return, in words, the keys that are closest to an unknown one, or else the sections."""
    schema = default()
    keys = list(flat(schema))
    section, _, name = key.rpartition(".")
    close = [known for known in keys if known.split(".")[-1] == name]
    words = ((known, known.split(".")[-1].split("_")) for known in keys if len(name) > 2)
    parts = [known for known, in_key in words if any(word.startswith(name) for word in in_key)]
    close = close or [known for known in parts if known.startswith(f"{section}.")] or parts
    close = close or difflib.get_close_matches(key, keys, n=1)
    if close:
        verb = "is" if len(close) == 1 else "are"
        return f"closest {verb} {', '.join(f'config.{known}' for known in close)}"
    sections = (name for name, item in schema.items() if isinstance(item, ConfigDict))
    return f"sections are {', '.join(sections)}"


def type_of(key: str) -> type:
    """Return the type of the values that a key may have beside being unset, where it may be."""
    section, _, name = key.rpartition(".")
    config = default()
    kind: type = (config[section] if section else config).get_type(name)
    return kind


def type_in_words(key: str) -> str:
    """Return the values of the type that a key may have, in words."""
    words = {bool: "True, False", int: "integers", str: "text", tuple: "tuples such as (1, 2)"}
    return words.get(type_of(key), "numbers")
