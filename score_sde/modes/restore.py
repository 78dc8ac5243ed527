"""`--mode restore`: draws of what damaged images were, and images edited."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import __version__, pictures
from score_sde.batches import leading
from score_sde.display import eight_bits
from score_sde.modes import sample, start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.given import MEASURED, Given, given
from score_sde.modes.restoring import INTERVALS, batch_size, check, keys_read, restored, sampler_of
from score_sde.modes.results import Rows, Table, progress, saving
from score_sde.paths import write_json
from score_sde.run import Run, load
from score_sde.schema import SCHEMA

VALUES, SUMMARY, PICTURE, IMAGES = "restored.npz", "restored.json", "restored.png", "restored"
SHOWN, SHOWN_DRAWS = 40, 10  # rows of the picture, at most, and draws in each
MOST_FAR = 0.01  # share of pixels that may lie far out of the range without a note
# Settings that older files lack, and their values then.
YOUNGER = sample.GUIDED | {
    "strength": 0.5,
    "label": None,
    "iterations": 3,
    "zeta": 1.0,
    "resamplings": 10,
    "particles": 64,
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
    start(batch_size(config, task))
    trained = load(workdir, config, step=step)
    check(trained, task, mask, degrade)
    key = jax.random.key(config.sampling.seed)
    images = given(trained, input, task, mask, degrade, resize, key)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    read = keys_read(config, task, degrade)
    _tell_settings(config, workdir, task, read)
    table = _table(trained, images, output, task, read, {"mask": mask, "degrade": degrade})
    table.report()

    def save() -> None:
        with signals_wait():
            table.save()
            _summarize(table, settings, output / SUMMARY)
            _picture(trained, table.rows, images, task, output / PICTURE)

    def save_draws(begin: int, found: np.ndarray) -> None:
        for name, draws in zip(names[begin:], found, strict=False):
            pictures.save_each(output / IMAGES / name, draws, trained.info.levels or 256)

    names, settings = images.names, _settings(config, read)
    with (
        progress(len(names), len(table), "image", "restore") as bar,
        saving(lambda: table.changed, save) as saved,
    ):
        for part in restored(trained, images, task, key, len(table)):
            table.set_aside()
            save_draws(len(table), part["images"])
            table.add(part)
            bar.done(len(part["nfe"]))
            saved()
    # What was deleted is made again.
    if not all((output / IMAGES / name).exists() for name in names):
        save_draws(0, table.rows["images"])
    if not all((output / name).exists() for name in (SUMMARY, PICTURE)):
        _summarize(table, settings, output / SUMMARY)
        _picture(trained, table.rows, images, task, output / PICTURE)
    _tell(leading(table.rows, len(names)))
    print(f"summary: {output / SUMMARY}; picture: {output / PICTURE}; draws: {output / IMAGES}")


def _tell_settings(config: ConfigDict, workdir: Path, task: str, read: set[str]) -> None:
    """Print how images are restored, and the settings without effect."""
    settings = config.restore
    how = {"edit": f"edit, strength {settings.strength:g}", "relabel": task}
    print(f"{how.get(task, settings.method)}, {sampler_of(config, task)}")
    tell_unread(config, workdir, read)


def _settings(config: ConfigDict, read: set[str]) -> dict[str, Any]:
    """What the summary tells of the settings: those of `restore` that the task reads, the classes,
    the guidance and the seed."""
    own = {f"restore.{key}": value for key, value in config.restore.items()}
    own |= {f"sampling.{key}": config.sampling[key] for key in ("seed", *sample.GUIDED)}
    told = read - {"restore.method", "restore.num_draws"}  # which the summary has in any case
    return {key: value for key, value in sorted(own.items()) if key in told}


def _table(
    trained: Run, images: Given, output: Path, task: str, read: set[str], flags: dict[str, Any]
) -> Table:
    config = trained.config
    facts = {"step": trained.step, "sampler": str(sampler_of(config, task)), "task": task}
    if task in MEASURED:
        facts["method"] = config.restore.method
    depends = {
        **facts,
        # A key without effect is as good as unset.
        **{
            key: value if f"restore.{key}" in read else SCHEMA[f"restore.{key}"].default
            for key, value in config.restore.items()
        },
        **{key: config.sampling[key] for key in sample.GUIDED},
        **{"seed": config.sampling.seed, **flags, "version": __version__},
        **({"intervals": INTERVALS} if flags["degrade"] else {}),
        "form": 2,  # of the file: older ones lack the column `far`
        "names": images.names,
        "images": digest((images.y, *jax.tree.leaves(images.operator))),
        "weights": digest(jax.tree.leaves((trained.score, trained.classifier))),
    }
    settings: Any = {"facts": facts, "beside": (SUMMARY, PICTURE, IMAGES), "usual": YOUNGER}
    return Table(output / VALUES, depends, len(images.names), **settings)


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


def _summarize(table: Table, settings: dict[str, Any], path: Path) -> None:
    """Write what the rows say on average, and by which settings."""
    number, rows = table.rows["images"].shape[1], table.rows
    summary = {
        **table.facts,
        **settings,
        "complete": len(table) >= table.wanted,
        "num_images": len(table),
        "num_draws": number,
        "nfe": float(rows["nfe"].mean()),
        **{name: float(rows[name].mean()) for name in ("psnr", *INTERVALS) if name in rows},
    }
    write_json(path, summary)


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
    if (far := rows["far"].mean()) > MOST_FAR:
        print(
            f"note: {far:.1%} of the draws' pixels lie far out of the pixels' range, and are cut; "
            "take more steps or another method",
            file=sys.stderr,
        )
