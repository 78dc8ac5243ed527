"""From a config to objects. `score_sde.objectives` makes the losses of training. Nothing else reads
a config to make something.

An object checks its own settings. The few rules that cross objects are in `score_sde.rules`.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import data, guidance, losses, networks, uncertainty
from score_sde.augmentation import PARAMETERS
from score_sde.config import is_own, refuse, resolve, takes
from score_sde.data import DatasetInfo
from score_sde.errors import UserError, besides, one_line
from score_sde.inverse import METHODS
from score_sde.learned import constants, with_constants
from score_sde.samplers import ProbabilityFlow, Sampler
from score_sde.schedules import Shifted
from score_sde.schema import SCHEMA
from score_sde.score import Logits, Model, reverse_only
from score_sde.sde import SDE, ScoreFn
from score_sde.spaces import Pixels, Space, Vectors
from score_sde.times import TIMES
from score_sde.training import optimizers

EXACT_UP_TO = 16  # columns

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
        text = one_line(error)
        raise UserError(f"config.{section}{'.' if is_key else ': '}{text}") from error


def _made(key: str, config: ConfigDict, **more: Any) -> Any:
    """The object that a key names, with what it takes of the key's section and of `more`."""
    section, _, name = key.partition(".")
    make = resolve(key, config[section][name])
    with errors_of(section):
        return make(**_settings(key, make, config, **more))


def _settings(key: str, make: Any, config: ConfigDict, **more: Any) -> dict[str, Any]:
    """What a class takes of a key's section and of `more`. A key that is unset is left to the
    class's own default.

    Raises:
        UserError: it takes something else, too, that has no default.
    """
    section, _, own_name = key.partition(".")
    given: dict[str, Any] = {}
    for name, parameter in takes(make).items():
        setting, value = f"{section}.{name}", config[section].get(name)
        if name in more:
            given[name] = more[name]
        elif value is not None:
            given[name] = resolve(setting, value) if is_own(setting, value) else value
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            own = config[section][own_name]
            raise UserError(f"config.{key} = {own!r}: its setting {name} has no default")
    return given


def sde(config: ConfigDict) -> SDE:
    """Return the process."""
    process: SDE = _made("sde.name", config)
    return process if config.sde.shift == 1 else Shifted(process, config.sde.shift)


def dataset(config: ConfigDict) -> DatasetInfo:
    """Return the facts of the config's data. Those of vectors come from the training split."""
    settings, known = config.data, resolve("data.name", config.data.name)
    names = ("image_size", "channels", "num_classes", "condition", "bin_width", "skip_corrupt")
    options: Any = {name: settings[name] for name in (*names, "stream")}
    return data.describe(known, settings.dir, **options)


def arrays(config: ConfigDict, info: DatasetInfo, split: str) -> data.Arrays:
    """Return a split of the data, in memory or streamed."""
    settings = config.data
    known = resolve("data.name", settings.name)
    options = {"skip_corrupt": settings.skip_corrupt, "stream": settings.stream}
    return data.load(known, split, settings.dir, info, **options)


def space(config: ConfigDict, info: DatasetInfo) -> Space:
    """Return where the data live: how they become the model's numbers, and back."""
    if info.levels is None:
        return Vectors(info.mean, info.std, info.bin_width)
    return Pixels(info.shape, info.levels, config.model.centered, config.training.dequantize)


def network(config: ConfigDict, info: DatasetInfo, *, logits: int = 0) -> partial[Any]:
    """Return the network's constructor, a partial of its specification that wants `rngs` only. With
    `logits` it is a classifier's of so many classes."""
    make = network_class(config)
    if logits and "logits" not in takes(make.Spec):
        able = [name for name, own in networks.NETWORKS.items() if "logits" in takes(own.Spec)]
        allowed = f"{', '.join(able)}, networks whose Spec has logits"
        raise refuse("model.name", config.model.name, allowed)
    learned = constants(sde(config)) or (
        uncertainty.initial() if config.training.uncertainty else {}
    )
    made = partial(make, specification(make, config, info, logits))
    return partial(networks.Beside, made, learned) if learned and not logits else made


def specification(make: Any, config: ConfigDict, info: DatasetInfo, logits: int = 0) -> Any:
    """The specification of a network for these data."""
    conditional = config.model.class_conditional and not logits
    sides = info.shape[:2]  # of vectors their length
    given = _settings(
        "model.name",
        make.Spec,
        config,
        image_size=sides if len(set(sides)) == 2 else sides[0],
        channels=info.shape[-1],
        features=info.shape[0],
        num_classes=info.num_classes if conditional else 0,
        augmentation=PARAMETERS if config.data.augment and not logits else 0,
        logits=logits,
        condition_features=len(info.condition),
        dtype=np.dtype(jnp.dtype(config.model.dtype)),
    )
    with errors_of("model"):
        return make.Spec(**given)


