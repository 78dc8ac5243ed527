"""`--mode likelihood`: the likelihood of held-out data by the probability-flow ODE."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import __version__, build, data, pictures
from score_sde.batches import leading
from score_sde.config import default, flat
from score_sde.display import standard_error
from score_sde.likelihood import DataLikelihood
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.results import Table, progress
from score_sde.paths import whole
from score_sde.run import Run, load
from score_sde.workdirs import is_free

VALUES, SUMMARY, PICTURE = "likelihood.npz", "likelihood.json", "likelihood.png"
SHOWN = 8  # of the most likely images, and of the least

# The keys of the config that the numbers depend on ("name." is a whole section), and exceptions. On
# the batch's size they depend by rounding only, and a smaller batch needs less memory.
DEPENDS = ("data.", "sde.", "model.", "training.dequantize", "likelihood.")
NOT = ("data.dir", *(f"likelihood.{key}" for key in ("num_images", "batch_size", "max_steps")))
ANY = "data.stream", "data.workers"  # the data are the same: they count as their defaults


def run(config: ConfigDict, workdir: Path, output: Path, step: int | None) -> None:
    """Write into the output `likelihood.npz`, one value for each item in the data set's order, and
    their summary, `likelihood.json`; print it. `likelihood.png` has the images of the fewest
    bits/dim above those of the most.

    All are rewritten after each batch, whole or not at all. Items that `likelihood.npz` already
    holds for the same weights, data and settings are not computed again. So an interrupted run
    continues, and a complete one is printed. A run of fewer items uses the first ones and leaves
    the files. Values of other settings are kept as `likelihood.old.npz`.
    """
    start(config.likelihood.batch_size)
    compute(load(workdir, config, step=step), workdir, output)


def compute(trained: Run, workdir: Path, output: Path) -> dict[str, Any]:
    """As `run`, of a run that is loaded from the workdir; return the summary of the items asked
    for."""
    config, settings = trained.config, trained.config.likelihood
    arrays = build.arrays(config, trained.info, settings.split)
    wanted = settings.num_images or len(arrays.x)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    tell_unread(config, workdir, {f"likelihood.{key}" for key in _read(trained)})
    names = build.condition_names(config, trained.info)
    given = {name: arrays.condition[name] for name in names}
    usual = flat(default())  # of keys younger than the file
    depends = _depends(trained, arrays)
    table = Table(output / VALUES, depends, wanted, beside=(SUMMARY, PICTURE), usual=usual)
    table.report()
    if len(table):  # a kill may have come between the two files
        _write_summary(output, trained, _values(table), wanted)
        _write_picture(output, trained, _values(table), arrays.x)
    condition = leading(given, wanted)
    x: Any = arrays.x
    items = x.part(slice(wanted)) if isinstance(x, data.Streamed) else x[:wanted]
    batches = trained.likelihood_batches(
        jax.random.key(settings.seed), items, condition, first=len(table)
    )
    with progress(wanted, len(table), "item", "likelihood") as bar:
        for part in batches:
            table.add(part._asdict())
            with signals_wait():
                table.save()
                summary = _write_summary(output, trained, _values(table), wanted)
                _write_picture(output, trained, _values(table), arrays.x)
            bar.done(len(part.nfe), _figure(summary))
    summary = _summary(trained, leading(_values(table), wanted), wanted)
    print(_in_words(summary))
    stored = len(table)
    print(f"result: {output / SUMMARY}{f', of all {stored}' if stored > wanted else ''}")
    return summary


# --- What is kept ---------------------------------------------------------------------------------


def _depends(trained: Run, arrays: data.Arrays) -> dict[str, Any]:
    """Return what the numbers depend on: settings, and a digest of the weights and the split."""
    values = flat(trained.config)
    values |= {key: flat(default())[key] for key in ANY}
    values["likelihood.divergence"] = build.divergence(trained.config, trained.info)
    unread = {f"likelihood.{key}" for key in set(trained.config.likelihood) - _read(trained)}
    names = [key for key in values if is_free(key, DEPENDS) and key not in {*NOT, *unread}]
    split = (arrays.x, *(arrays.condition[name] for name in sorted(arrays.condition)))
    return {name: values[name] for name in names} | {
        "version": __version__,
        "step": trained.step,
        "weights and data": digest((*split, *jax.tree.leaves(trained.smooth_score))),
    }


def _read(trained: Run) -> set[str]:
    """The keys of the section `likelihood` that are read, given the other values."""
    exact = build.divergence(trained.config, trained.info) == "exact"
    discrete = {"dequantization", "num_importance"} if not trained.space.has_bins else set()
    return set(trained.config.likelihood) - ({"num_probes"} if exact else set()) - discrete


def _values(table: Table) -> DataLikelihood:
    """The table's rows. A missing column is None."""
    columns: dict[str, Any] = {name: table.rows.get(name) for name in DataLikelihood._fields}
    return DataLikelihood(**columns)


