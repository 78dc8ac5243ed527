"""`--mode restore`: draws of what damaged images were, and images edited."""

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from score_sde import __version__, build, editing, inverse, pictures
from score_sde.batches import leading
from score_sde.config import refuse
from score_sde.display import eight_bits
from score_sde.errors import UserError
from score_sde.guidance import NO_LABEL
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.given import EDITED, MEASURED, Given, given
from score_sde.modes.results import Rows, Table, progress, saving
from score_sde.paths import whole
from score_sde.run import Run, load
from score_sde.samplers import ProbabilityFlow
from score_sde.samplers.base import Samples, from_prior

VALUES, SUMMARY, PICTURE, IMAGES = "restored.npz", "restored.json", "restored.png", "restored"
TASKS = (*MEASURED, *EDITED)
SHOWN, SHOWN_DRAWS = 40, 10  # rows of the picture, at most, and draws in each
INTERVALS = {"coverage_50": 0.5, "coverage_90": 0.9}  # columns of rows whose truth is known
METHODS: dict[str, Any] = {
    "mmps": inverse.mmps,
    "pigdm": inverse.pigdm,
    "dps": inverse.dps,
    "diffpir": inverse.diffpir,
    # One iteration is not exact for a blur. They cost little beside the network.
    "replacement": partial(inverse.replacement, iterations=8),
}
# What edited images depend on, and settings that older files lack, with their values then.
GUIDED = ("labels", "guidance", "guidance_interval", "classifier_scale")
YOUNGER = {"strength": 0.5, "label": None}


def run(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    step: int | None,
    input: Path,
    task: str,
    mask: str,
    degrade: bool,
    resize: bool,
) -> None:
    """Write into the output `restored.npz`, its summary `restored.json`, `restored.png`, a row for
    each image (the input, draws, their mean and standard deviation, and the truth where it is
    known), and the draws of each image as `restored/NAME/000000.png` and so on.

    The images done are saved every minute, and at an interruption; the same command continues after
    them. Those of other settings are kept as `restored.old.npz`.
    """
    start(config.sampling.batch_size)
    trained = load(workdir, config, step=step)
    _check(trained, task, mask, degrade)
    key = jax.random.key(config.sampling.seed)
    images = given(trained, input, task, mask, degrade, resize, key)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    _tell_settings(config, workdir, task)
    table = _table(trained, images, output, task, {"mask": mask, "degrade": degrade})
    table.report()

    def save() -> None:
        with signals_wait():
            table.save()
            _summarize(table, output / SUMMARY)
            _picture(trained, table.rows, images, task, output / PICTURE)

    def save_draws(begin: int, found: np.ndarray) -> None:
        for name, draws in zip(names[begin:], found, strict=False):
            pictures.save_each(output / IMAGES / name, draws, trained.info.levels or 256)

    names = images.names
    with (
        progress(len(names), len(table), "image", "restore") as bar,
        saving(lambda: table.changed, save) as saved,
    ):
        for part in _restored(trained, images, task, key, len(table)):
            table.set_aside()
            save_draws(len(table), part["images"])
            table.add(part)
            bar.done(len(part["nfe"]))
            saved()
    # What was deleted is made again.
    if not all((output / IMAGES / name).exists() for name in names):
        save_draws(0, table.rows["images"])
    if not all((output / name).exists() for name in (SUMMARY, PICTURE)):
        _summarize(table, output / SUMMARY)
        _picture(trained, table.rows, images, task, output / PICTURE)
    _tell(leading(table.rows, len(names)))
    print(f"summary: {output / SUMMARY}; picture: {output / PICTURE}; draws: {output / IMAGES}")


def _check(trained: Run, task: str, mask: str, degrade: bool) -> None:
    """Raise UserError for a task that the model, or the settings, cannot have."""
    config, labels = trained.config, trained.config.sampling.labels
    conditional, without = config.model.class_conditional, config.training.label_dropout > 0
    if trained.info.levels is None:
        raise UserError("--mode restore: allowed are runs of images")
    if (pairing := config.training.pairing) != "independent":
        raise refuse("training.pairing", pairing, "independent for --mode restore")
    if task not in TASKS:
        raise UserError(f"--task = {task!r}: allowed are {', '.join(TASKS)}")
    if mask and task != "inpaint":
        raise UserError(f"--mask = {mask!r}: goes with --task inpaint only")
    if degrade and task in EDITED:
        raise UserError(f"--degrade: goes with --task {', '.join(MEASURED)} only")
    if task == "relabel" and not conditional:
        raise UserError("--task = 'relabel': allowed are others, as the model has no classes")
    if task == "relabel" and config.restore.label is None and not without:
        unknown = "the class of the images, as the model is trained without label_dropout"
        raise refuse("restore.label", None, unknown)
    guided = config.sampling.guidance != 1 or config.sampling.classifier_scale
    if task == "edit" and not labels and (guided or (conditional and not without)):
        raise refuse("sampling.labels", labels, "classes, which these settings need to edit")
    if task == "edit" and getattr(build.sampler(config), "faithful", False):
        raise refuse("sampling.faithful", True, "False with --task edit")
    if task in MEASURED and conditional and not without:
        raise UserError(
            "--mode restore: allowed are models without classes, or with training.label_dropout: "
            "the classes of the images are not known"
        )
    if task == "relabel":
        with build.errors_of("sde"):
            trained.sde.check_flow(trained.smooth_score)
    if task in MEASURED:
        _check_method(trained, task)


