"""The table of `samplers.py`: how samples are compared with the truth, its rows, what they say."""

import csv
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

DIRECTIONS = 128
TRUTH = "true samples"


class Row(NamedTuple):
    """A line of the table. ``distances`` and ``log_probs`` are those of the seeds."""

    process: str
    sampler: str
    setting: float
    nfe: float
    distance: float
    distance_error: float
    log_prob: float
    log_prob_error: float
    distances: tuple[float, ...]
    log_probs: tuple[float, ...]


class Judge:
    """Compares sets of vectors (n, D) with the truth of a seed."""

    def __init__(
        self,
        truths: list[np.ndarray],
        log_prob: Callable[[np.ndarray], float] = lambda x: math.nan,
    ) -> None:
        directions = np.random.default_rng(0).standard_normal((truths[0].shape[1], DIRECTIONS))
        self.directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
        self.truths = [self.project(truth) for truth in truths]
        self.log_prob = log_prob
        self.true_log_probs = [log_prob(truth) for truth in truths]

    def project(self, x: np.ndarray) -> np.ndarray:
        """Sorted along each direction, (n, directions)."""
        return np.sort(x @ self.directions, axis=0)

    def distance(self, x: np.ndarray, seed: int) -> float:
        """The sliced Wasserstein distance; infinite for samples that are not finite."""
        if not np.isfinite(x).all():
            return math.inf
        difference = (self.project(x) - self.truths[seed]).astype(np.float64)
        return float(np.sqrt(np.square(difference).mean()))

    def row(
        self, process: str, sampler: str, setting: float, nfe: float, sets: list[np.ndarray]
    ) -> Row:
        """The line of one set for each seed."""
        distances = [self.distance(x, seed) for seed, x in enumerate(sets)]
        log_probs = [
            self.log_prob(x) - true for x, true in zip(sets, self.true_log_probs, strict=True)
        ]
        return Row(
            *(process, sampler, setting, nfe, *_mean(distances), *_mean(log_probs)),
            *(tuple(distances), tuple(log_probs)),
        )


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return statistics.fmean(values), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def words(row: Row) -> str:
    """A row for the eye."""
    return (
        f"{row.process:7s}{row.sampler:38s}{row.nfe:7.1f}  distance {row.distance:.4f} +- "
        f"{row.distance_error:.4f}  log p {row.log_prob:+.4f} +- {row.log_prob_error:.4f}"
    )


def read(file: Path) -> list[Row]:
    """The rows of a table; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            Row(
                *(line["process"], line["sampler"]),
                *(float(line[field]) for field in Row._fields[2:-2]),
                *(tuple(map(float, line[field].split())) for field in Row._fields[-2:]),
            )
            for line in csv.DictReader(lines)
        ]


def write(file: Path, rows: list[Row]) -> None:
    """Write the table, whole at any moment."""
    partial_file = file.with_suffix(".partial")
    with partial_file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(Row._fields)
        for row in rows:
            numbers = [f"{value:.5g}" for value in row[2:-2]]
            seeds = [" ".join(f"{value:.5g}" for value in values) for values in row[-2:]]
            writer.writerow([*row[:2], *numbers, *seeds])
    partial_file.replace(file)


def report(
    rows: list[Row], baseline_of: tuple[str, int], many: Sequence[str], few: Sequence[int]
) -> None:
    """Print, as a Markdown table, the nearest samplers at each number of evaluations, and how they
    stand to the baseline.

    Args:
        rows: of the table.
        baseline_of: sampler and setting.
        many: samplers that are made for many evaluations.
        few: the numbers of evaluations.
    """
    print("\n| | NFE | distance | nearer than the baseline by, +- | log p |")
    print("|---" * 5 + "|")
    for process in dict.fromkeys(row.process for row in rows):
        mine = [row for row in rows if row.process == process]
        special = [row for row in mine if (row.sampler, row.setting) in ((TRUTH, 0), baseline_of)]
        baseline = next((row for row in special if row.sampler != TRUTH), None)
        for row in special:
            print(line(row, baseline))
        for nfe in few:
            at = [row for row in mine if row.setting == nfe and row.sampler not in many]
            nearest = sorted(at, key=lambda row: row.distance)
            for i, row in enumerate(nearest):
                if i < 3 or row.sampler == "DPM-Solver++ SDE, angle":
                    print(line(row, baseline))


def line(row: Row, baseline: Row | None) -> str:
    """A row of the report. A sampler is as close as the baseline where it is not farther by more
    than two standard errors of the difference, seed by seed."""
    against = ""
    if baseline and row is not baseline and row.sampler != TRUTH:
        pairs = zip(row.distances, baseline.distances, strict=True)
        nearer, error = _mean([theirs - ours for ours, theirs in pairs])
        verdict = "" if nearer < -2 * error else ", as close"
        against = f"{nearer:+.4f} ± {error:.4f}{verdict}"
    nfe = f"{row.nfe:.0f}" if row.nfe else "–"
    log_prob = "" if math.isnan(row.log_prob) else f"{row.log_prob:+.3f} ± {row.log_prob_error:.3f}"
    return (
        f"| {row.process}, {row.sampler} | {nfe} | {row.distance:.4f} ± {row.distance_error:.4f} "
        f"| {against} | {log_prob} |"
    )


def picture(file: Path, rows: list[Row], names: Sequence[str], dashed: Sequence[str]) -> None:
    """Draw the curves of the named samplers; below, where it is known, the log density."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    values: dict[str, Callable[[Row], float]] = {
        "distance (dashed: two true samples)": lambda row: row.distance,
        "|mean log p, less that of true samples|": lambda row: abs(row.log_prob),
    }
    if math.isnan(rows[0].log_prob):
        values.popitem()
    processes, colours = list(dict.fromkeys(row.process for row in rows)), pyplot.get_cmap("tab20")
    figure, panels = pyplot.subplots(
        len(values), len(processes), squeeze=False, layout="constrained",
        figsize=(4.2 * len(processes) + 2.5, 3.6 * len(values)),
    )  # fmt: skip
    for (label, value), line_of_panels in zip(values.items(), panels, strict=True):
        for process, panel in zip(processes, line_of_panels, strict=True):
            mine = [row for row in rows if row.process == process]
            for i, name in enumerate(names):
                points = sorted((row.nfe, value(row)) for row in mine if row.sampler == name)
                style = "--" if name in dashed else "-"
                panel.loglog(
                    *(zip(*points, strict=True) if points else ([], [])),
                    style,
                    marker=".",
                    color=colours(i),
                )
            floor = next(value(row) for row in mine if row.sampler == TRUTH)
            panel.axhline(floor, color="black", linestyle="--", linewidth=1)
            panel.set(title=process, xlabel="evaluations of the score", ylabel=label)
            highest = max(value(row) for row in mine if row.sampler in names)
            panel.set_ylim(0.5 * floor, min(1e3 * floor, 1.5 * highest))
    figure.legend(panels[0, 0].lines[:-1], names, loc="outside right upper")
    figure.savefig(file, dpi=80)