def _write_summary(
    output: Path, trained: Run, values: DataLikelihood, wanted: int
) -> dict[str, Any]:
    summary = _summary(trained, values, wanted)
    with whole(output / SUMMARY) as file:
        file.write(f"{json.dumps(summary, indent=2)}\n".encode())
    return summary


def _write_picture(output: Path, trained: Run, values: DataLikelihood, x: np.ndarray) -> None:
    if trained.info.levels:
        order = np.argsort(values.figure[0])
        shown = np.concatenate([order[:SHOWN], order[::-1][:SHOWN]])
        columns = len(shown) // 2
        pictures.save_png(output / PICTURE, x[shown], trained.info.levels, columns)


# --- What is said ---------------------------------------------------------------------------------


def _summary(trained: Run, values: DataLikelihood, wanted: int) -> dict[str, Any]:
    """Return the figure, with everything that it depends on."""
    config, number = trained.config, len(values.nfe)
    divergence = build.divergence(config, trained.info)
    settings, discrete = config.likelihood, trained.space.has_bins
    nats = _float64(values.log_prob if discrete else values.log_weight).mean(axis=1)
    probes = None
    if values.probe_error is not None:  # the probes are independent: squares add up
        probes = math.sqrt(np.square(_float64(values.probe_error)).sum()) / number
    up_to = "the solver" if divergence == "exact" else "solver and probes"
    points = "dequantized items, in the model's units" if discrete else "data, in their units"
    inside = config.model.dtype
    solve = "float32" if inside == "float32" else f"float32, {inside} inside"
    summary: dict[str, Any] = {}
    if discrete:
        assert values.bits_per_dim is not None
        bits = _float64(values.bits_per_dim)
        summary |= {
            "bits_per_dim": float(bits.mean()),
            "bits_per_dim_is": f"upper bound by dequantization, up to {up_to}",
            "standard_error": standard_error(bits),
        }
    bins = f"{trained.info.levels} levels" if trained.info.levels else "the columns' bins"
    return summary | {
        "standard_error_probes": probes,
        "log_prob": float(nats.mean()),
        "log_prob_standard_error": standard_error(nats),
        "log_prob_is": f"mean log density of the {points}, nats, exact up to {up_to}",
        "num_images": number,
        "items": "images" if trained.info.levels else "vectors",
        "complete": number >= wanted,
        "data": config.data.name,
        "split": settings.split,
        "given": ", ".join(build.condition_names(config, trained.info)) or None,
        "nfe": float(np.mean(values.nfe)),
        "divergence": divergence,
        "num_probes": None if divergence == "exact" else settings.num_probes,
        **{name: settings[name] for name in ("rtol", "atol", "t_min")},
        "dequantization": f"{settings.dequantization}, {bins}" if discrete else None,
        "num_importance": settings.num_importance if discrete else None,
        "precision": f"{solve}, products at highest",
        "seed": settings.seed,
        "weights": "averaged",
        "step": trained.step,
        "device": jax.devices()[0].device_kind,
    }


def _figure(summary: dict[str, Any]) -> str:
    if "bits_per_dim" in summary:
        return f"{summary['bits_per_dim']:.4f} bits/dim"
    return f"{summary['log_prob']:.4f} nats"


def _in_words(summary: dict[str, Any]) -> str:
    discrete = "bits_per_dim" in summary
    spread = summary["standard_error" if discrete else "log_prob_standard_error"]
    probes, number = summary["standard_error_probes"], summary["num_probes"]
    error = "" if spread is None else f" +- {spread:.4f}"
    given = f", given {summary['given']}" if summary["given"] else ""
    probing = "" if number is None else f", probes {number}"
    errors = ["unknown of one" if spread is None else f"{spread:.4f} over {summary['items']}"]
    errors += [f"{probes:.4f} over probes"] if probes is not None else []
    errors += ["unknown over probes, of which there is one"] if number == 1 else []
    kind = summary["bits_per_dim_is" if discrete else "log_prob_is"]
    value, unit = _figure(summary).split()
    items = f"{summary['num_images']} {summary['items']} ({summary['data']}, {summary['split']}"
    lines = [
        f"{value}{error} {unit} over {items}{given}): {kind}",
        f"standard error: {', '.join(errors)}",
    ]
    if discrete:
        log_prob = f"{summary['log_prob']:.2f}"
        if spread is not None:
            log_prob += f" +- {summary['log_prob_standard_error']:.2f}"
        draws = f"{summary['num_importance']} each"
        lines += [f"dequantization: {summary['dequantization']}, {draws}", f"log p {log_prob} nats"]
    lines += [
        f"density at t_min {summary['t_min']:g}, divergence {summary['divergence']}{probing}",
        f"NFE {summary['nfe']:.0f}, rtol {summary['rtol']:g}, atol {summary['atol']:g}, "
        f"{summary['precision']}",
    ]
    return "\n  ".join(lines)


def _float64(array: ArrayLike) -> np.ndarray:
    return np.asarray(array, np.float64)
