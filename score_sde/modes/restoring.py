"""What `--mode restore` draws: the sampler and the keys of a task and a method, and the draws.

An image's row has all its draws. The noise of a draw depends on the seed and on its number among
all draws, not on the batch.

Twisted SMC takes one measurement at a time. It runs anew for each draw, and one particle is taken
at random. (Particles of one run share ancestors: they are too alike.) The draw's `nfe` counts the
evaluations of all particles.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from score_sde import build, editing
from score_sde.config import refuse
from score_sde.errors import UserError, besides
from score_sde.guidance import NO_LABEL
from score_sde.inverse import METHODS, coverage
from score_sde.modes.given import EDITED, MEASURED, Given
from score_sde.run import Run
from score_sde.samplers import ProbabilityFlow, Sampler
from score_sde.samplers.base import Samples, from_prior
from score_sde.schema import SCHEMA
from score_sde.sde import SDE, ScoreFn
from score_sde.training.mesh import along_data, on_host, placed

TASKS = (*MEASURED, *EDITED)
FAR = 0.25  # of the width of the pixels' range, beyond it
INTERVALS = {"coverage_50": 0.5, "coverage_90": 0.9}  # columns of rows whose truth is known
# The key of the section `restore` that a task has for itself.
OF_TASKS = {"super_resolve": "factor", "deblur": "blur", "edit": "strength", "relabel": "label"}


def check(trained: Run, task: str, mask: str, degrade: bool) -> None:
    """Raise UserError for a task that the model, or the settings, cannot have."""
    config, labels = trained.config, trained.config.sampling.labels
    conditional, without = config.model.class_conditional, config.training.label_dropout > 0
    if trained.info.levels is None:
        raise UserError("--mode restore: allowed are runs of images")
    if (pairing := config.training.pairing) != "independent":
        raise refuse("training.pairing", pairing, "independent for --mode restore")
    if task not in TASKS:
        raise UserError(f"--task = {task!r}: allowed are {', '.join(TASKS)}")
    if task != "edit":  # which takes any sampler
        build.check_score(config, f"--task {task}")
    if mask and task != "inpaint":
        raise UserError(f"--mask = {mask!r}: goes with --task inpaint only")
    if degrade and task in EDITED:
        raise UserError(f"--degrade: goes with --task {', '.join(MEASURED)} only")
    if task == "relabel" and not conditional:
        grey = ("colorize",) if trained.info.shape[-1] == 1 else ()
        allowed = f"{besides(TASKS, 'relabel', *grey)}, as the model has no classes"
        raise UserError(f"--task = 'relabel': allowed are {allowed}")
    if task == "relabel" and config.restore.label is None and not without:
        unknown = "the class of the images, as the model is trained without label_dropout"
        raise refuse("restore.label", None, unknown)
    if task != "relabel" and not labels:
        if conditional and not without:
            why = "as the model is trained with config.training.label_dropout = 0"
            raise refuse("sampling.labels", labels, f"classes, {why}")
        if config.sampling.guidance != 1 or config.sampling.classifier_scale:
            raise refuse("sampling.labels", labels, "classes, which guidance needs here")
    if task == "edit" and getattr(build.sampler(config), "faithful", False):
        raise refuse("sampling.faithful", True, "False with --task edit")
    if task == "relabel":
        with build.errors_of("sde"):
            trained.sde.check_flow(trained.smooth_score)
    _check_method(trained, task)


def _check_method(trained: Run, task: str) -> None:
    """Raise UserError for a method that the task, another setting, or the process does not go
    with."""
    config, settings = trained.config, trained.config.restore
    method, measured = settings.method, ", ".join(MEASURED)
    if task in EDITED:
        if method != SCHEMA["restore.method"].default:
            with_it = f"{measured} with config.restore.method = {method!r}"
            raise UserError(f"--task = {task!r}: allowed are {with_it}")
        return
    if not trained.sde.keeps_data():
        why = f"as alpha(T) = 0 of {type(trained.sde).__name__}"
        raise UserError(f"--task = {task!r}: allowed are {', '.join(EDITED)}, {why}")
    if not METHODS[method].exact and not settings.sigma_y:
        raise refuse("restore.sigma_y", settings.sigma_y, f"positive numbers with {method}")
    sampler = build.restorer(config)  # whose steps may not be those of the config's sampler
    if METHODS[method].projects and isinstance(sampler, ProbabilityFlow):
        others = besides(METHODS, method)
        by_flow = f"with config.sampling.method = {config.sampling.method!r}"
        raise refuse("restore.method", method, f"{others} {by_flow}, which has no fixed steps")
    devices = trained.mesh.size
    if _is_by_particles(config, task) and settings.particles % devices:
        raise refuse("restore.particles", settings.particles, f"multiples of the {devices} devices")
    faithful = getattr(sampler, "faithful", False)
    if METHODS[method].projects and settings.sigma_y and faithful:
        exact = "0 with config.sampling.faithful, which takes exact measurements"
        raise refuse("restore.sigma_y", settings.sigma_y, exact)


def sampler_of(config: ConfigDict, task: str) -> Sampler:
    """The sampler of a task."""
    if task == "relabel":
        return build.probability_flow(config)
    return build.restorer(config) if task in MEASURED else build.sampler(config, of_levels=False)


def keys_read(config: ConfigDict, task: str, degrade: bool) -> set[str]:
    """The keys of the sections `sampling` and `restore` that a task reads."""
    method = config.restore.method if task in MEASURED else None
    keys = build.keys_read(config, sampler_of(config, task)) | {"seed"}
    keys |= {"labels"} if task == "relabel" else build.guidance_keys(config)
    own = set() if task == "relabel" else {"num_draws"}
    if not _is_by_particles(config, task):
        keys |= {"batch_size"}
    if task != "relabel" and not (method and METHODS[method].sampler):
        keys |= {"method"}
    if task in OF_TASKS:
        own |= {OF_TASKS[task]}
    if method:
        own |= {"method", METHODS[method].key} - {""}
    if method and (degrade or METHODS[method].reads_sigma_y):
        own |= {"sigma_y"}
    return {f"sampling.{key}" for key in keys} | {f"restore.{key}" for key in own}


def _is_by_particles(config: ConfigDict, task: str) -> bool:
    return task in MEASURED and METHODS[config.restore.method].by_particles


def batch_size(config: ConfigDict, task: str) -> int:
    """States that the devices share."""
    by_particles = _is_by_particles(config, task)
    size: int = config.restore.particles if by_particles else config.sampling.batch_size
    return size


def _classes(trained: Run, task: str) -> np.ndarray:
    """The class of each draw of an image, int32 (draws,)."""
    config = trained.config
    if task == "relabel":
        return np.asarray(config.sampling.labels or range(trained.info.num_classes), np.int32)
    labels = np.asarray(config.sampling.labels or (NO_LABEL,), np.int32)
    return np.resize(labels, config.restore.num_draws)


def _guided(trained: Run, labels: Array, sampler: Sampler) -> ScoreFn:
    """The score of draws of these classes, guided as the section `sampling` says."""
    condition = {"labels": labels} if build.has_classes(trained.config) else {}
    model = dataclasses.replace(trained.score, levels=sampler.levels)
    return build.guided(trained.config, model, condition, trained.classifier)


def _posterior(config: ConfigDict, sde: SDE, score: ScoreFn, operator: Any, y: Array) -> Any:
    """The score of what was measured, or the projection on it, by the method of the config."""
    settings, method = config.restore, METHODS[config.restore.method]
    own = {method.key: settings[method.key]} if method.key and not method.sampler else {}
    return method.make(sde, score, operator, y, settings.sigma_y, **own)


def _drawn(trained: Run, operator: Any, key: Array, y: Array, labels: Array, first: int) -> Samples:
    """Draws of what was measured, (B, *measured)."""
    config, sde, sampler = trained.config, trained.sde, build.restorer(trained.config)
    score = _guided(trained, labels, sampler)
    found = _posterior(config, sde, score, operator, y)
    noise = from_prior(key, sde, (len(y), *trained.space.shape), first, jnp.float32)
    projects = METHODS[config.restore.method].projects
    if getattr(sampler, "faithful", False) and projects:
        noise = _known(found, noise)  # the original's first state
    given: Any = (score, noise) if projects else (found, noise)
    return sampler.sample(key, sde, *given, first=first, project=found if projects else None)


@jax.jit
def _known(projection: Any, x: Array) -> Array:
    """The states with the measured part of the data; of exact measurements."""
    found: Array = projection.mean(x, jnp.zeros(len(x), x.dtype))
    return found


def _drawn_by_particles(
    trained: Run, operator: Any, key: Array, y: Array, labels: Array, first: int
) -> Samples:
    """Draws of what was measured, (B, *measured). Each draw has its own particles."""
    config, sde, sampler = trained.config, trained.sde, build.restorer(trained.config)
    number, spread = config.restore.particles, along_data(trained.mesh)
    x, nfe = [], []
    for row, label in enumerate(labels):
        own = jax.random.fold_in(key, first + row)
        score = _guided(trained, jnp.full(number, label), sampler)
        found = _posterior(config, sde, score, operator, y[row : row + 1])
        noise = from_prior(own, sde, (number, *trained.space.shape), 0, jnp.float32)
        drawn = sampler.sample(own, sde, found, placed(noise, spread))
        # They have equal weights, and copies lie side by side. The key is beyond theirs.
        chosen = jax.random.randint(jax.random.fold_in(own, number), (), 0, number)
        x.append(on_host(drawn.x[chosen], trained.mesh))
        nfe.append(on_host(drawn.nfe, trained.mesh).sum())
    return Samples(jnp.asarray(np.stack(x)), jnp.asarray(np.stack(nfe)))


def _edited(trained: Run, key: Array, x0: Array, labels: Array, first: int) -> Samples:
    """Images (B, H, W, C) to a level of noise and back."""
    config = trained.config
    sampler, strength = sampler_of(config, "edit"), config.restore.strength
    score = _guided(trained, labels, sampler)
    with build.errors_of("restore"):
        return editing.edit(key, trained.sde, score, sampler, x0, strength, first=first)


def _relabelled(trained: Run, x0: Array, labels: Array) -> Samples:
    """Images (B, H, W, C) of one class in these classes."""
    own, model = trained.config.restore.label, trained.smooth_score
    source = model.given({"labels": jnp.full_like(labels, NO_LABEL if own is None else own)})
    target = model.given({"labels": labels})
    flow = build.probability_flow(trained.config)
    return editing.relabel(trained.sde, source, target, x0, flow)


def restored(
    trained: Run, images: Given, task: str, key: Array, first: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of each batch of images from the first on, with their draws."""
    config, classes = trained.config, _classes(trained, task)
    number, by_particles = len(classes), _is_by_particles(config, task)

    def draw(part: dict[str, Array], index: int) -> dict[str, Array]:
        rows, begin = jnp.repeat(part["y"], number, axis=0), index * number
        labels = jnp.tile(jnp.asarray(classes), len(part["y"]))
        if task == "edit":
            drawn = _edited(trained, key, rows, labels, begin)
        elif task == "relabel":
            drawn = _relabelled(trained, rows, labels)
        else:
            make = _drawn_by_particles if by_particles else _drawn
            drawn = make(trained, images.operator, key, rows, labels, begin)
        return _rows(trained, drawn, number, part.get("truth"))

    arrays = {"y": images.y} | ({} if images.truth is None else {"truth": images.truth})
    if by_particles:  # which are the batch
        parts = _one_by_one(draw, arrays, range(first, len(images.y)))
    else:
        parts = trained.in_batches("sampling", draw, arrays, len(images.y), first)
    for part in parts:
        if not part.pop("finite").all():
            how = f"config.restore.method = {config.restore.method!r}"
            raise UserError(
                f"{how if task in MEASURED else f'--task = {task!r}'}: draws are not finite with "
                f"{sampler_of(config, task)}; {trained.remedy('more steps, another method')}"
            )
        yield part


