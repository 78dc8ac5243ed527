"""`--mode likelihood`: bits per dimension of held-out images by the probability-flow ODE."""

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import __version__, build, data
from score_sde.batches import joined, leading
from score_sde.config import default, flat
from score_sde.errors import UserError
from score_sde.likelihood import ImageLikelihood
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait, whole
from score_sde.run import Run, load
from score_sde.workdirs import is_free

VALUES, SUMMARY = "likelihood.npz", "likelihood.json"

# The keys of the config that the numbers depend on, but for some ("name." is a whole section). On
# the batch they depend as much as on rounding, and a smaller one mends a lack of memory.
DEPENDS = ("data.", "sde.", "model.", "training.dequantize", "likelihood.")
BUT = ("data.dir", "likelihood.num_images", "likelihood.batch_size")


def run(config: ConfigDict, workdir: Path) -> None:
    """Write `likelihood.npz`, one value for each image in the data set's order, and their summary,
    `likelihood.json`; print it.

    Both are rewritten after each batch, whole or not at all. Images that `likelihood.npz` already
    holds for the same weights, data and settings are not computed again: an interrupted run goes
    on, a complete one is printed, one of fewer images reads the first and leaves the files.
    Values of other settings move to `likelihood.old.npz` and `likelihood.old.json` when the first
    new ones are there.
    """
    settings = config.likelihood
    start(settings.batch_size)
    images, condition = data.load(config.data.name, settings.split, config.data.dir)
    labels = condition.get("labels", np.zeros(len(images), np.int32))
    wanted = settings.num_images or len(images)
    given = labels[:wanted] if config.model.class_conditional else None
    trained = load(workdir, config)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    tell_unread(config, workdir, {f"likelihood.{key}" for key in _read(config)})
    depends = _what_the_numbers_depend_on(trained, images, labels)
    values, other = _stored(workdir, depends)
    done = 0 if values is None else len(values.nfe)
    if values is not None:
        then = "going on after them" if done < wanted else "nothing to compute"
        then = f"those of the first {wanted} follow, the files stay" if done > wanted else then
        print(f"{workdir / VALUES}: {done} images of these settings; {then}")
        _write_summary(workdir, trained, values, wanted)  # a kill may have come between the two
    batches = trained.likelihood_batches(
        jax.random.key(settings.seed), images[:wanted], labels=given, first=done
    )
    with tqdm(total=wanted, initial=min(done, wanted), unit="image", desc="likelihood") as bar:
        for part in batches:
            values = part if values is None else joined([values, part])
            with signals_wait():
                if other:
                    _set_aside(workdir, other)
                    other = None
                _write_values(workdir, values, depends)
                summary = _write_summary(workdir, trained, values, wanted)
            bar.set_postfix_str(f"{summary['bits_per_dim']:.4f} bits/dim")
            bar.update(len(part.nfe))
    assert values is not None
    print(_in_words(_summary(trained, leading(values, wanted), wanted)))
    stored = len(values.nfe)
    print(f"result: {workdir / SUMMARY}{f', of all {stored}' if stored > wanted else ''}")


# --- What is kept ---------------------------------------------------------------------------------