def network_class(config: ConfigDict) -> Any:
    """Return the class of the network; UserError for one that has no specification, or whose call
    does not take the options."""
    name = config.model.name
    make = resolve("model.name", name)
    if not hasattr(make, "Spec"):
        raise refuse("model.name", name, "networks that have a Spec (see score_sde.networks)")
    try:
        inspect.signature(make.__call__).bind_partial(dropout_key=None, reverse_only=True)
    except TypeError as error:
        allowed = f"networks whose call takes dropout_key and reverse_only (this one {error})"
        raise refuse("model.name", name, allowed) from None
    return make


def model(
    config: ConfigDict,
    apply: Callable[..., Array],
    params: Any,
    *,
    levels: str = "smooth",
    num_classes: int = 0,
) -> Model:
    """Return the network `apply` with its parameters as a score function; `levels` and
    `num_classes` as of `score.Model`."""
    settings = config.model
    fixed = ("num_levels", "learned_variance", "sigma_data")
    static: Any = {name: settings[name] for name in fixed}
    static |= {"levels": levels, "num_classes": num_classes}
    names = settings.parameterization, settings.condition
    return Model(params, with_constants(sde(config), params), apply, *names, **static)


def classifier(config: ConfigDict, apply: Callable[..., Array], params: Any) -> Logits:
    """Return a classifier of noisy data, of the network `apply` with its parameters."""
    return Logits(reverse_only(model(config, apply, params)))


def condition_names(config: ConfigDict, info: DatasetInfo) -> tuple[str, ...]:
    """Return the names of the model's conditions."""
    labels = ("labels",) if config.model.class_conditional else ()
    return (*labels, "vector") if info.condition else labels


def has_classes(config: ConfigDict) -> bool:
    """Return whether samples are drawn of classes: by the model, or by a classifier."""
    return bool(config.model.class_conditional or config.sampling.classifier_scale)


def checked_condition(
    config: ConfigDict,
    info: DatasetInfo,
    n: int,
    condition: Mapping[str, ArrayLike] | None,
    *,
    drawn: bool = False,
) -> dict[str, np.ndarray]:
    """Return the condition of n items as arrays; ValueError for another than theirs. Drawn items
    have classes by a classifier, too."""
    names = condition_names(config, info)
    if drawn and has_classes(config) and "labels" not in names:
        names = ("labels", *names)
    given = {name: np.asarray(array) for name, array in (condition or {}).items()}
    if set(given) != set(names):
        raise ValueError(
            f"condition of {', '.join(given) or 'nothing'}: allowed are "
            f"{', '.join(names) or 'none, as the model has no condition'}"
        )
    if "labels" in given:
        labels, number = given["labels"], info.num_classes
        if labels.shape != (n,) or not np.isin(labels, np.arange(number)).all():
            raise ValueError(f"labels: allowed are {n} integers from 0 to {number - 1}")
        given["labels"] = labels.astype(np.int32)
    if "vector" in given:
        rows, wide = given["vector"], len(info.condition)
        if rows.shape != (n, wide) or rows.dtype.kind not in "fiu":
            raise ValueError(f"vector is {rows.shape}: allowed are numbers ({n}, {wide})")
        given["vector"] = rows.astype(np.float32)
        if not np.isfinite(given["vector"]).all():
            raise ValueError("vector: allowed are numbers that are finite in float32")
    return given


def classes_in_turn(
    config: ConfigDict, info: DatasetInfo, number: int, *, drawn: bool = False
) -> dict[str, np.ndarray]:
    """Return the default condition of drawn items, the classes of `sampling.labels` in turn as
    `labels` int32 (number,): `{}` for a model without classes, unless a classifier draws them."""
    if not (has_classes(config) if drawn else config.model.class_conditional):
        return {}
    classes = config.sampling.labels or range(info.num_classes)
    return {"labels": np.resize(np.asarray(classes, np.int32), number)}