def _check_method(trained: Run, task: str) -> None:
    """Raise UserError for a method that another setting, or the process, does not go with."""
    settings, sampler = trained.config.restore, build.sampler(trained.config)
    if not trained.sde.keeps_data():
        why = f"as alpha(T) = 0 of {type(trained.sde).__name__}"
        raise UserError(f"--task = {task!r}: allowed are {', '.join(EDITED)}, {why}")
    if settings.method == "mmps" and not settings.sigma_y:
        raise refuse("restore.sigma_y", settings.sigma_y, "positive numbers with mmps")
    if settings.method == "replacement" and isinstance(sampler, ProbabilityFlow):
        by_flow = f"others with config.sampling.method = {trained.config.sampling.method!r}"
        raise refuse("restore.method", settings.method, f"{by_flow}, which has no fixed steps")


def _sampler(config: ConfigDict, task: str) -> Any:
    if task == "relabel":
        return dataclasses.replace(build.probability_flow(config), denoise=False)
    return build.sampler(config, of_levels=task != "edit")


def _tell_settings(config: ConfigDict, workdir: Path, task: str) -> None:
    """Print how images are restored, and the settings without effect."""
    settings, sampler = config.restore, _sampler(config, task)
    how = {"edit": f"edit, strength {settings.strength:g}", "relabel": task}
    print(f"{how.get(task, settings.method)}, {sampler}")
    keys = build.keys_read(config, sampler) | {"method", "seed", "batch_size"}
    keys |= {"edit": {*GUIDED}, "relabel": {"labels"}}.get(task, set())
    tell_unread(config, workdir, {f"sampling.{key}" for key in keys})


def _table(trained: Run, images: Given, output: Path, task: str, flags: dict[str, Any]) -> Table:
    config = trained.config
    facts = {"step": trained.step, "sampler": str(_sampler(config, task)), "task": task}
    depends = {
        **facts,
        **config.restore.to_dict(),
        **({key: config.sampling[key] for key in GUIDED} if task in EDITED else {}),
        **{"seed": config.sampling.seed, **flags, "version": __version__},
        **({"intervals": INTERVALS} if flags["degrade"] else {}),
        "names": images.names,
        "images": digest((images.y, *jax.tree.leaves(images.operator))),
        "weights": digest(jax.tree.leaves((trained.score, trained.classifier))),
    }
    settings: Any = {"facts": facts, "beside": (SUMMARY, PICTURE, IMAGES), "usual": YOUNGER}
    return Table(output / VALUES, depends, len(images.names), **settings)


def _classes(trained: Run, task: str) -> np.ndarray:
    """The class of each draw of an image, int32 (draws,)."""
    config = trained.config
    if task == "relabel":
        return np.asarray(config.sampling.labels or range(trained.info.num_classes), np.int32)
    labels = config.sampling.labels if task == "edit" else ()
    return np.resize(np.asarray(labels or (NO_LABEL,), np.int32), config.restore.num_draws)


def _posterior(
    trained: Run, operator: Any, key: Array, y: Array, labels: Array, first: int
) -> Samples:
    """Draws of what was measured, (B, *measured), by the method of the config."""
    settings, sde, score = trained.config.restore, trained.sde, trained.score
    if trained.config.model.class_conditional:
        score = score.given({"labels": labels})
    noise = from_prior(key, sde, (len(y), *trained.space.shape), first, jnp.float32)
    found = METHODS[settings.method](sde, score, operator, y, settings.sigma_y)
    projects = settings.method == "replacement"
    given: Any = (score, noise) if projects else (found, noise)
    sampler = build.sampler(trained.config)
    return sampler.sample(key, sde, *given, first=first, project=found if projects else None)


def _edited(trained: Run, key: Array, x0: Array, labels: Array, first: int) -> Samples:
    """Images (B, H, W, C) to a level of noise and back."""
    config = trained.config
    condition = {"labels": labels} if build.has_classes(config) else {}
    score = build.guided(config, trained.score, condition, trained.classifier)
    sampler, strength = _sampler(config, "edit"), config.restore.strength
    with build.errors_of("restore"):
        return editing.edit(key, trained.sde, score, sampler, x0, strength, first=first)


