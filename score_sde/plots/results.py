"""What was measured: losses, quality against evaluations, likelihoods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from score_sde import paths
from score_sde.display import mean_with_error, standard_error
from score_sde.plots.base import PANEL, Figure, Plain, colours
from score_sde.training.logs import FILE, logged

BINS = 40
LOGGED = {"loss": "loss", "grad_norm": "norm of the gradient", "learning_rate": "learning rate"}


def losses(metrics: Any, names: Sequence[str] = ("loss", "grad_norm")) -> Figure:
    """What training logged against its step, a panel for each name: means since the line before,
    and the learning rate as it was.

    Args:
        metrics: a workdir, a `Run`, or the lines of a `metrics.jsonl` as mappings with `step` and
            the names; or a mapping of several by their titles.
        names: of `loss`, `grad_norm`, `learning_rate` and what else is logged.

    Raises:
        ValueError: no lines.
    """
    runs = metrics if isinstance(metrics, Mapping) else {"": metrics}
    figure = Figure(len(names) * PANEL, 0.75 * PANEL)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for title, run in runs.items():
        lines = _lines(run)
        for axes, name in zip(panels, names, strict=True):
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*np.transpose(points), label=title, linewidth=1.0)
    for axes, name in zip(panels, names, strict=True):
        axes.set(xlabel="training step", ylabel=LOGGED.get(name, name))
        _in_decades(axes, *([] if name == "learning_rate" else ["y"]))  # the rate may end at 0
    if any(runs):
        panels[0].legend()
    return figure


def loss_by_level(levels: Mapping[str, Sequence[float]]) -> Figure:
    """The loss against the noise level.

    Args:
        levels: `log_snr`, `loss` and `standard_error`, a number for each level.
    """
    figure = _by_level(levels, "loss")
    _in_decades(figure.axes[0], "y")
    return figure


def accuracy_by_level(levels: Mapping[str, Sequence[float]]) -> Figure:
    """A classifier's accuracy against the noise level.

    Args:
        levels: `log_snr`, `accuracy` and `standard_error`, a number for each level.
    """
    figure = _by_level(levels, "accuracy")
    figure.axes[0].set(ylim=(0.0, 1.03))
    figure.axes[0].grid(alpha=0.3)
    return figure


def _by_level(levels: Mapping[str, Sequence[float]], name: str) -> Figure:
    figure = Figure(1.5 * PANEL, 0.75 * PANEL)
    axes = figure.subplots()
    x, y, error = (levels[each] for each in ("log_snr", name, "standard_error"))
    axes.errorbar(x, y, error, marker="o", markersize=3, capsize=2, linewidth=1.0)
    axes.set(xlabel="log SNR (noise on the left, data on the right)", ylabel=name)
    return figure


def _lines(run: Any) -> list[Mapping[str, float]]:
    if isinstance(run, str | Path):
        run = [values for _, values in logged(paths.place(run, "workdir"))]
    lines = list(getattr(run, "metrics", run))
    if not lines:
        raise ValueError(f"no metrics: allowed are workdirs with lines in {FILE}, trained runs")
    return lines


def quality(
    table: Mapping[str, Sequence[Sequence[float]]], ylabel: str = "distance to the data"
) -> Figure:
    """The quality of samples against the evaluations of the network, a line for each sampler.

    Args:
        table: rows (NFE, value) or (NFE, value, standard error) by the sampler's name.
        ylabel: what the value is, with its unit.
    """
    figure = Figure(1.5 * PANEL, PANEL)
    axes = figure.subplots()
    for title, rows in table.items():
        columns = np.asarray(sorted(map(tuple, rows)), float).T
        axes.errorbar(*columns[:3], label=title, marker="o", markersize=4, capsize=2)
    axes.set(xlabel="NFE (evaluations of the network)", ylabel=ylabel)
    _in_decades(axes, "x", "y")
    figure.legend(loc="outside right upper")
    return figure


def likelihoods(result: Any) -> Figure:
    """A histogram of items' likelihoods, with the mean and its standard error.

    Args:
        result: what `Run.log_likelihood` or `score_sde.log_likelihood` returned: bits/dim of
            discrete data, else nats of log density. Or a mapping of several by their titles.
    """
    results = result if isinstance(result, Mapping) else {"": result}
    found = {title: each.figure for title, each in results.items()}
    values = {title: np.asarray(numbers, float) for title, (numbers, _) in found.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(values.values())), BINS).tolist()
    figure, colour = Figure(1.5 * PANEL, 0.75 * PANEL), colours(results)
    axes = figure.subplots()
    for title, numbers in values.items():
        unit = found[title][1]
        style: Any = {"color": colour[title]}
        mean, error = numbers.mean(), standard_error(numbers) or 0.0
        axes.hist(numbers, bins, alpha=0.5, **style)
        said = f"{mean_with_error(numbers)} {unit}"
        axes.axvline(mean, label=f"{title}: {said}" if title else said, **style)
        axes.axvspan(mean - error, mean + error, alpha=0.3, linewidth=0, **style)
        axes.set(xlabel=unit if unit == "bits/dim" else f"log density, {unit}", ylabel="items")
    figure.legend(title="mean ± standard error", loc="outside upper center")
    return figure


def _in_decades(axes: Axes, *sides: str) -> None:
    """Make axes, "x" or "y", logarithmic."""
    axes.grid(alpha=0.3, which="both")
    for side in sides:
        axes.set(**{f"{side}scale": "log"})
        axis = getattr(axes, f"{side}axis")
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain(labelOnlyBase=False))