def guided(
    config: ConfigDict, model: Model, condition: Mapping[str, Array], logits: Logits | None = None
) -> ScoreFn:
    """Return the score that samples follow: the model's under a condition, guided as the section
    `sampling` says.

    Raises:
        UserError: `sampling.classifier_scale` without the classifier's logits.
    """
    settings, own = config.sampling, dict(condition)
    labels = own["labels"] if config.model.class_conditional else own.pop("labels", None)
    score: ScoreFn = model.given(own)
    if settings.guidance != 1:
        interval = settings.guidance_interval or None
        score = guidance.classifier_free(model, own, settings.guidance, interval)
    scale = settings.classifier_scale
    if not scale or labels is None:
        return score
    if logits is None:
        raise refuse("sampling.classifier_scale", scale, "0 for a run loaded without a classifier")
    vector = {name: array for name, array in own.items() if name != "labels"}
    return guidance.classifier(model.sde, score, logits.given(vector), labels, scale)


def guidance_keys(config: ConfigDict) -> set[str]:
    """Return the keys of the section `sampling` that `guided` reads, given the others."""
    interval = {"guidance_interval"} if config.sampling.guidance != 1 else set()
    return {"labels", "guidance", "classifier_scale"} | interval


def sampler(config: ConfigDict, *, of_levels: bool = True) -> Sampler:
    """Return the sampler. With `of_levels` its times are levels of the network's chain, if any."""
    levels = config.model.num_levels if of_levels else 0
    chosen: Sampler = _made("sampling.method", config, num_levels=levels)
    return chosen


def restorer(config: ConfigDict) -> Sampler:
    """Return the sampler of restorations: the one of `restore.method`, or the config's."""
    make = METHODS[config.restore.method].sampler
    if make is None:
        return sampler(config)
    own = {"num_levels": config.model.num_levels, "resamplings": config.restore.resamplings}
    with errors_of("sampling"):
        return make(**_settings("sampling.method", make, config, **own))


def probability_flow(config: ConfigDict) -> ProbabilityFlow:
    """Return the flow that encodes and decodes, with any sampler. It never denoises."""
    with errors_of("sampling"):
        settings = _settings("sampling.method", ProbabilityFlow, config, denoise=False)
        return ProbabilityFlow(**settings)


def divergence(config: ConfigDict, info: DatasetInfo) -> str:
    """Return how the likelihood takes the divergence; unset, exact for short vectors."""
    chosen: str | None = config.likelihood.divergence
    if chosen is not None:
        return chosen
    return "exact" if info.levels is None and info.shape[0] <= EXACT_UP_TO else "rademacher"


def keys_read(config: ConfigDict, chosen: Sampler | None = None) -> set[str]:
    """Return the keys of the section `sampling` that the config's sampler reads, or another."""
    make = resolve("sampling.method", config.sampling.method)
    chosen = chosen or sampler(config)
    for other in (ProbabilityFlow, *(method.sampler for method in METHODS.values())):
        make = other if other and type(other()) is type(chosen) else make
    return (takes(make).keys() & set(config.sampling)) - chosen.without_effect


def known_info(config: ConfigDict) -> DatasetInfo | None:
    """Return what is known of the data without reading them: that of images; None for vectors."""
    known = resolve("data.name", config.data.name)
    if isinstance(known.info, DatasetInfo) and known.info.levels:
        return dataset(config)
    return None


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimizer with its schedule."""
    make = optimizers.optimizer
    names = takes(make).keys() - {"rate"}
    return make(learning_rate(config), **{name: config.training[name] for name in names})


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Return the learning rate as a function of the updates made."""
    make = optimizers.learning_rate_schedule
    return make(**{name: config.training[name] for name in takes(make)})


def loss_pair(config: ConfigDict) -> losses.Pair:
    """Return the times and the weight of the training's loss, by their names."""
    settings, (times, weight) = config.training, losses.LOSSES[config.training.loss]
    return losses.Pair(settings.times or times, settings.weight or weight)


def check_score(config: ConfigDict, wanted_by: str) -> None:
    """Raise UserError for a consistency model: what it denoises to is no mean of the data, so it
    has no score of theirs."""
    if loss_pair(config).weight == "consistency":
        name = "weight" if config.training.weight else "loss"
        others = besides(
            losses.WEIGHTS if config.training.weight else losses.LOSSES,
            "consistency",
            *losses.OF_VARIANCES,
        )
        why = f"for {wanted_by}, which needs a score: a consistency model has none"
        raise refuse(f"training.{name}", config.training[name], f"{others} {why}")


def times_keys(config: ConfigDict) -> set[str]:
    """Return the keys of the section `training` that the times of its loss read."""
    return {"times_mean", "times_std"} & takes(TIMES[loss_pair(config).times]).keys()
