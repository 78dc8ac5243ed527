"""A trained run, from its workdir."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import build, classifier, densities, networks, paths, rules, workdirs
from score_sde.batches import Drawn, batch_size, in_batches, joined
from score_sde.config import changed, refuse, unknown_key
from score_sde.data import DatasetInfo, Streamed, is_only_described
from score_sde.densities import Likelihoods
from score_sde.display import own_settings, shortened, shown
from score_sde.errors import UserError, require
from score_sde.integrate import SolveError
from score_sde.latents import Interpolation, Latents
from score_sde.memory import keep_freed_memory
from score_sde.samplers.base import from_prior
from score_sde.schema import SCHEMA
from score_sde.score import Logits, Model
from score_sde.sde import SDE, expand
from score_sde.spaces import Space
from score_sde.training import averages, checkpoints
from score_sde.training.logs import logged
from score_sde.training.mesh import along_data, data_mesh, placed, replicated
from score_sde.validation import validate

Conditions = Mapping[str, ArrayLike]


@shown
@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with its config and its data's facts.

    A condition has a row for each item, under the names that the model was trained with: `labels`
    int32 (n,), `vector` float32 (n, k), standardised (`info.standardised`).

    Attributes:
        config: the config, as saved.
        step: the training step of the checkpoint.
        sde: the process.
        score: the score of the averaged weights, (x (B, *shape), t (B,)) -> (B, *shape), x in the
            model's units; with a condition `score.given(condition)`. A network trained on discrete
            levels takes them as the config's sampler does (`score_sde.score`).
        smooth_score: as `score`, and smooth in t for such a network too. The likelihood needs it.
        info: the data's facts.
        mesh: the devices that batches are spread over.
        metrics: of the training up to this step, a mapping with `step`, `loss` and so on for each
            line of `metrics.jsonl`.
        classifier: of noisy data, (x, t) -> (B, K), for `score_sde.guidance.classifier`; None
            unless the run was loaded with `sampling.classifier_scale` above 0.
    """

    config: ConfigDict
    step: int
    sde: SDE
    score: Model
    smooth_score: Model
    info: DatasetInfo
    mesh: Mesh
    metrics: Sequence[Mapping[str, float]] = ()
    classifier: Logits | None = None

    @property
    def space(self) -> Space:
        """Where the data live."""
        return build.space(self.config, self.info)

    @property
    def latents(self) -> Latents:
        """The way of the data to their latents and back."""
        parts = (self.config, self.info, self.sde, self.smooth_score, self.space)
        return Latents(*parts, partial(self.in_batches, "sampling"))

    def _facts(self) -> dict[str, str]:
        info, config = self.info, self.config
        size = sum(leaf.size for leaf in jax.tree.leaves(self.score.params))
        kind = f"images {info.shape} of {info.levels} levels"
        if info.levels is None:
            kind = f"vectors of {', '.join(info.columns)}"
        given = "".join(f", given {name}" for name in build.condition_names(config, info))
        facts = {
            "data": f"{info.name}, {kind}",
            "process": f"{self.sde}",
            "network": f"{config.model.name}, {size:,} parameters{given}",
            "training steps": f"{self.step}",
            "sampler": own_settings(build.sampler(config)),
        }
        if losses := [line["loss"] for line in self.metrics if "loss" in line]:
            facts["loss"] = f"{losses[-1]:.4g}"
        return {name: shortened(fact) for name, fact in facts.items()}

    def sample(
        self, key: Array, n: int, *, trajectory: bool | int = False, **condition: ArrayLike
    ) -> Drawn:
        """Draw n items with the config's sampler, of the classes in turn unless ``labels=`` says
        otherwise; arguments as `sample_batches`."""
        parts = self.sample_batches(key, n, condition or None, trajectory=trajectory)
        return joined(parts)._replace(levels=self.info.levels)

    def sample_batches(
        self,
        key: Array,
        n: int,
        condition: Conditions | None = None,
        *,
        trajectory: bool | int = False,
        first: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[Drawn]:
        """Draw n items, `sampling.batch_size` at a time. An item depends on its index and the key,
        not on its batch, unless the sampler is `coupled`.

        Args:
            key: a jax key.
            n: how many.
            condition: of each; by default the classes in turn.
            trajectory: also the states on the way from noise to item: all, or so many at most.
            first: index of the first item to draw, where some of the n are drawn already.
            progress: called from inside a batch with the share of it that is done.

        Raises:
            ValueError: n below 1, or another condition than the model's.
            UserError: samples that are not finite, or a solve that fails.
        """
        require(n >= 1, "n", n, "integers of at least 1")
        sampler, space = build.sampler(self.config), self.space
        if condition is None:
            condition = build.classes_in_turn(self.config, self.info, n, drawn=True)
        given = build.checked_condition(self.config, self.info, n, condition, drawn=True)

        spread = along_data(self.mesh)

        def draw(given: dict[str, Array], index: int) -> tuple[Drawn, Array]:
            # Drawn for each batch, and spread over the devices: so the sampler runs on all of them.
            shape = (self.batch_size(n), *space.shape)
            noise = placed(from_prior(key, self.sde, shape, index, jnp.float32), spread)
            options: Any = {"trajectory": trajectory, "first": index, "progress": progress}
            score = build.guided(self.config, self.score, given, self.classifier)
            found = sampler.sample(key, self.sde, score, noise, **options)
            path = found.trajectory
            states = None if path is None else jnp.swapaxes(space.from_model(path), 0, 1)
            finite = jnp.isfinite(found.x).reshape(len(found.x), -1).all(axis=1)
            return Drawn(space.from_model(found.x), found.nfe, given, states), finite

        for drawn, finite in self.in_batches("sampling", draw, given, n, first):
            if not finite.all():
                raise UserError(
                    f"config.sampling: {(~finite).sum()} of {len(finite)} samples are not finite "
                    f"with {sampler}; {self.remedy('more or smaller steps')}"
                )
            yield drawn

    def remedy(self, steps: str) -> str:
        """What to do where samples are not finite, in words: `steps`, unless the score itself is
        not finite at noise of its levels."""
        t = jnp.linspace(self.sde.T, self.config.training.t_min, 8, dtype=jnp.float32)
        z = jax.random.normal(jax.random.key(0), (len(t), *self.space.shape), jnp.float32)
        given: Any = build.classes_in_turn(self.config, self.info, len(t))
        if self.info.condition:  # the mean of the training data
            given["vector"] = np.zeros((len(t), len(self.info.condition)), np.float32)
        _, std = self.sde.marginal(z, t)
        score = jax.jit(lambda model, x: model(x, t))(self.score.given(given), expand(std, z) * z)
        if jnp.isfinite(score).all():
            return f"allowed are {steps}"
        return (
            "the score is not a finite number, so no setting of sampling helps; allowed are other "
            "checkpoints (--step), or a training with a smaller learning rate"
        )

    def changed(self, values: Mapping[str, Any]) -> "Run":
        """Return the run with other settings of sampling or likelihood: `run.changed(
        {"sampling.method": "unipc", "sampling.num_steps": 15})`. Values are given as to
        `score_sde.config.changed`, and the weights are shared.

        Raises:
            UserError: an unknown key, one of the training, or a value that is not allowed.
        """
        for key, value in values.items():
            if key not in SCHEMA:
                raise unknown_key(key, value)
            if not key.startswith(("sampling.", "likelihood.")):
                raise refuse(key, value, "those of sampling and likelihood for a trained model")
        config = changed(self.config, values)
        validate(config)
        if (length := config.sampling.average) != self.config.sampling.average:
            allowed = f"{self.config.sampling.average}, as the run was loaded with those weights"
            raise refuse("sampling.average", length, allowed)
        rules.check(config, self.info)
        parts = self.step, self.score.apply, self.score.params, self.info, self.mesh
        return dataclasses.replace(
            assembled(config, *parts, self.metrics), classifier=self.classifier
        )

    def batch_size(self, n: int) -> int:
        """How many of n samples are drawn at a time."""
        return batch_size(n, self.config.sampling.batch_size, self.mesh)

    def encode(self, key: Array, data: ArrayLike, **condition: ArrayLike) -> np.ndarray:
        """Return the latents of items by the probability flow, float32 (n, *shape).

        `sampling.solver`, `rtol`, `atol`, `step_control` and `t_min` hold, with any
        `sampling.method`. A model that was trained on dequantized data (`training.dequantize`)
        gets such, others the data as they are. The flow is that of the model's own score, without
        `sampling.guidance`; so it is in `decode`, `interpolate` and `log_likelihood`.

        Args:
            key: a jax key, for dequantization.
            data: items of the space, (n, *shape).
            condition: of each item, for a conditional model.

        Raises:
            ValueError: other data, or another condition than the model's.
            UserError: a solve that fails, with the reason.
        """
        x = self.latents.to_model(key, self.space.check(data))
        return self.latents.flow(x, condition, back=False)[0]

    def decode(self, latents: ArrayLike, **condition: ArrayLike) -> np.ndarray:
        """Return the items of latents (n, *shape): the inverse of `encode`, so without the
        denoising of `sample`. Arguments and errors as there."""
        x, shape = np.asarray(latents, np.float32), self.space.shape
        if x.shape[1:] != shape or not len(x):
            raise ValueError(f"latents are {x.shape}: allowed are (n, *{shape}), n of at least 1")
        if not np.isfinite(x).all():
            raise ValueError("latents: allowed are finite numbers")
        x, _ = self.latents.flow(x, condition, back=True)
        return np.asarray(self.space.from_model(jnp.asarray(x)))

    def interpolate(
        self, key: Array, first: ArrayLike, second: ArrayLike, num: int, **condition: ArrayLike
    ) -> Interpolation:
        """Decode `num` latents on the great circle between those of each pair (`slerp`).

        Args:
            key: a jax key, for dequantization.
            first: items of the space, (n, *shape).
            second: likewise.
            num: how many between each pair, at equal angles.
            condition: of each pair, for a conditional model.

        Raises: as `encode`.
        """
        parts = self.latents.interpolation_batches(key, first, second, num, condition)
        return joined(parts)._replace(levels=self.info.levels)

    def in_batches(
        self, section: str, function: Callable[[Any, int], Any], arrays: Any, n: int, first: int = 0
    ) -> Iterator[Any]:
        """`in_batches` of the section's size. A solve that fails is an error of the section, whose
        tolerances it could not meet."""
        try:
            yield from in_batches(
                function, arrays, n, self.config[section].batch_size, self.mesh, first=first
            )
        except SolveError as error:
            keys = ", ".join(f"config.{section}.{name}" for name in error.larger)
            line = f"{keys}: {error}; allowed are larger ones" if keys else f"{section}: {error}"
            raise UserError(line) from error

    def log_likelihood(self, key: Array, data: ArrayLike, **condition: ArrayLike) -> Likelihoods:
        """Compute the likelihood of items with the config's settings. Integer images get bounds of
        bits/dim: by the flow, from log densities that are exact up to solver and probes, or
        variational ones (`likelihood.method`).

        Args:
            key: a jax key, for dequantization and the method's draws.
            data: items of the space, (n, *shape).
            condition: of each item, for a conditional model; the likelihoods are those given it.

        Returns:
            numpy arrays: `score_sde.likelihood.DataLikelihood`, or `score_sde.bounds.Bound`.

        Raises:
            ValueError: other data, or another condition than the model's.
            UserError: a solve that fails, with the reason.
        """
        return joined(self.likelihood_batches(key, data, condition))

    def likelihood_batches(
        self,
        key: Array,
        data: ArrayLike | Streamed,
        condition: Conditions | None = None,
        *,
        first: int = 0,
    ) -> Iterator[Likelihoods]:
        """As `log_likelihood`, `likelihood.batch_size` items at a time, in order, from the item of
        index `first` on. Data may be a split's that is streamed, which was checked as it was
        opened."""
        build.check_score(self.config, "likelihoods")
        with build.errors_of("sde"):
            densities.METHODS[self.config.likelihood.method].check(self.sde, self.smooth_score)
        items = data if isinstance(data, Streamed) else self.space.check(data)

        def likelihood(part: tuple[Array, dict[str, Array]], index: int) -> Likelihoods:
            model = self.smooth_score.given(part[1])
            return densities.compute(self.config, self.info, key, model, part[0], index)

        arrays = (items, build.checked_condition(self.config, self.info, len(items), condition))
        return self.in_batches("likelihood", likelihood, arrays, len(items), first)


def info_of(config: ConfigDict, kept: DatasetInfo | None) -> DatasetInfo:
    """Return the facts of a run's data: those that its workdir keeps, or of the set that the config
    names instead of one that was only described.

    Raises UserError where the network cannot be given that set.
    """
    name = config.data.name
    if kept is not None and (name == kept.name or not is_only_described(kept.name)):
        return kept
    info = build.dataset(config)
    if kept is None:
        return info
    if kept.levels is None:  # the network knows vectors by the constants that it was trained with
        return dataclasses.replace(kept, name=info.name, splits=info.splits)
    # Of a model from elsewhere it is not known how many levels its images had.
    levels = info.levels if kept.name == "images" else kept.levels
    if (info.shape, info.levels) != (kept.shape, levels) or (
        kept.num_classes not in (0, info.num_classes)
    ):
        number = f" of {kept.num_classes} classes" if kept.num_classes else ""
        allowed = f"sets of images {kept.shape}{number} with {levels} levels"
        raise refuse("data.name", name, f"{allowed}, as the network's")
    return info


def load(
    workdir: str | Path,
    config: ConfigDict | None = None,
    mesh: Mesh | None = None,
    step: int | None = None,
) -> Run:
    """Load a run from its workdir, with the averaged weights.

    Args:
        workdir: the directory that `--mode train` filled, or its URL `gs://...`.
        config: instead of the saved config; for other sampling or likelihood settings.
        mesh: the devices to use; all of them by default.
        step: of the checkpoint, that in `best` too; by default the newest that is whole.

    Raises:
        UserError: where there is no config or no checkpoint.
    """
    workdir = paths.place(workdir, "workdir", checkpoints=True)
    config = workdirs.load(workdir) if config is None else config
    validate(config)
    info = info_of(config, workdirs.load_info(workdir))
    rules.check(config, info)
    mesh = data_mesh() if mesh is None else mesh
    apply, params = networks.abstract(build.network(config, info))
    folder = checkpoints.folder_of(workdir, step)
    place, length = replicated(mesh), config.sampling.average
    if length:
        kept = workdir / averages.FOLDER
        step, ema = averages.restore(folder, kept, params, length, place, step)
    else:
        step, ema = checkpoints.restore_ema(folder, params, place, step)
    metrics = [values for _, values in logged(workdir) if values["step"] <= step]
    run = assembled(config, step, apply, ema, info, mesh, metrics)
    if not config.sampling.classifier_scale:
        return run
    return dataclasses.replace(run, classifier=classifier.load(workdir, config, info, mesh)[1])


def assembled(
    config: ConfigDict,
    step: int,
    apply: Callable[..., Array],
    ema: Any,
    info: DatasetInfo,
    mesh: Mesh,
    metrics: Sequence[Mapping[str, float]],
) -> Run:
    """Return the run of a network `apply` and its averaged weights."""
    keep_freed_memory()
    classes = info.num_classes if config.model.class_conditional else 0
    smooth = build.model(config, apply, ema, num_classes=classes)
    score = dataclasses.replace(smooth, levels=build.sampler(config).levels)
    return Run(config, step, score.sde, score, smooth, info, mesh, metrics)
