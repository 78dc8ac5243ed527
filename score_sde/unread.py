"""Which keys of a config have no effect beside the other values."""

from ml_collections import ConfigDict

from score_sde import build
from score_sde.config import kind_keys, resolve, takes
from score_sde.data import DatasetInfo
from score_sde.errors import UserError
from score_sde.inverse import METHODS
from score_sde.schema import SCHEMA

# Stands for vectors of any length, which is not known before they are read.
VECTORS = DatasetInfo("vectors", (1,), None, 0, {"train": 0, "test": 0}, columns=("x",))


def unused(config: ConfigDict) -> set[str]:
    """Return the keys that process, network, sampler and data set do not use, given the others."""
    keys = {f"sampling.{name}" for name in build.sampler(config).without_effect}
    for key in ("sde.name", "model.name", "sampling.method"):
        section, _, name = key.partition(".")
        chosen = resolve(key, config[section][name])
        others = kind_keys(key) - takes(getattr(chosen, "Spec", chosen)).keys()
        keys |= {f"{section}.{other}" for other in others}
    known = build.known_info(config)
    if known is not None:
        keys |= {"data.condition", "data.bin_width"}
    dataset = resolve("data.name", config.data.name)
    described = dataset.info if isinstance(dataset.info, DatasetInfo) else VECTORS
    keys |= {f"model.{name}" for name in _network_without_effect(config, known or described)}
    if not dataset.streams:
        keys |= {"data.stream", "data.workers"}
    if not config.model.class_conditional:
        keys |= {"training.label_dropout", "sampling.guidance"}
    keys |= {f"training.{name}" for name in {"times_mean", "times_std"} - build.times_keys(config)}
    read = {
        "data.skip_corrupt": dataset.files,
        "data.augmentations": config.data.augment,
        "sampling.labels": build.has_classes(config),
        "sampling.guidance_interval": "guidance_interval" in build.guidance_keys(config),
        "training.halve_every": build.loss_pair(config).weight == "consistency",
        "eval.resize": config.eval.features == "inception",
        "eval.inception_weights": config.eval.features == "inception",
        "training.schedule_steps": config.training.schedule == "cosine",
        **{f"restore.{own.key}": config.restore.method == name for name, own in METHODS.items()},
    }
    keys |= {key for key, when in read.items() if not when}
    return keys & SCHEMA.keys()


def _network_without_effect(config: ConfigDict, info: DatasetInfo) -> set[str]:
    """The settings of the network without effect; none if the network is not of these data."""
    make, settings = build.network_class(config), config.model
    without = set[str]()
    if "conditional" in takes(make.Spec) and not settings.conditional:
        without.add("condition")
    if getattr(make, "rank", len(info.shape)) != len(info.shape):
        return without
    try:
        specification = build.specification(make, config, info)
    except UserError:
        return without
    return without | getattr(specification, "without_effect", set())
