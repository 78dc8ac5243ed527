"""Rules between the values of a config. They make its objects, so importing this imports JAX."""

from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from score_sde import build
from score_sde.bounds import VARIANCES
from score_sde.config import changed, flat, refuse, takes
from score_sde.data import DatasetInfo
from score_sde.discrete import DISCRETE, discretization
from score_sde.errors import UserError, besides, require
from score_sde.learned import constants
from score_sde.losses import LOSSES, OF_VARIANCES, WEIGHTS
from score_sde.networks import NETWORKS
from score_sde.networks.spec import CHOICES
from score_sde.samplers import SAMPLERS, Consistency, Sampler
from score_sde.samplers.grids import SPACINGS
from score_sde.samplers.predictor_corrector import LEARNED, PREDICTORS
from score_sde.score import NOISE_CONDITIONS, OF_PURE_NOISE, Model
from score_sde.scoring import EXTRACTORS
from score_sde.sde import SDE
from score_sde.times import TIMES

NORMAL = ("log_normal", "logit_normal")  # times, which leave out some of the range
INTEGRALS = ("likelihood", "second_order")  # weights, which measure all of it
OWN_LOSS = {"training.times": (None,), "training.weight": (None,)}  # it has no halves to choose


def check(config: ConfigDict, info: DatasetInfo | None = None) -> None:
    """Raise UserError for values that do not go together. Nothing is computed.

    Args:
        config: each value must be allowed by itself (`validation.validate`, which calls this).
        info: of the data, where it is known; that of images always is.
    """
    info, process, values = info or build.known_info(config), build.sde(config), flat(config)
    if config.model.num_levels:
        _check_chain(process, config.model.num_levels)
    for key, allowed in _rules(config, process):
        raise refuse(key, values[key], allowed)
    if info is not None:
        for key, allowed in _data_rules(config, info):
            raise refuse(key, values[key], allowed)
        build.network(config, info)
    with build.errors_of("sampling"):
        sampler = build.sampler(config)
        if sampler.reads_variance and not config.model.learned_variance:
            allowed = f"{besides(PREDICTORS, *LEARNED)} with model.learned_variance = False"
            require(False, "predictor", config.sampling.predictor, allowed)
        if isinstance(sampler, Consistency) and build.loss_pair(config).weight != "consistency":
            allowed = f"{besides(SAMPLERS, 'consistency')} unless the weight is consistency"
            raise refuse("sampling.method", config.sampling.method, allowed)
        sampler.check(process)
        if process.ends_in_noise:
            _check_start(config, sampler, process)
    build.probability_flow(config)


def _check_start(config: ConfigDict, sampler: Sampler, process: SDE) -> None:
    """Raise UserError for a sampler that cannot begin where alpha(T) = 0."""
    try:
        sampler.check_start(process, Model)
    except ValueError:
        method = config.sampling.method
        if sampler.denoised_only or method not in SAMPLERS:
            raise  # of its grid, or of a user's own sampler
        able = [name for name in SAMPLERS if _starts(config, {"sampling.method": name}, process)]
        allowed = f"{', '.join(able)}, as alpha(T) = 0 of {type(process).__name__}"
        if not config.model.num_levels:
            allowed += ", or config.sde.t_max below 1"
        elif _starts(config, {"sampling.grid": SPACINGS[-1]}, process):
            allowed += f", or one of the grids {', '.join(SPACINGS)}"
        raise refuse("sampling.method", method, allowed) from None


def _starts(config: ConfigDict, changes: dict[str, str], process: SDE) -> bool:
    """Whether a changed config's sampler can begin at T."""
    try:
        sampler = build.sampler(changed(config, changes))
        if not sampler.denoised_only:  # they can, though not by each grid
            sampler.check_start(process, Model)
    except (UserError, ValueError):
        return False
    return not isinstance(sampler, Consistency)  # whose training ranges over the log-SNR


