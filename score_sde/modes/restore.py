"""`--mode restore`: images with holes, grey, small or blurred, and draws of what they were."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from score_sde import __version__, build, inverse, pictures
from score_sde.batches import leading
from score_sde.config import refuse
from score_sde.data.decoding import SUFFIXES, CorruptImageError, decode, header
from score_sde.display import eight_bits
from score_sde.errors import UserError
from score_sde.guidance import NO_LABEL
from score_sde.inverse import operators
from score_sde.inverse.base import Operator
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.results import Rows, Table, progress, saving
from score_sde.paths import whole
from score_sde.run import Run, load
from score_sde.samplers.base import from_prior

VALUES, SUMMARY, PICTURE, IMAGES = "restored.npz", "restored.json", "restored.png", "restored"
TASKS = ("inpaint", "outpaint", "colorize", "super_resolve", "deblur")
MASKS = ("half", "box", "random")
SHOWN = 40  # rows of the picture, at most
INTERVALS = {"coverage_50": 0.5, "coverage_90": 0.9}  # columns of rows whose truth is known
MASKED, BLURRED = ("inpaint", "outpaint"), ("super_resolve", "deblur")
METHODS: dict[str, Any] = {
    "mmps": inverse.mmps,
    "pigdm": inverse.pigdm,
    "dps": inverse.dps,
    "diffpir": inverse.diffpir,
    "replacement": inverse.replacement,
}


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
    settings = config.restore
    start(config.sampling.batch_size)
    trained = load(workdir, config, step=step)
    if trained.info.levels is None:
        raise UserError("--mode restore: allowed are runs of images")
    _check(config, task, mask)
    operator, seen = _operator(config, trained.info.shape, task, mask)
    names, images = _read(input, trained, seen if not degrade else trained.info.shape, resize)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"{settings.method}, {build.sampler(config)}")
    read = {f"sampling.{key}" for key in build.keys_read(config) | {"method", "seed", "batch_size"}}
    tell_unread(config, workdir, read | {f"restore.{key}" for key in settings})
    key = jax.random.key(config.sampling.seed)
    y = _measured(trained, operator, images, task, degrade, key)
    depends = {"mask": mask, "degrade": degrade, "names": names}
    depends |= {"images": digest((y, *jax.tree.leaves(operator)))}
    table = _table(trained, output, task, depends, len(names))
    table.report()
    truth = images if degrade else None

    def save() -> None:
        with signals_wait():
            table.save()
            _summarize(table, output / SUMMARY)
            _picture(trained, table.rows, y, truth, task, output / PICTURE)

    with (
        progress(len(names), len(table), "image", "restore") as bar,
        saving(lambda: table.changed, save) as saved,
    ):
        for part in _restored(trained, operator, y, truth, key, len(table)):
            table.set_aside()
            for name, draws in zip(names[len(table) :], part["images"], strict=False):
                pictures.save_each(output / IMAGES / name, draws, trained.info.levels or 256)
            table.add(part)
            bar.done(len(part["nfe"]))
            saved()
    _tell(leading(table.rows, len(names)))
    print(f"summary: {output / SUMMARY}; picture: {output / PICTURE}; draws: {output / IMAGES}")


def _table(trained: Run, output: Path, task: str, images: dict[str, Any], wanted: int) -> Table:
    """The results so far of images that depend on these settings beside the config's."""
    config = trained.config
    facts = {"step": trained.step, "sampler": str(build.sampler(config)), "task": task}
    depends = {
        **facts,
        **config.restore.to_dict(),
        **{"seed": config.sampling.seed, "version": __version__},
        **images,
        **({"intervals": INTERVALS} if images["degrade"] else {}),
        "weights": digest(jax.tree.leaves(trained.score)),
    }
    beside = (SUMMARY, PICTURE, IMAGES)
    return Table(output / VALUES, depends, wanted, facts=facts, beside=beside)


def _check(config: ConfigDict, task: str, mask: str) -> None:
    if task not in TASKS:
        raise UserError(f"--task = {task!r}: allowed are {', '.join(TASKS)}")
    if mask and task != "inpaint":
        raise UserError(f"--mask = {mask!r}: goes with --task inpaint only")
    if config.model.class_conditional and not config.training.label_dropout:
        raise UserError(
            "--mode restore: allowed are models without classes, or with training.label_dropout: "
            "the classes of the images are not known"
        )
    if config.restore.method == "mmps" and not config.restore.sigma_y:
        raise refuse("restore.sigma_y", config.restore.sigma_y, "positive numbers with mmps")


