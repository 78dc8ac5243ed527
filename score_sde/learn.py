"""Training: from a config and its data to a `Run`."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import (
    best,
    build,
    networks,
    objectives,
    paths,
    pictures,
    rules,
    uncertainty,
    workdirs,
)
from score_sde.batches import batch_size
from score_sde.config import changed, flat, refuse, resolve
from score_sde.data import Arrays, Dataset, DatasetInfo, Streamed, describe, load, own
from score_sde.errors import UserError
from score_sde.learned import constants
from score_sde.locks import writing
from score_sde.networks import Apply
from score_sde.run import Run, assembled, info_of
from score_sde.samplers import DDIM
from score_sde.samplers.base import from_prior
from score_sde.score import Logits
from score_sde.training import averages, loop
from score_sde.training.checkpoints import BEST, RECORD, Checkpoints, newest_step, restore_ema
from score_sde.training.feed import Batches, default_workers, in_memory, streaming
from score_sde.training.logs import FILE, logged
from score_sde.training.mesh import along_data, data_mesh, is_writer, on_host, placed, replicated
from score_sde.training.powers import LENGTHS
from score_sde.training.state import TrainState, create
from score_sde.training.step import LossFn, make_train_step
from score_sde.validation import validate

# The grids drawn on the way are a look, not a result: few steps and few images.
# DDIM begins at alpha(T) = 0, too, and follows the flow whatever the noise is paired with.
LOOK_STEPS = 100
LOOK_IMAGES, LOOK_VECTORS = 16, 1024
PICTURES = "samples"  # the folder of these
# What a config says of data that are given as arrays.
OWN = {
    "data.name": own.NAME,
    "data.dir": "",
    "data.image_size": 0,
    "data.channels": 0,
    "data.num_classes": 0,
    "data.condition": (),
    "data.stream": None,
    "data.workers": None,
    "likelihood.num_images": 0,  # they have no test split
}


def train(
    config: ConfigDict,
    workdir: str | Path | None = None,
    *,
    data: ArrayLike | Arrays | None = None,
    labels: ArrayLike | None = None,
    vector: ArrayLike | None = None,
    levels: int = 256,
) -> Run:
    """Train a model up to `training.num_steps` updates.

    With a workdir it does what `--mode train` does before its report: it goes on from the newest
    checkpoint, holds the workdir's lock, and writes config, checkpoints, metrics and pictures.
    Without one all stays in memory. The numbers are the same.

    An interruption (Ctrl-C, a notebook's stop button, SIGTERM) lets the step finish. Then the
    checkpoint is saved, if there is a workdir, and the run so far is returned: its `step` is less
    than `training.num_steps`.

    Args:
        config: of the run, such as `score_sde.presets.load("vp_digits")`.
        workdir: the directory for the run, new or of an earlier training; None for none.
        data: in place of the set `data.name`: vectors, numbers (N, D); images, uint8 (N, H, W, C)
            of values 0 ... levels - 1; or `Arrays` of these, with labels and vector inside.
        labels: their classes, integers (N,).
        vector: the condition of vectors in its own units, numbers (N, k). The model gets it
            standardised (`run.info.standardised`).
        levels: of the images.

    Returns:
        The run, with the averaged weights.

    Raises:
        UserError: settings that do not go together; a workdir of another model or other data, one
            that another process trains in, or that cannot be written; numbers that are not finite.
        ValueError: `data`, `labels` or `vector` of another shape or dtype.
    """
    if isinstance(data, Arrays):
        labels, vector = data.condition.get("labels"), data.condition.get("vector")
        data = data.x
    if data is None and not (labels is None and vector is None):
        raise ValueError("labels and vector: allowed are those of `data`, which is missing")
    given = None if data is None else own.arrays(data, labels, vector, levels)
    if given:
        config = changed(config, OWN)
    validate(config)
    mesh = data_mesh()
    rules.check_devices(config, mesh.size)
    if workdir is None:
        return _train(config, None, given, mesh)
    workdir = paths.place(workdir, "workdir", checkpoints=True)
    with _one_writer(workdir):
        return _train(config, workdir, given, mesh)


def train_classifier(config: ConfigDict, workdir: Path, mesh: Mesh) -> tuple[int, Logits]:
    """Train a classifier of noisy data on the labels, under the process of the config, over the
    mesh, as `train` does a model: in the folder `classifier` of the workdir, a workdir itself.

    Returns:
        the updates made, and the classifier with the averaged weights.

    Raises:
        UserError: as `train`; a set without classes, or a network that cannot be a classifier.
    """
    folder = workdir / workdirs.CLASSIFIER
    rules.check_devices(config, mesh.size)
    info = build.dataset(config)
    if not info.num_classes:
        raise refuse("data.name", info.name, "sets with classes for a classifier")
    make = build.network(config, info, logits=info.num_classes)
    config = changed(config, {"training.average_every": 0, "sampling.average": 0.0})
    if constants(build.sde(config)):
        allowed = "processes that are not learned, for a classifier"
        raise refuse("sde.name", config.sde.name, allowed)
    with _one_writer(folder):
        arrays = build.arrays(config, info, "train")
        _begin(config, folder, info)
        loss = objectives.classifier_loss
        apply, state, _ = _fit(config, folder, info, arrays, make, loss, lambda apply: [], mesh)
    return int(state.step), build.classifier(config, apply, state.ema)


@contextmanager
def _one_writer(workdir: Path) -> Iterator[None]:
    """Hold the workdir in the process that writes. Where it cannot, none of them begins."""
    refusal = None
    with ExitStack() as stack:
        if is_writer():
            try:
                stack.enter_context(writing(workdir, "checkpoints"))
            except UserError as error:
                refusal = error
        if broadcast_one_to_all(np.int32(refusal is not None)):
            raise refusal or UserError(f"{workdir}: the process that writes may not write there")
        yield


def _train(
    config: ConfigDict, workdir: Path | None, given: tuple[DatasetInfo, Arrays] | None, mesh: Mesh
) -> Run:
    settings = config.training
    if config.sampling.average:
        raise refuse("sampling.average", config.sampling.average, "0 for --mode train")
    info, arrays = _data(config, given)
    begins = not (workdir and newest_step(workdir / "checkpoints"))
    tunes = settings["from"] or build.loss_pair(config).weight == "consistency"
    source = _source(config) if begins and tunes else None
    _begin(config, workdir, info)

    def hooks(apply: Apply) -> Iterator[loop.Hook]:
        if workdir and settings.sample_every:
            look = _pictures_of_samples(config, info, apply, arrays.x, workdir, mesh)
            yield settings.sample_every, look
        if workdir and settings.average_every:
            yield settings.average_every, averages.keeper(workdir / averages.FOLDER)
        if workdir and settings.evaluate_every:
            score = best.scorer(config, info, apply, arrays, workdir, mesh)
            yield settings.evaluate_every, score

    make = build.network(config, info)
    history = objectives.history(config)
    parts = workdir, info, arrays, make, objectives.loss, hooks, mesh, source, history
    apply, state, metrics = _fit(config, *parts)
    if workdir:
        metrics = [values for _, values in logged(workdir)]  # those of earlier parts, too
    return assembled(config, int(state.step), apply, state.ema, info, mesh, metrics)


def _begin(config: ConfigDict, workdir: Path | None, info: DatasetInfo) -> None:
    """Write the config into the workdir, or raise UserError where it is not one of its data."""
    rules.check(config, info)
    if workdir:
        _check_resumed(config, workdir, info)
        if is_writer():
            _keep_earlier(workdir)
            print(f"config: {workdirs.save(config, workdir, info)}")


def _keep_earlier(workdir: Path) -> None:
    """Move aside what another training left, or somebody else, where one begins: it would be
    taken for its own, or replaced."""
    if newest_step(workdir / "checkpoints"):
        return
    there = [workdir / name for name in (BEST, RECORD, averages.FOLDER)]
    if (log := workdir / FILE).is_file() and log.stat().st_size:
        there.append(log)
    if any((workdir / PICTURES).glob("step_*.png")):
        there.append(workdir / PICTURES)
    paths.move_aside(there, "of no checkpoint here")


def _fit(
    config: ConfigDict,
    workdir: Path | None,
    info: DatasetInfo,
    arrays: Arrays,
    make: Callable[..., Any],
    loss: Callable[[ConfigDict, Apply, DatasetInfo], LossFn],
    hooks: Callable[[Apply], Iterable[loop.Hook]],
    mesh: Mesh,
    source: Path | None = None,
    history: Any = None,
) -> tuple[Apply, TrainState, list[dict[str, float]]]:
    """Train a network of the constructor `make` by a loss, from its initial weights or a run's, and
    the loss's first history; return it, its state and the lines of its metrics."""
    settings = config.training
    # The steps' keys are folds of the same key by 0 ... num_steps - 1: stay clear of them.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
    apply, params = networks.init(make, key)
    if source:
        step, params = _weights_of(source, config, params, mesh)
        print(f"weights: the averages of {source}, step {step}")
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    feed, place = _feed(config, arrays, mesh)
    kind = "images" if info.levels else "vectors"
    print(f"data: {len(arrays.x)} {kind} of {config.data.name}{place}; parameters: {size:,}")
    optimizer = build.optimizer(config)
    kept = {"keep": settings.keep, "keep_every": settings.keep_every}
    num_powers = len(LENGTHS) if settings.average_every else 0
    metrics: list[dict[str, float]] = []
    try:
        state = loop.train(
            create(params, optimizer, mesh, history, num_powers=num_powers),
            make_train_step(loss(config, apply, info), optimizer, settings.ema_rate, mesh),
            feed,
            [*hooks(apply)],
            Checkpoints(workdir / "checkpoints", **kept) if workdir else None,
            workdir,
            num_steps=settings.num_steps,
            seed=config.seed,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
            metrics=metrics,
        )
    except FloatingPointError as error:
        place = ", in a new workdir" if workdir else ""
        allowed = f"allowed are smaller learning rates{place}"
        raise UserError(f"config.training.learning_rate: {error}; {allowed}") from error
    return apply, state, metrics


def _source(config: ConfigDict) -> Path:
    """The run whose weights a training begins with, of the same model and process."""
    key = "config.training.from"
    if not config.training["from"]:
        allowed = "workdirs of trained runs with the loss consistency"
        raise UserError(f"{key} = '': allowed are {allowed}")
    found = paths.local(config.training["from"], key)
    if not workdirs.is_run(found):
        raise UserError(f"{key} = '{found}': no {workdirs.FILE} there; allowed are runs' workdirs")
    saved = workdirs.load(found)
    differ = workdirs.changes(saved, config, workdirs.NOT_OF_WEIGHTS)
    if bool(saved.data.augment) != bool(config.data.augment):  # the network is given what was done
        differ["data.augment"] = saved.data.augment
    if differ:
        (name, was), now = next(iter(differ.items())), flat(config)
        there = f"it has config.{name} = {was!r}, this config {now[name]!r}"
        raise UserError(f"{key} = '{found}': {there}")
    return found


def _weights_of(source: Path, config: ConfigDict, params: Any, mesh: Mesh) -> tuple[int, Any]:
    """The step and the averages of a run, in place of the initial `params`; the network's alone
    where one of the two learns the uncertainty, and the other does not."""
    learns, did = config.training.uncertainty, workdirs.load(source).training.uncertainty
    read = partial(restore_ema, source / "checkpoints", sharding=replicated(mesh))
    if learns == did:
        return read(params)
    if learns:
        step, network = read(params["network"])
        return step, {**params, "network": network}
    step, found = read({"network": params, "constants": uncertainty.initial()})
    return step, found["network"]


def _data(
    config: ConfigDict, given: tuple[DatasetInfo, Arrays] | None
) -> tuple[DatasetInfo, Arrays]:
    """The facts of the data, and the training split."""
    if given is None:
        info = build.dataset(config)
        return info, build.arrays(config, info, "train")
    facts, arrays = given
    dataset = Dataset(facts, lambda split, folder: arrays)
    width = config.data.bin_width
    info = describe(dataset, condition=facts.condition, bin_width=width)
    return info, load(dataset, "train", None, info)


def _feed(config: ConfigDict, arrays: Arrays, mesh: Mesh) -> tuple[Batches, str]:
    """The batches of the training, and where the data of a set lie that could be streamed."""
    x: Any = arrays.x  # an array, or what is streamed
    examples = {"x": x, "condition": arrays.condition}
    options: Any = {"batch_size": config.training.batch_size, "seed": config.seed, "mesh": mesh}
    size = f"{x.nbytes / 2**20:,.0f} MiB"
    if not isinstance(x, Streamed):
        can = resolve("data.name", config.data.name).streams and x.dtype == np.uint8
        return in_memory(examples, **options), f" in memory, {size}" if can else ""
    workers = config.data.workers
    workers = default_workers() if workers is None else workers
    by = f"{workers} worker process{'es' * (workers > 1)}" if workers else "threads"
    return streaming(examples, workers=workers, **options), f" streamed by {by}, {size}"


def _check_resumed(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Raise UserError where a workdir is not one that this training can begin in or go on with."""
    workdirs.check_no_export(workdir)
    reached = newest_step(workdir / "checkpoints")
    if config.training.num_steps < reached:
        raise UserError(
            f"config.training.num_steps = {config.training.num_steps}: allowed are at least "
            f"{reached}, which {workdir} has reached"
        )
    kept = workdirs.load_info(workdir)
    if kept is not None and info_of(config, kept) != info:
        raise UserError(f"config.data: the data are not those that {workdir} was trained on")
    if reached:
        saved = workdirs.load(workdir)
        workdirs.check_changes("train", saved, config, workdir)
        _compare_rates(saved, config, reached)


def _compare_rates(saved: ConfigDict, config: ConfigDict, reached: int) -> None:
    """Report a learning rate that does not go on as it would have: a cosine's end has moved."""
    before, after = (float(build.learning_rate(each)(reached)) for each in (saved, config))
    if not math.isclose(before, after, rel_tol=1e-3):
        end = saved.training.schedule_steps or saved.training.num_steps
        keep = f"--config.training.schedule_steps={end} keeps the schedule that it had"
        print(f"note: step {reached} has the learning rate {after:.2g}, not {before:.2g}; {keep}")


def _pictures_of_samples(
    config: ConfigDict,
    info: DatasetInfo,
    apply: Callable[..., Array],
    real: np.ndarray,
    workdir: Path,
    mesh: Mesh,
) -> Callable[[int, TrainState], None]:
    """Return a hook for the loop, which draws samples with the averaged weights; vectors are shown
    beside the real ones."""
    space = build.space(config, info)
    number = LOOK_IMAGES if info.levels else LOOK_VECTORS
    shape = (batch_size(number, number, mesh), *space.shape)
    given, levels = build.classes_in_turn(config, info, shape[0]), config.model.num_levels
    chain: Any = {"grid": "linspace", "num_levels": levels} if levels else {}
    sampler = DDIM(num_steps=min(LOOK_STEPS, levels or LOOK_STEPS), **chain)
    if info.condition:  # the mean of the training data
        given["vector"] = np.zeros((shape[0], len(info.condition)), np.float32)

    def look(step: int, state: TrainState) -> None:
        key, model = jax.random.key(config.sampling.seed), build.model(config, apply, state.ema)
        noise = from_prior(key, model.sde, shape)
        spread = placed({"noise": noise, "given": given}, along_data(mesh))
        samples = sampler.sample(key, model.sde, model.given(spread["given"]), spread["noise"])
        x = on_host(space.from_model(samples.x), mesh)
        path = workdir / PICTURES / f"step_{step:06d}.png"
        if is_writer() and info.levels:
            pictures.save_png(path, x, info.levels)
        elif is_writer():
            pictures.save_scatter(path, x, real, info.columns)

    return look
