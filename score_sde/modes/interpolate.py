"""`--mode interpolate`: what lies between held-out images in the probability flow's latents."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import build, data
from score_sde.batches import Interpolation
from score_sde.config import refuse
from score_sde.modes import pictures, start, tell_unread
from score_sde.modes.files import signals_wait, whole
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
    images, condition = data.load(config.data.name, "test", config.data.dir)
    labels = condition.get("labels", np.zeros(len(images), np.int32))
    conditional = config.model.class_conditional
    indices = pairs(labels if conditional else np.zeros_like(labels))
    if settings.num_pairs > len(indices):
        found = f"1 to {len(indices)}, the pairs of the test images of {config.data.name}"
        raise refuse("sampling.num_pairs", settings.num_pairs, found)
    indices = indices[: settings.num_pairs]
    trained = load(workdir, config)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"flow: {_flow(config)}")
    read = (build.keys_read(config) | READ) - BUT
    tell_unread(config, workdir, {f"sampling.{key}" for key in read})
    batches = trained.interpolation_batches(
        jax.random.key(settings.seed),
        images[indices[:, 0]],
        images[indices[:, 1]],
        settings.num_between,
        labels=labels[indices[:, 0]] if conditional else None,
    )
    parts: list[Interpolation] = []
    try:
        with tqdm(total=len(indices), unit="pair", desc="interpolate") as bar:
            for part in batches:
                parts.append(part)
                bar.update(len(part.images))
    finally:
        if parts:
            done = Interpolation(*map(np.concatenate, zip(*parts, strict=True)))
            indices = indices[: len(done.images)]
            _write(trained, done, images[indices], indices, labels[indices], workdir)
    same = done.images[:, [0, -1]] == images[indices]
    print(
        f"{len(indices)} pairs, {settings.num_between} between: NFE {done.nfe[:, :2].mean():.0f} "
        f"to the latents, {done.nfe[:, 2:].mean():.0f} back"
    )
    print(
        f"there and back: root mean square {np.sqrt(np.square(done.rms).mean()):.2e}, in the "
        f"model's units; {same.mean():.2%} of the pixels are the same integer"
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
    same = (done.images[:, [0, -1]] == real).mean(axis=(2, 3, 4))
    flow, settings = _flow(trained.config), trained.config.sampling
    # An image depends on those solved with it where all of them share a step.
    coupled = {"batch_size": settings.batch_size} if flow.coupled else {}
    rows = np.concatenate([real[:, :1], done.images[:, 1:-1], real[:, 1:]], axis=1)[:SHOWN]
    levels = build.pixel_range(trained.config).levels
    flat = rows.reshape(-1, *rows.shape[2:])
    with signals_wait():
        with whole(workdir / "interpolation.npz") as file:
            np.savez_compressed(
                file,
                **coupled,
                images=done.images,
                real=real,
                indices=indices,
                labels=labels,
                latents=done.latents,
                nfe=done.nfe,
                rms=done.rms,
                same=same,
                flow=str(flow),
                seed=settings.seed,
                step=trained.step,
            )
        pictures.save_png(workdir / "interpolation.png", flat, levels, columns=rows.shape[1])
