"""`--mode interpolate`: what lies between held-out images in the probability flow's latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde import __version__, build, pictures
from score_sde.batches import leading
from score_sde.config import refuse
from score_sde.errors import UserError
from score_sde.latents import Interpolation
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.results import Rows, Table, progress, saving
from score_sde.run import Run, load

VALUES, PICTURE = "interpolation.npz", "interpolation.png"
# Beside what the flow reads; it never denoises.
READ, BUT = {"method", "seed", "batch_size", "num_pairs", "num_between"}, {"denoise"}
SHOWN = 40  # more rows would make a picture that no viewer shows


def run(config: ConfigDict, workdir: Path, output: Path, step: int | None) -> None:
    """Write into the output `interpolation.png`, a row for each pair of real images with what lies
    between, and `interpolation.npz`; print the evaluations and what the way to the latents and back
    changes.

    The pairs are the test images in order, two by two; for a class-conditional model two by two of
    each class, as a pair's images share one class. The pairs done are saved every minute, and at an
    interruption; the same command continues after them. Those of other settings are kept as
    `interpolation.old.npz`.
    """
    settings, number = config.sampling, config.sampling.num_pairs
    start(settings.batch_size)
    trained = load(workdir, config, step=step)
    items, known = build.arrays(config, trained.info, "test")
    names = build.condition_names(config, trained.info)
    labels = known.get("labels", np.zeros(len(items), np.int32))
    indices = _chosen(config, labels, names)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"flow: {build.probability_flow(config)}")
    read = (build.keys_read(config) | READ) - BUT
    tell_unread(config, workdir, {f"sampling.{key}" for key in read})
    facts = _facts(trained)
    depends = _depends(trained, facts, digest((items, labels)))
    table = Table(output / VALUES, depends, number, facts=facts, beside=(PICTURE,))
    table.report()

    def save() -> None:
        with signals_wait():
            table.save()
            _picture(trained, table.rows, output / PICTURE)

    first, second = items[indices[:, 0]], items[indices[:, 1]]
    given = {name: known[name][indices[:, 0]] for name in names}
    key, between = jax.random.key(settings.seed), settings.num_between
    batches = trained.latents.interpolation_batches(
        key, first, second, between, given, begin=len(table)
    )
    with (
        progress(number, len(table), "pair", "interpolate") as bar,
        saving(lambda: table.changed, save) as saved,
    ):
        for part in batches:
            rows = slice(len(table), len(table) + len(part.x))
            real = items[indices[rows]]
            table.add(_rows(trained, part, real, indices[rows], labels[indices[rows]]))
            bar.done(len(part.x))
            saved()
    if not (output / PICTURE).exists():
        _picture(trained, table.rows, output / PICTURE)
    _report(trained, leading(table.rows, number))
    print(f"picture: {output / PICTURE}")


def _chosen(config: ConfigDict, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The indices of the pairs that a config asks for, (`sampling.num_pairs`, 2)."""
    if "vector" in names:
        raise UserError(
            "--mode interpolate: the condition differs from vector to vector, and a pair shares "
            "one; allowed are models without, or Run.interpolate with one for each pair"
        )
    indices = pairs(labels if "labels" in names else np.zeros_like(labels))
    number = config.sampling.num_pairs
    if number > len(indices):
        found = f"1 to {len(indices)}, the pairs of the test split of {config.data.name}"
        raise refuse("sampling.num_pairs", number, found)
    return indices[:number]


def pairs(classes: np.ndarray) -> np.ndarray:
    """The indices of images taken two by two within each class, in order, (pairs, 2)."""
    found: list[tuple[int, int]] = []
    waiting: dict[int, int] = {}
    for index, label in enumerate(classes.tolist()):
        if label in waiting:
            found.append((waiting.pop(label), index))
        else:
            waiting[label] = index
    return np.asarray(found, np.int32).reshape(-1, 2)


def _rows(
    trained: Run, part: Interpolation, real: np.ndarray, indices: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """What the file has of each pair."""
    same = (part.x[:, [0, -1]] == real).reshape(len(real), 2, -1).mean(axis=2)
    return {
        "images" if trained.info.levels else "x": part.x,
        "real": real,
        "indices": indices,
        "labels": labels,
        "latents": part.latents,
        "nfe": part.nfe,
        "rms": part.rms,
        "same": same,
    }


def _facts(trained: Run) -> dict[str, Any]:
    flow, settings = build.probability_flow(trained.config), trained.config.sampling
    # An item depends on those solved with it where all of them share a step.
    batch = {"batch_size": settings.batch_size} if flow.coupled else {}
    return {"flow": str(flow), "seed": settings.seed, "step": trained.step, **batch}


def _depends(trained: Run, facts: dict[str, Any], data: str) -> dict[str, Any]:
    settings = trained.config.sampling
    number = {"num_pairs": settings.num_pairs} if "batch_size" in facts else {}
    return {
        **facts,
        **number,
        "num_between": settings.num_between,
        "version": __version__,
        "data": data,
        "weights": digest(jax.tree.leaves(trained.smooth_score)),
    }


def _report(trained: Run, rows: Rows) -> None:
    settings, nfe = trained.config.sampling, rows["nfe"]
    print(
        f"{len(nfe)} pairs, {settings.num_between} between: NFE {nfe[:, :2].mean():.0f} "
        f"to the latents, {nfe[:, 2:].mean():.0f} back"
    )
    equal = rows["same"].mean()
    same = f"; {equal:.2%} of the pixels are the same integer" if trained.info.levels else ""
    print(
        f"there and back: root mean square {np.sqrt(np.square(rows['rms']).mean()):.2e}, in the "
        f"model's units{same}"
    )


def _picture(trained: Run, rows: Rows, path: Path) -> None:
    levels, columns = trained.info.levels, trained.info.columns
    x, real = rows["images" if levels else "x"], rows["real"]
    if levels:
        shown = np.concatenate([real[:, :1], x[:, 1:-1], real[:, 1:]], axis=1)[:SHOWN]
        pictures.save_png(path, np.concatenate(shown), levels, columns=shown.shape[1])
    else:
        pictures.save_scatter(path, np.concatenate(x), np.concatenate(real), columns)
