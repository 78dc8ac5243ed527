"""`--mode interpolate`: what lies between held-out images in the probability flow's latents."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde import build
from score_sde.batches import joined
from score_sde.config import refuse
from score_sde.errors import UserError
from score_sde.latents import Interpolation, interpolation_batches
from score_sde.modes import pictures, start, tell_unread
from score_sde.modes.files import signals_wait, whole
from score_sde.modes.results import progress
from score_sde.run import Run, load
from score_sde.samplers import ProbabilityFlow

# Beside what the flow reads; it never denoises.
READ, BUT = {"method", "seed", "batch_size", "num_pairs", "num_between"}, {"denoise"}
SHOWN = 40  # more rows would make a picture that no viewer shows


def run(config: ConfigDict, workdir: Path) -> None:
    """Write `interpolation.png`, a row for each pair of real images with what lies between, and
    `interpolation.npz`; print the evaluations and what the way to the latents and back changes.

    The pairs are the test images in order, two by two; for a class-conditional model two by two of
    each class, as a pair's images share one class. An interruption leaves the pairs done by then.
    """
    settings = config.sampling
    start(settings.batch_size)
    trained = load(workdir, config)
    items, known = build.arrays(config, trained.info, "test")
    names = build.condition_names(config, trained.info)
    if "vector" in names:
        raise UserError(
            "--mode interpolate: the condition differs from vector to vector, and a pair shares "
            "one; allowed are models without, or Run.interpolate with one for each pair"
        )
    labels = known.get("labels", np.zeros(len(items), np.int32))
    indices = pairs(labels if "labels" in names else np.zeros_like(labels))
    if settings.num_pairs > len(indices):
        found = f"1 to {len(indices)}, the pairs of the test split of {config.data.name}"
        raise refuse("sampling.num_pairs", settings.num_pairs, found)
    indices = indices[: settings.num_pairs]
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"flow: {_flow(config)}")
    read = (build.keys_read(config) | READ) - BUT
    tell_unread(config, workdir, {f"sampling.{key}" for key in read})
    first, second = items[indices[:, 0]], items[indices[:, 1]]
    given = {name: known[name][indices[:, 0]] for name in names}
    key = jax.random.key(settings.seed)
    batches = interpolation_batches(trained, key, first, second, settings.num_between, given)
    parts: list[Interpolation] = []
    try:
        with progress(len(indices), 0, "pair", "interpolate") as bar:
            for part in batches:
                parts.append(part)
                bar.done(len(part.x))
    finally:
        if parts:
            done = joined(parts)
            indices = indices[: len(done.x)]
            _write(trained, done, items[indices], indices, labels[indices], workdir)
    print(
        f"{len(indices)} pairs, {settings.num_between} between: NFE {done.nfe[:, :2].mean():.0f} "
        f"to the latents, {done.nfe[:, 2:].mean():.0f} back"
    )
    equal = (done.x[:, [0, -1]] == items[indices]).mean()
    same = f"; {equal:.2%} of the pixels are the same integer" if trained.info.levels else ""
    print(
        f"there and back: root mean square {np.sqrt(np.square(done.rms).mean()):.2e}, in the "
        f"model's units{same}"
    )
    print(f"picture: {workdir / 'interpolation.png'}")


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


def _flow(config: ConfigDict) -> ProbabilityFlow:
    return dataclasses.replace(build.probability_flow(config), denoise=False)


def _write(
    trained: Run,
    done: Interpolation,
    real: np.ndarray,
    indices: np.ndarray,
    labels: np.ndarray,
    workdir: Path,
) -> None:
    flow, settings, levels = _flow(trained.config), trained.config.sampling, trained.info.levels
    # An item depends on those solved with it where all of them share a step.
    same = (done.x[:, [0, -1]] == real).reshape(len(real), 2, -1).mean(axis=2)
    arrays: dict[str, Any] = {
        **({"batch_size": settings.batch_size} if flow.coupled else {}),
        "images" if levels else "x": done.x,
        "real": real,
        "indices": indices,
        "labels": labels,
        "latents": done.latents,
        "nfe": done.nfe,
        "rms": done.rms,
        "same": same,
        "flow": str(flow),
        "seed": settings.seed,
        "step": trained.step,
    }
    with signals_wait():
        with whole(workdir / "interpolation.npz") as file:
            np.savez_compressed(file, **arrays)
        path = workdir / "interpolation.png"
        if levels:
            rows = np.concatenate([real[:, :1], done.x[:, 1:-1], real[:, 1:]], axis=1)[:SHOWN]
            pictures.save_png(path, np.concatenate(rows), levels, columns=rows.shape[1])
        else:
            columns = trained.info.columns
            pictures.scatter(path, np.concatenate(done.x), np.concatenate(real), columns)