def _check_chain(process: SDE, num_levels: int) -> None:
    if type(process) not in DISCRETE:
        chains = ", ".join(each.__name__ for each in DISCRETE)
        why = f"{type(process).__name__} has no discrete chain"
        allowed = f"0, as {why}; score_sde.discrete.DISCRETE has those of {chains}"
        raise refuse("model.num_levels", num_levels, allowed)
    with build.errors_of("model"):
        discretization(process).check("num_levels", num_levels)


def _data_rules(config: ConfigDict, info: DatasetInfo) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that contradicts the data."""
    settings, make = config.model, build.network_class(config)
    rank, reads = getattr(make, "rank", len(info.shape)), takes(make.Spec)
    if rank != len(info.shape):
        wanted = len(info.shape)
        fits = [name for name, net in NETWORKS.items() if getattr(net, "rank", 0) == wanted]
        yield "model.name", f"{', '.join(fits)} with config.data.name = {info.name!r}"
    if settings.learned_variance and "learned_variance" not in reads:
        yield "model.learned_variance", f"False with config.model.name = {settings.name!r}"
    if settings.class_conditional and not info.num_classes:
        yield "model.class_conditional", f"False: {info.name} has no classes"
    if settings.class_conditional and "num_classes" not in reads:
        yield "model.class_conditional", f"False with config.model.name = {settings.name!r}"
    if info.condition and "condition_features" not in reads:
        yield "data.condition", f"() with config.model.name = {settings.name!r}"
    if settings.class_conditional and "conditional" in reads and not settings.conditional:
        yield "model.class_conditional", "False with config.model.conditional = False"
    if config.sampling.classifier_scale and not info.num_classes:
        yield "sampling.classifier_scale", f"0: {info.name} has no classes"
    if config.restore.label is not None and config.restore.label >= info.num_classes:
        yield "restore.label", f"classes below {info.num_classes}, those of {info.name}"
    if any(label >= info.num_classes for label in config.sampling.labels):
        yield "sampling.labels", f"classes from 0 to {info.num_classes - 1} of {info.name}"
    if constants(build.sde(config)) and info.levels and not config.training.dequantize:
        yield "training.dequantize", f"True with config.sde.name = {config.sde.name!r}"
    if config.data.flip and info.levels is None:
        yield "data.flip", f"False: {info.name} are vectors"
    if config.data.augment and info.levels is None:
        yield "data.augment", f"0: {info.name} are vectors"
    elif config.data.augment and "augmentation" not in reads:
        yield "data.augment", f"0 with config.model.name = {settings.name!r}"
    elif config.data.augment and "conditional" in reads and not settings.conditional:
        yield "data.augment", "0 with config.model.conditional = False"
    if config.training.pairing != "independent" and (
        build.condition_names(config, info) or config.data.augment
    ):
        # The noise would depend on the condition, too, and samples begin with any noise.
        yield "training.pairing", "independent for a model with classes, conditions or augmentation"
    if config.training.evaluate_every and info.levels is None:
        yield "training.evaluate_every", f"0: {info.name} are vectors"
    by_classes = config.training.evaluate_every and config.eval.features == "classifier"
    if by_classes and not info.num_classes:
        others = besides(EXTRACTORS, "classifier")
        yield "eval.features", f"{others} with training.evaluate_every: {info.name} has no classes"
    train, split = info.splits["train"], info.splits[config.likelihood.split]
    if 0 < train < config.training.batch_size:
        yield "training.batch_size", f"1 to {train}, the training examples of {info.name}"
    if config.likelihood.num_images > split:
        allowed = f"0 (all) to {split}, the {config.likelihood.split} examples of {info.name}"
        yield "likelihood.num_images", allowed


def _rules(config: ConfigDict, process: SDE) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that contradicts another object's."""
    settings, likelihood = config.model, config.likelihood
    if settings.embedding == "fourier" and settings.condition == "time":
        others = besides(NOISE_CONDITIONS, "time")
        yield "model.condition", f"{others} with config.model.embedding = 'fourier'"
    if not settings.class_conditional:
        without = "with config.model.class_conditional = False"
        if config.training.label_dropout:
            yield "training.label_dropout", f"0 {without}"
        if config.sampling.labels and not config.sampling.classifier_scale:
            yield "sampling.labels", f"() {without}, unless config.sampling.classifier_scale is set"
    if config.sampling.classifier_scale and not process.keeps_data():
        yield "sampling.classifier_scale", f"0, as alpha(T) = 0 of {type(process).__name__}"
    if process.ends_in_noise:
        yield from _rules_of_pure_noise(config, process)
    if config.training.pairing != "independent":
        yield from _rules_of_pairs(config, process)
    if config.sampling.guidance != 1 and not config.training.label_dropout:
        why = "as the model is trained with config.training.label_dropout = 0"
        if not settings.class_conditional:
            why = "as the model has no classes (config.model.class_conditional = False)"
        yield "sampling.guidance", f"1 (none), {why}"
    values = flat(config)
    for key in ("training.t_min", "likelihood.t_min"):
        if not values[key] < process.T:
            yield key, f"times below T = {process.T:g} of {type(process).__name__}"
    if likelihood.method == "vlb" and not settings.num_levels and likelihood.num_times < 2:
        yield "likelihood.num_times", "integers of at least 2 with config.likelihood.method = 'vlb'"
    narrow = likelihood.dequantization == "truncated_normal"
    if likelihood.method == "ode" and narrow and likelihood.t_min < process.t_resolved:
        yield (
            "likelihood.t_min",
            f"times from {process.t_resolved:g} with config.likelihood.dequantization = "
            f"'truncated_normal' under {type(process).__name__}, as sigma is next to float32's "
            "rounding before",
        )
    if settings.learned_variance and not settings.num_levels:
        yield "model.learned_variance", "False with config.model.num_levels = 0"
    yield from _rules_of_variances(config)
    yield from _rules_of_training(config)
    needs: dict[str, tuple[Any, ...]] = {}
    if settings.num_levels:
        given = f"with config.model.num_levels = {settings.num_levels}"
        # Fourier features are of a log sigma or log SNR.
        needs |= {"model.embedding": _without("fourier", CHOICES["embedding"])}
        needs |= {"model.condition": ("time",)}
        allowed = ("paper", *OF_VARIANCES) if settings.learned_variance else ("paper",)
        needs |= {"training.loss": allowed} | OWN_LOSS
        needs |= {"sde.t_max": (None, 1.0)}  # the published chain ends at T = 1
    elif constants(getattr(process, "process", process)):  # of a shifted one, what is shifted
        given = f"with config.sde.name = {config.sde.name!r}"
        # The network must know the noise, which the time alone does not say. The loss is the bound.
        needs |= {"model.condition": _without("time", NOISE_CONDITIONS), "sde.shift": (1.0,)}
        needs |= {"training.loss": ("likelihood",), "training.uncertainty": (False,)} | OWN_LOSS
        needs |= {"training.reduce_mean": (True,)}
    for key, allowed in needs.items():
        if values[key] not in allowed:
            words = ("unset" if each is None else f"{each}" for each in allowed)
            yield key, f"{', '.join(words)} {given}"