def _what_the_numbers_depend_on(
    trained: Run, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Return it as what JSON keeps: settings, and a digest of the weights and the whole split."""
    values = flat(trained.config)
    unread = {f"likelihood.{key}" for key in set(trained.config.likelihood) - _read(trained.config)}
    names = [key for key in values if is_free(key, DEPENDS) and key not in {*BUT, *unread}]
    depends = {name: values[name] for name in names} | {
        "version": __version__,
        "step": trained.step,
        "weights and data": digest((images, labels, *jax.tree.leaves(trained.smooth_score))),
    }
    return json.loads(json.dumps(depends))  # tuples as lists, as they will be read


def _read(config: ConfigDict) -> set[str]:
    """The keys of the section `likelihood` that are read, given the other values."""
    exact = config.likelihood.divergence == "exact"
    return set(config.likelihood) - ({"num_probes"} if exact else set())


def _stored(workdir: Path, depends: dict[str, Any]) -> tuple[ImageLikelihood | None, str | None]:
    """Return the values in the workdir that are of these settings, or why those there are not."""
    path = workdir / VALUES
    if not path.exists():
        return None, None
    try:
        with np.load(path) as arrays:
            theirs = json.loads(str(arrays["depends"]))
            columns = {name: arrays[name] for name in ImageLikelihood._fields if name in arrays}
            values = ImageLikelihood(**{"probe_error": None} | columns)  # a single probe has none
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        return None, f"not as this version writes it ({type(error).__name__})"
    usual = json.loads(json.dumps(flat(default())))  # of keys younger than the file
    theirs = {key: usual[key] for key in depends if key in usual} | theirs
    keys = [key for key in {**depends, **theirs} if depends.get(key) != theirs.get(key)]
    return (None, f"of another {', '.join(keys)}") if keys else (values, None)


def _set_aside(workdir: Path, why: str) -> None:
    """Move the files that are there, which are of other settings, and say so."""
    old = _unused(workdir)
    for name in (VALUES, SUMMARY):
        if (workdir / name).exists():
            try:
                os.replace(workdir / name, workdir / name.replace(".", f".{old}."))
            except OSError as error:
                raise UserError(f"{workdir / name}: cannot be moved ({error.strerror})") from error
    tqdm.write(f"{workdir / VALUES}: {why}; it is now {VALUES.replace('.', f'.{old}.')}")


def _unused(workdir: Path) -> str:
    """Return old, or old2, old3, ... where the files of that name are there already: what was paid
    for is never overwritten."""
    names = ["old", *(f"old{number}" for number in range(2, 1000))]
    return next(name for name in names if not any(workdir.glob(f"likelihood.{name}.*")))


def _write_values(workdir: Path, values: ImageLikelihood, depends: dict[str, Any]) -> None:
    arrays = {name: array for name, array in values._asdict().items() if array is not None}
    with whole(workdir / VALUES) as file:
        np.savez(file, **arrays, depends=np.asarray(json.dumps(depends)))


def _write_summary(
    workdir: Path, trained: Run, values: ImageLikelihood, wanted: int
) -> dict[str, Any]:
    summary = _summary(trained, values, wanted)
    with whole(workdir / SUMMARY) as file:
        file.write(f"{json.dumps(summary, indent=2)}\n".encode())
    return summary


# --- What is said ---------------------------------------------------------------------------------


def _summary(trained: Run, values: ImageLikelihood, wanted: int) -> dict[str, Any]:
    """Return everything that the figure depends on beside the figure."""
    config, number = trained.config, len(values.nfe)
    settings = config.likelihood
    bits, nats = _float64(values.bits_per_dim), _float64(values.log_prob).mean(axis=1)
    probes = None
    if values.probe_error is not None:  # of independent probes, so that the squares add up
        probes = math.sqrt(np.square(_float64(values.probe_error)).sum()) / number
    up_to = "the solver" if settings.divergence == "exact" else "solver and probes"
    solve = (
        "float32" if config.model.dtype == "float32" else f"float32, {config.model.dtype} inside"
    )
    return {
        "bits_per_dim": float(bits.mean()),
        "bits_per_dim_is": f"upper bound by dequantization, up to {up_to}",
        "standard_error": _standard_error(bits),
        "standard_error_probes": probes,
        "log_prob": float(nats.mean()),
        "log_prob_standard_error": _standard_error(nats),
        "log_prob_is": f"mean log density of the dequantized images, nats, exact up to {up_to}",
        "num_images": number,
        "complete": number >= wanted,
        "data": config.data.name,
        "split": settings.split,
        "given_class": config.model.class_conditional,
        "nfe": float(values.nfe.mean()),
        "divergence": settings.divergence,
        "num_probes": None if settings.divergence == "exact" else settings.num_probes,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "t_min": settings.t_min,
        "dequantization": f"{settings.dequantization}, {build.pixel_range(config).levels} levels",
        "num_importance": settings.num_importance,
        "precision": f"{solve}, products at highest",
        "seed": settings.seed,
        "weights": "averaged",
        "step": trained.step,
        "device": jax.devices()[0].device_kind,
    }


def _in_words(summary: dict[str, Any]) -> str:
    spread, probes = summary["standard_error"], summary["standard_error_probes"]
    error = "" if spread is None else f" +- {spread:.4f}"
    given = ", given the class" if summary["given_class"] else ""
    errors = ["unknown of one image" if spread is None else f"{spread:.4f} over images"]
    number = summary["num_probes"]
    errors += [f"{probes:.4f} over probes"] if probes is not None else []
    errors += ["unknown over probes, of which there is one"] if number == 1 else []
    log_prob = f"{summary['log_prob']:.2f}"
    if spread is not None:
        log_prob += f" +- {summary['log_prob_standard_error']:.2f}"
    return (
        f"{summary['bits_per_dim']:.4f}{error} bits/dim over {summary['num_images']} images "
        f"({summary['data']}, {summary['split']}{given}): {summary['bits_per_dim_is']}\n"
        f"  standard error: {', '.join(errors)}\n"
        f"  dequantization: {summary['dequantization']}, {summary['num_importance']} an image\n"
        f"  log p at t_min {summary['t_min']:g}: {log_prob} nats, "
        f"divergence {summary['divergence']}{'' if number is None else f', probes {number}'}\n"
        f"  NFE {summary['nfe']:.0f}, rtol {summary['rtol']:g}, atol {summary['atol']:g}, "
        f"{summary['precision']}"
    )


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean of one value of each image."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _float64(array: ArrayLike) -> np.ndarray:
    return np.asarray(array, np.float64)