def _relabelled(trained: Run, x0: Array, labels: Array) -> Samples:
    """Images (B, H, W, C) of one class in these classes."""
    own, model = trained.config.restore.label, trained.smooth_score
    source = model.given({"labels": jnp.full_like(labels, NO_LABEL if own is None else own)})
    target, flow = model.given({"labels": labels}), _sampler(trained.config, "relabel")
    return editing.relabel(trained.sde, source, target, x0, flow)


def _restored(
    trained: Run, images: Given, task: str, key: Array, first: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of each batch of images from the first on, with their draws."""
    config, space, classes = trained.config, trained.space, _classes(trained, task)
    number = len(classes)

    def draw(part: dict[str, Array], index: int) -> dict[str, Array]:
        rows, begin = jnp.repeat(part["y"], number, axis=0), index * number
        labels = jnp.tile(jnp.asarray(classes), len(part["y"]))
        if task == "edit":
            drawn = _edited(trained, key, rows, labels, begin)
        elif task == "relabel":
            drawn = _relabelled(trained, rows, labels)
        else:
            drawn = _posterior(trained, images.operator, key, rows, labels, begin)
        x = drawn.x.reshape(-1, number, *space.shape)
        mean, std = jnp.mean(x, axis=1), jnp.std(x, axis=1)
        row = {
            "images": space.from_model(x),
            "mean": space.from_model(mean),
            "std": std,
            "nfe": drawn.nfe.reshape(-1, number)[:, 0],
            "finite": jnp.isfinite(x).reshape(len(x), -1).all(axis=1),
        }
        if "truth" in part:
            real = space.to_model(part["truth"])
            error = jnp.mean(jnp.square(mean - real), axis=(1, 2, 3))
            wide = 2.0 if config.model.centered else 1.0
            row["psnr"] = -10.0 * jnp.log10(error / wide**2)
            if number > 1:
                row |= {name: inverse.coverage(x, real, p) for name, p in INTERVALS.items()}
        return row

    arrays = {"y": images.y} | ({} if images.truth is None else {"truth": images.truth})
    for part in trained.in_batches("sampling", draw, arrays, len(images.y), first):
        if not part.pop("finite").all():
            how = f"config.restore.method = {config.restore.method!r}"
            raise UserError(
                f"{how if task in MEASURED else f'--task = {task!r}'}: draws are not finite with "
                f"{_sampler(config, task)}; {trained.remedy('more steps, another method')}"
            )
        yield part


def _picture(trained: Run, rows: Rows, images: Given, task: str, path: Path) -> None:
    """A row for each image: the measurement, draws, their mean and deviation, and the truth."""
    levels, shape = trained.info.levels or 256, trained.info.shape
    number = min(len(rows["mean"]), SHOWN)
    y, truth = images.y, images.truth
    seen = y[:number] / shape[-1] ** 0.5 if task == "colorize" else y[:number]
    factor = shape[0] // seen.shape[1]
    seen = np.asarray(trained.space.from_model(jnp.asarray(seen)))
    seen = seen.repeat(factor, axis=1).repeat(factor, axis=2)
    seen = np.broadcast_to(seen, (number, *shape))
    cells = [seen, *np.swapaxes(rows["images"][:number, :SHOWN_DRAWS], 0, 1), rows["mean"][:number]]
    cells = [eight_bits(each, levels) for each in cells] + [eight_bits(rows["std"][:number], 256)]
    if truth is not None:
        cells.append(eight_bits(truth[:number], levels))
    sheet = np.stack(cells, axis=1)
    pictures.save_png(path, sheet.reshape(-1, *shape), 256, columns=len(cells))


def _summarize(table: Table, path: Path) -> None:
    """Write what the rows say on average."""
    number, rows = table.rows["images"].shape[1], table.rows
    summary = {
        **table.facts,
        "complete": len(table) >= table.wanted,
        "num_images": len(table),
        "num_draws": number,
        "nfe": float(rows["nfe"].mean()),
        **{name: float(rows[name].mean()) for name in ("psnr", *INTERVALS) if name in rows},
    }
    with whole(path) as file:
        file.write(f"{json.dumps(summary, indent=2)}\n".encode())


def _tell(rows: Rows) -> None:
    """Print what the draws cost, and how near they are where the truth is known."""
    number = rows["images"].shape[1]
    print(f"{len(rows['nfe'])} images, {number} draws each, NFE {rows['nfe'].mean():.0f}")
    if "psnr" in rows:
        print(f"PSNR of the mean {rows['psnr'].mean():.2f} dB")
    for name, share in INTERVALS.items():
        if name in rows:
            found = rows[name].mean()
            print(f"{share:.0%} intervals of the draws hold the truth of {found:.1%} of the pixels")