def _without(name: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)


def _rules_of_variances(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that wants variances which the network learns."""
    settings = config.training
    if config.sde.betas and config.sde.betas[-1] >= 1:
        of = {"training.loss": OF_VARIANCES, "likelihood.method": ("vlb",)}
        for key, names in of.items():  # the divergence of the step from pure noise is infinite
            if (name := flat(config)[key]) in names:
                yield "sde.betas", f"numbers below 1 with config.{key} = {name!r}"
    if settings.loss in OF_VARIANCES and config.data.augment and not settings.dequantize:
        # L_vlb counts the probability of the pixels as they are stored.
        yield "data.augment", f"0 with config.training.loss = {settings.loss!r}"
    if config.model.learned_variance:
        return
    without = "with config.model.learned_variance = False"
    if settings.loss in OF_VARIANCES:
        allowed = "paper" if config.model.num_levels else besides(LOSSES, *OF_VARIANCES)
        yield "training.loss", f"{allowed} {without}"
    if config.likelihood.variance == "learned":
        yield "likelihood.variance", f"{besides(VARIANCES, 'learned')} {without}"


def _rules_of_training(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that contradicts another one of the training."""
    times, weight = build.loss_pair(config)
    if weight in INTEGRALS and times in NORMAL:
        name = "times" if config.training.times else "weight"
        table, left_out = (TIMES, NORMAL) if name == "times" else (WEIGHTS, INTEGRALS)
        with_it = f"the weight {weight}" if name == "times" else f"the times {times}"
        yield f"training.{name}", f"{besides(table, *left_out)} with {with_it}"
    if not config.training.reduce_mean and weight in ("consistency", *OF_VARIANCES):
        yield "training.reduce_mean", f"True with the weight {weight}"
    if config.training.uncertainty and weight in ("consistency", "second_order", *OF_VARIANCES):
        yield "training.uncertainty", f"False with the weight {weight}"
    every = config.training.checkpoint_every
    for name in ("keep_every", "average_every"):
        if config.training[name] % every:
            yield f"training.{name}", f"0, multiples of config.training.checkpoint_every = {every}"
    if config.sampling.average and not config.training.average_every:
        why = "as the model is trained with config.training.average_every = 0"
        yield "sampling.average", f"0, {why}"


def _rules_of_pure_noise(config: ConfigDict, process: SDE) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that wants some of the data at T."""
    why = f"as alpha(T) = 0 of {type(process).__name__}"
    if config.model.num_levels:  # its times end before T, but not those of a bound in time
        if config.likelihood.method == "bound":
            by_flow = "ode, " if config.model.parameterization in OF_PURE_NOISE else ""
            yield "likelihood.method", f"{by_flow}vlb, {why}"
        return
    why += ", or config.sde.t_max below 1"
    if config.model.parameterization not in OF_PURE_NOISE:
        yield "model.parameterization", f"{', '.join(OF_PURE_NOISE)}, {why}"
    if config.model.condition == "log_snr":
        yield "model.condition", f"{besides(NOISE_CONDITIONS, 'log_snr')}, {why}"
    pair = build.loss_pair(config)
    times, weights = ("log_snr", "alternate"), ("likelihood", "consistency", "second_order")
    for name, table, values in (("times", TIMES, times), ("weight", WEIGHTS, weights)):
        if getattr(pair, name) in values:  # the range of the log-SNR is
            if config.training[name] is not None:
                yield f"training.{name}", f"{besides(table, *values)}, {why}"
            else:
                infinite = [
                    loss
                    for loss, own in LOSSES.items()
                    if own.times in times or own.weight in weights
                ]
                yield "training.loss", f"{besides(LOSSES, *infinite, *OF_VARIANCES)}, {why}"


def _rules_of_pairs(config: ConfigDict, process: SDE) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed values) for every key that wants noise independent of the data."""
    if config.model.num_levels or not process.ends_in_noise:
        why = f"as some of the data are left at T of {type(process).__name__}"
        yield "training.pairing", f"independent, {why}"
    paired = f"with config.training.pairing = {config.training.pairing!r}"
    if getattr(build.sampler(config), "eta", 0):
        yield "sampling.eta", f"0 {paired}"
    if config.likelihood.method != "ode":
        yield "likelihood.method", f"ode {paired}"


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raise UserError unless the devices divide the training batch."""
    size = config.training.batch_size
    if size % devices:
        raise refuse("training.batch_size", size, f"multiples of the {devices} devices")
