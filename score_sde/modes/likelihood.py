"""`--mode likelihood`: the likelihood of held-out data, by the method of the config."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import __version__, build, data, pictures
from score_sde.batches import leading
from score_sde.bounds import Bound
from score_sde.config import default, flat
from score_sde.densities import Likelihoods, keys_read, of_rows
from score_sde.display import standard_error
from score_sde.likelihood import DataLikelihood
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.results import Table, progress
from score_sde.paths import write_json
from score_sde.run import Run, load
from score_sde.workdirs import is_free

VALUES, SUMMARY, PICTURE = "likelihood.npz", "likelihood.json", "likelihood.png"
TERMS = "prior", "diffusion", "reconstruction"  # of a variational bound
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
    trained = load(workdir, config, step=step)
    tell_unread(config, workdir, {f"likelihood.{key}" for key in keys_read(config, trained.info)})
    compute(trained, workdir, output)


def compute(trained: Run, workdir: Path, output: Path) -> dict[str, Any]:
    """As `run`, of a run that is loaded from the workdir; return the summary of the items asked
    for."""
    config, settings = trained.config, trained.config.likelihood
    arrays = build.arrays(config, trained.info, settings.split)
    wanted = settings.num_images or len(arrays.x)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    read = {f"likelihood.{key}" for key in keys_read(config, trained.info)}
    names = build.condition_names(config, trained.info)
    given = {name: arrays.condition[name] for name in names}
    usual = flat(default())  # of keys younger than the file
    depends = _depends(trained, arrays, read)
    table = Table(output / VALUES, depends, wanted, beside=(SUMMARY, PICTURE), usual=usual)
    table.report()
    if len(table):  # a kill may have come between the two files
        _write(output, trained, of_rows(table.rows), wanted, arrays.x)
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
                summary = _write(output, trained, of_rows(table.rows), wanted, arrays.x)
            bar.done(len(part.nfe), _figure(summary))
    summary = _summary(trained, leading(of_rows(table.rows), wanted), wanted)
    print(_in_words(summary))
    stored = len(table)
    print(f"result: {output / SUMMARY}{f', of all {stored}' if stored > wanted else ''}")
    return summary


# --- What is kept ---------------------------------------------------------------------------------


def _depends(trained: Run, arrays: data.Arrays, read: set[str]) -> dict[str, Any]:
    """Return what the numbers depend on: settings, and a digest of the weights and the split."""
    values = flat(trained.config)
    values |= {key: flat(default())[key] for key in ANY}
    values["likelihood.divergence"] = build.divergence(trained.config, trained.info)
    unread = {key for key in values if key.startswith("likelihood.")} - read
    names = [key for key in values if is_free(key, DEPENDS) and key not in {*NOT, *unread}]
    split = (arrays.x, *(arrays.condition[name] for name in sorted(arrays.condition)))
    return {name: values[name] for name in names} | {
        "version": __version__,
        "step": trained.step,
        "weights and data": digest((*split, *jax.tree.leaves(trained.smooth_score))),
    }


def _write(
    output: Path, trained: Run, values: Likelihoods, wanted: int, x: np.ndarray
) -> dict[str, Any]:
    """Write summary and picture; return the summary."""
    summary = _summary(trained, values, wanted)
    write_json(output / SUMMARY, summary)
    if trained.info.levels:
        order = np.argsort(values.figure[0])
        shown = np.concatenate([order[:SHOWN], order[::-1][:SHOWN]])
        columns = len(shown) // 2
        pictures.save_png(output / PICTURE, x[shown], trained.info.levels, columns)
    return summary


# --- What is said ---------------------------------------------------------------------------------


def _summary(trained: Run, values: Likelihoods, wanted: int) -> dict[str, Any]:
    """Return the figure, with everything that it depends on."""
    config, number, discrete = trained.config, len(values.nfe), trained.space.has_bins
    settings = config.likelihood
    inside = config.model.dtype
    inner = "float32" if inside == "float32" else f"float32, {inside} inside"
    if isinstance(values, Bound):
        figures, facts = _of_bound(trained, values)
    else:
        figures, facts = _of_flow(trained, values)
    summary: dict[str, Any] = {}
    if discrete:
        assert values.bits_per_dim is not None
        bits = _float64(values.bits_per_dim)
        summary |= {
            "bits_per_dim": float(bits.mean()),
            "bits_per_dim_is": figures.pop("bits_per_dim_is"),
            "standard_error": standard_error(bits),
        }
    return summary | {
        **figures,
        "num_images": number,
        "items": "images" if trained.info.levels else "vectors",
        "complete": number >= wanted,
        "data": config.data.name,
        "split": settings.split,
        "given": ", ".join(build.condition_names(config, trained.info)) or None,
        "nfe": float(np.mean(values.nfe)),
        **facts,
        "precision": f"{inner}, products at highest",
        "seed": settings.seed,
        "weights": "averaged",
        "step": trained.step,
        "device": jax.devices()[0].device_kind,
    }


def _of_flow(trained: Run, values: DataLikelihood) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures by the flow beside bits/dim, and the settings that they depend on."""
    settings, discrete = trained.config.likelihood, trained.space.has_bins
    divergence = build.divergence(trained.config, trained.info)
    nats = _float64(values.log_prob if discrete else values.log_weight).mean(axis=1)
    probes = None
    if values.probe_error is not None:  # the probes are independent: squares add up
        probes = _error_of_mean(values.probe_error)
    up_to = "the solver" if divergence == "exact" else "solver and probes"
    points = "dequantized items, in the model's units" if discrete else "data, in their units"
    figures = {
        "bits_per_dim_is": f"upper bound by dequantization, up to {up_to}",
        "standard_error_probes": probes,
        "log_prob": float(nats.mean()),
        "log_prob_standard_error": standard_error(nats),
        "log_prob_is": f"mean log density of the {points}, nats, exact up to {up_to}",
    }
    return figures, {
        "divergence": divergence,
        "num_probes": None if divergence == "exact" else settings.num_probes,
        **{name: settings[name] for name in ("rtol", "atol", "t_min")},
        "dequantization": f"{settings.dequantization}, {_bins(trained)}" if discrete else None,
        "num_importance": settings.num_importance if discrete else None,
    }