def _operator(
    config: ConfigDict, shape: tuple[int, ...], task: str, mask: str
) -> tuple[Operator, tuple[int, ...]]:
    """The task's operator on images of a shape, and the shape of the images that are put in."""
    height, width, channels = shape
    settings = config.restore
    if task == "colorize" and channels == 1:
        raise UserError("--task = 'colorize': allowed are others, as the model's images are grey")
    if task == "colorize":
        return operators.colorize(), shape
    if task == "deblur":
        size = 2 * int(np.ceil(3 * settings.blur)) + 1
        return operators.deblur(operators.gaussian_kernel(settings.blur, size)), shape
    if task == "super_resolve":
        factor = settings.factor
        if height % factor or width % factor:
            raise refuse("restore.factor", factor, f"divisors of the sides {height} and {width}")
        return operators.super_resolve(factor), (height // factor, width // factor, channels)
    return operators.inpaint(jnp.asarray(_mask(mask or "half", shape, task))), shape


def _mask(mask: str, shape: tuple[int, ...], task: str) -> np.ndarray:
    """1 where a pixel is known: by a word, or where a picture is white. For outpainting, the middle
    of the image is known."""
    height, width, _ = shape
    known = np.ones((height, width))
    box = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    if task == "outpaint":
        known[:] = 0.0
        known[box] = 1.0
    elif mask == "half":
        known[:, width // 2 :] = 0.0
    elif mask == "box":
        known[box] = 0.0
    elif mask == "random":
        known = (np.random.default_rng(0).random((height, width)) < 0.5).astype(float)
    else:
        if not Path(mask).is_file():
            raise UserError(f"--mask = {mask!r}: allowed are {', '.join(MASKS)}, a picture's file")
        known = (_image(Path(mask), (height, width, 1), False)[..., 0] > 127).astype(float)
    return known


def _read(
    source: Path, trained: Run, shape: tuple[int, ...], resize: bool
) -> tuple[list[str], np.ndarray]:
    """The names and images of a file or folder, uint8 (n, *shape) with the model's levels."""
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"--input = '{source}': no images there")
    top = (trained.info.levels or 256) - 1
    images = np.stack([_image(path, shape, resize) for path in files])
    return [path.stem for path in files], np.rint(images * (top / 255)).astype(np.uint8)


def _image(path: Path, shape: tuple[int, ...], resize: bool) -> np.ndarray:
    """An image uint8 of a shape; UserError for another size, unless it may be resized."""
    try:
        with path.open("rb") as file:
            height, width, _ = header(file)
            if (height, width) != tuple(shape[:2]) and not resize:
                raise UserError(
                    f"{path}: has {height} x {width} pixels; allowed are {shape[0]} x {shape[1]}, "
                    "or --resize, which takes the middle and resizes it"
                )
            file.seek(0)
            return decode(file, *shape)
    except (OSError, CorruptImageError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: no image ({reason})") from error


def _measured(
    trained: Run, operator: Operator, images: np.ndarray, task: str, degrade: bool, key: Array
) -> np.ndarray:
    """The measurements in the model's units: of the images, or the images themselves."""
    x = trained.space.to_model(jnp.asarray(images))
    if not degrade and task in BLURRED:
        return np.asarray(x)
    y = operator(x)
    if not degrade:
        return np.asarray(y)
    noise = jax.random.normal(jax.random.fold_in(key, 2**32 - 2), y.shape)
    noise = noise if task not in MASKED else operator(noise)  # none where nothing is measured
    return np.asarray(y + trained.config.restore.sigma_y * noise)


def _restored(
    trained: Run,
    operator: Operator,
    y: np.ndarray,
    truth: np.ndarray | None,
    key: Array,
    first: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of each batch of images from the first on, with their draws."""
    settings, space, sde = trained.config.restore, trained.space, trained.sde
    sampler, number = build.sampler(trained.config), settings.num_draws

    def draw(part: dict[str, Array], index: int) -> dict[str, Array]:
        rows = jnp.repeat(part["y"], number, axis=0)
        score = trained.score
        if trained.config.model.class_conditional:
            score = score.given({"labels": jnp.full(len(rows), NO_LABEL, jnp.int32)})
        noise = from_prior(key, sde, (len(rows), *space.shape), index * number, jnp.float32)
        found = METHODS[settings.method](sde, score, operator, rows, settings.sigma_y)
        projects = settings.method == "replacement"
        given: Any = (score, noise) if projects else (found, noise)
        drawn = sampler.sample(
            key, sde, *given, first=index * number, project=found if projects else None
        )
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
            wide = 2.0 if trained.config.model.centered else 1.0
            row["psnr"] = -10.0 * jnp.log10(error / wide**2)
            if number > 1:
                row |= {name: inverse.coverage(x, real, p) for name, p in INTERVALS.items()}
        return row

    arrays = {"y": y} | ({} if truth is None else {"truth": truth})
    for part in trained.in_batches("sampling", draw, arrays, len(y), first):
        if not part.pop("finite").all():
            raise UserError(
                f"config.restore.method = {settings.method!r}: draws are not finite with "
                f"{sampler}; allowed are more steps, another method"
            )
        yield part


def _picture(
    trained: Run, rows: Rows, y: np.ndarray, truth: np.ndarray | None, task: str, path: Path
) -> None:
    """A row for each image: the measurement, draws, their mean and deviation, and the truth."""
    levels, shape = trained.info.levels or 256, trained.info.shape
    number = min(len(rows["mean"]), SHOWN)
    seen = y[:number] / shape[-1] ** 0.5 if task == "colorize" else y[:number]
    factor = shape[0] // seen.shape[1]
    seen = np.asarray(trained.space.from_model(jnp.asarray(seen)))
    seen = seen.repeat(factor, axis=1).repeat(factor, axis=2)
    seen = np.broadcast_to(seen, (number, *shape))
    cells = [seen, *np.swapaxes(rows["images"][:number, :4], 0, 1), rows["mean"][:number]]
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