def _one_by_one(
    function: Callable[[Any, int], Any], arrays: dict[str, np.ndarray], indices: range
) -> Iterator[Any]:
    """What the function returns for each item by itself, as numpy arrays."""
    for index in indices:
        part = {name: array[index : index + 1] for name, array in arrays.items()}
        yield jax.tree.map(np.asarray, function(part, index))


def _rows(trained: Run, drawn: Samples, number: int, truth: Array | None) -> dict[str, Array]:
    """The rows of images of which so many draws each were made."""
    space = trained.space
    x = drawn.x.reshape(-1, number, *space.shape)
    mean, std = jnp.mean(x, axis=1), jnp.std(x, axis=1)
    low, high = (-1.0, 1.0) if trained.config.model.centered else (0.0, 1.0)
    beyond = jnp.maximum(low - x, x - high) > FAR * (high - low)
    rows = {
        "images": space.from_model(x),
        "mean": space.from_model(mean),
        "std": std,
        "nfe": jnp.mean(drawn.nfe.reshape(-1, number), axis=1),
        "far": jnp.mean(beyond, axis=(1, 2, 3, 4), dtype=jnp.float32),
        "finite": jnp.isfinite(x).reshape(len(x), -1).all(axis=1),
    }
    if truth is not None:
        real = space.to_model(truth)
        error = jnp.mean(jnp.square(mean - real), axis=(1, 2, 3))
        rows["psnr"] = -10.0 * jnp.log10(error / (high - low) ** 2)
        if number > 1:
            rows |= {name: coverage(x, real, p) for name, p in INTERVALS.items()}
    return rows