def _of_bound(trained: Run, values: Bound) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `_of_flow`, by a variational bound. Its terms add up to the figure, except for the sign of
    a log density. Those of a chain's steps begin with the least noise."""
    settings, space = trained.config.likelihood, trained.space
    unit = math.log(2.0) * math.prod(space.shape) if space.has_bins else 1.0
    terms = {name: float(_float64(getattr(values, name)).mean()) / unit for name in TERMS}
    steps = values.steps
    error = None if values.time_error is None else _error_of_mean(values.time_error) / unit
    number, levels = settings.num_times, trained.config.model.num_levels
    how = f"{number} times each"
    if steps is not None:
        how = f"all {levels} levels" if levels else f"{number} levels evenly spread in time"
        how += ", one noise each"
    kind = f"variational bound, up to Monte Carlo, {how}"
    nats = _float64(values.log_prob)
    figures = {
        "bits_per_dim_is": f"upper bound: {kind}",
        "standard_error_times": error,
        "log_prob": float(nats.mean()),
        "log_prob_standard_error": standard_error(nats),
        "log_prob_is": f"lower bound, nats: {kind}",
        **terms,
        "terms_are": "bits/dim" if space.has_bins else "nats",
        "steps": None if steps is None else (_float64(steps).mean(axis=0) / unit).tolist(),
    }
    decoder = "Gaussian density"
    if space.has_bins:
        decoder += f" of dequantized items, uniform, {_bins(trained)}"
        decoder = decoder if space.dequantize else f"discretized Gaussian, {_bins(trained)}"
    facts: dict[str, Any] = {"num_times": number, "t_min": settings.t_min}
    if steps is not None:
        facts = ({"num_levels": levels} if levels else facts) | {"variance": settings.variance}
    return figures, {"decoder": decoder, **facts}


def _bins(trained: Run) -> str:
    return f"{trained.info.levels} levels" if trained.info.levels else "the columns' bins"


def _figure(summary: dict[str, Any]) -> str:
    if "bits_per_dim" in summary:
        return f"{summary['bits_per_dim']:.4f} bits/dim"
    return f"{summary['log_prob']:.4f} nats"


def _in_words(summary: dict[str, Any]) -> str:
    discrete = "bits_per_dim" in summary
    spread = summary["standard_error" if discrete else "log_prob_standard_error"]
    error = "" if spread is None else f" +- {spread:.4f}"
    given = f", given {summary['given']}" if summary["given"] else ""
    errors = ["unknown of one" if spread is None else f"{spread:.4f} over {summary['items']}"]
    kind = summary["bits_per_dim_is" if discrete else "log_prob_is"]
    value, unit = _figure(summary).split()
    items = f"{summary['num_images']} {summary['items']} ({summary['data']}, {summary['split']}"
    more, rest = (_words_of_bound if "decoder" in summary else _words_of_flow)(summary)
    lines = [
        f"{value}{error} {unit} over {items}{given}): {kind}",
        f"standard error: {', '.join(errors + more)}",
        *rest,
    ]
    return "\n  ".join(lines)


def _words_of_flow(summary: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return further errors, and lines."""
    probes, number = summary["standard_error_probes"], summary["num_probes"]
    errors = [f"{probes:.4f} over probes"] if probes is not None else []
    errors += ["unknown over probes, of which there is one"] if number == 1 else []
    lines = []
    if "bits_per_dim" in summary:
        log_prob, spread = f"{summary['log_prob']:.2f}", summary["log_prob_standard_error"]
        log_prob += "" if spread is None else f" +- {spread:.2f}"
        draws = f"{summary['num_importance']} each"
        lines = [f"dequantization: {summary['dequantization']}, {draws}", f"log p {log_prob} nats"]
    probing = "" if number is None else f", probes {number}"
    return errors, [
        *lines,
        f"density at t_min {summary['t_min']:g}, divergence {summary['divergence']}{probing}",
        f"NFE {summary['nfe']:.0f}, rtol {summary['rtol']:g}, atol {summary['atol']:g}, "
        f"{summary['precision']}",
    ]


def _words_of_bound(summary: dict[str, Any]) -> tuple[list[str], list[str]]:
    """As `_words_of_flow`."""
    error = summary["standard_error_times"]
    terms = ", ".join(f"{name} {summary[name]:.4f}" for name in TERMS)
    where = [f"t_min {summary['t_min']:g}"] if "t_min" in summary else []
    where += [f"variance {summary['variance']}"] if "variance" in summary else []
    return [f"at most {error:.4f} over times"] if error is not None else [], [
        f"{terms} {summary['terms_are']}",
        f"decoder: {summary['decoder']}, {', '.join(where)}",
        f"NFE {summary['nfe']:.0f}, {summary['precision']}",
    ]


def _error_of_mean(errors: ArrayLike) -> float:
    """The standard error of the mean of items with these independent errors."""
    return math.sqrt(np.square(_float64(errors)).sum()) / len(_float64(errors))


def _float64(array: ArrayLike) -> np.ndarray:
    return np.asarray(array, np.float64)
