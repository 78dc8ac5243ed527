"""The sections of a report. Each shows what is there of a run, and names the command that makes
what is missing; nothing at all means that there is no such thing for these data."""

import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from score_sde import build, pages, workdirs
from score_sde.data import DatasetInfo
from score_sde.densities import of_rows
from score_sde.display import shortened
from score_sde.errors import UserError, why_no_json
from score_sde.modes import interpolate, judge, levels, likelihood, sample, sweep
from score_sde.training.checkpoints import newest_step
from score_sde.training.logs import FILE, logged

LEVELS = "loss_by_level"  # a part of the evaluation
FEWEST, MOST = 3, 1000  # points of a curve: fewer say nothing, and a screen shows no more
SIDE, SIDE_OF_LARGE, LARGE = 8, 4, 64  # images along a grid's side; those of more pixels


class Found(NamedTuple):
    """What is there of a run.

    Attributes:
        name: a letter, for ids within the page.
        workdir: of the run.
        folders: where results may be; the first that has a file gives it.
        config: of the run.
        info: the facts of its data.
        read: gets the files that are looked for.
    """

    name: str
    workdir: Path
    folders: tuple[Path, ...]
    config: ConfigDict
    info: DatasetInfo
    read: list[Path]

    def path(self, name: str) -> Path | None:
        """Where a file of results is, or None."""
        path = next((p for each in self.folders if (p := each / name).is_file()), None)
        self.read.extend([path] if path else [])
        return path

    def document(self, name: str, kind: type = dict) -> Any:
        """What a file of JSON says, or None without one; UserError for another kind of document."""
        if (path := self.path(name)) is None:
            return None
        try:
            found = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: no JSON ({why_no_json(error)})") from error
        if not isinstance(found, kind):
            raise UserError(f"{path}: JSON of another kind ({found!r:.40})")
        return found

    def missing(self, what: str, mode: str, *flags: str) -> str:
        """A paragraph with the command that makes what is missing."""
        typed = shlex.join(["score-sde", "--mode", mode, "--workdir", f"{self.workdir}", *flags])
        return pages.paragraph(f"{what}:", typed, "missing")

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width, _ = self.info.shape
        return height, width

    def plot(self, name: str, figure: Any, label: str, caption: str) -> str:
        """A figure of matplotlib's with its caption."""
        from score_sde import plots

        return pages.figure(plots.svg(figure, f"{self.name}-{name}", label), caption)


def _run(found: Found) -> str:
    config, info = found.config, found.info
    kind = f"images {' × '.join(map(str, info.shape))} of {info.levels} levels"
    if info.levels is None:
        kind = f"vectors of {', '.join(info.columns)}"
    splits = ", ".join(f"{number} {split}" for split, number in info.splits.items())
    step, wanted = newest_step(found.workdir / "checkpoints"), config.training.num_steps
    rows = {
        "data": f"{info.name}: {kind}; {splits}",
        "process": config.sde.name,
        "network": config.model.name,
        "training": f"{step} of {wanted} steps of {config.training.batch_size}",
    }
    return pages.table((name, shortened(value)) for name, value in rows.items())


def _samples(found: Found) -> str:
    if (path := found.path(sample.VALUES)) is None:
        return _look(found) + found.missing("No samples yet", "sample")
    with path.open("rb") as opened, np.load(opened) as file:
        said = {key: file[key] for key in ("step", "sampler", "seed")}
        nfe, x = file["nfe"], None if found.info.levels else file["x"]
        density = file.get("density")
    kind, _, settings = f"{said['sampler']}".rstrip(")").partition("(")
    caption = (
        f"{len(nfe)} samples by {kind}, NFE {nfe.mean():.0f}, seed {said['seed']}, after "
        f"{said['step']} steps of training"
    )
    about = pages.details(f"{kind} in full", pages.paragraph(settings))
    if x is not None:
        return _vectors(found, x, density, caption) + about
    most = SIDE if max(found.cell) < LARGE else SIDE_OF_LARGE
    shown = min(len(nfe), most**2)
    label = f"Grid of {shown} drawn images of {found.info.name}"
    picture = pages.picture(path.with_name(sample.PICTURE), label, found.cell, most)
    few = f", of which {shown} are shown" if shown < len(nfe) else ""
    return pages.figure(picture, f"{caption}{few}") + about


def _look(found: Found) -> str:
    """The newest of the pictures that training made, if any."""
    looks = sorted((found.workdir / "samples").glob("step_*.png"))
    if not looks:
        return ""
    cell = found.cell if found.info.levels else None
    what = "Grid of drawn images" if cell else "Scatter of drawn vectors beside real ones"
    picture = pages.picture(looks[-1], f"{what}, from training", cell)
    step = int(looks[-1].stem.removeprefix("step_"))
    return pages.figure(picture, f"Drawn during training, after {step} steps")


def _vectors(found: Found, x: np.ndarray, density: np.ndarray | None, caption: str) -> str:
    """Vectors, and the real ones where they can be read."""
    from score_sde import plots

    clouds, columns = {"samples": x}, found.info.columns
    try:
        real = build.arrays(found.config, found.info, "test").x
        clouds = {"data": real, **clouds}
    except UserError as error:
        caption += f"; without the data: {error}"
    if len(columns) != 2:
        label = f"Scatter of pairs of {', '.join(columns)}, and histograms: {', '.join(clouds)}"
        return found.plot("vectors", plots.corner(clouds, None, columns), label, caption)
    limits, lines = plots.base.limits_of(plots.base.as_clouds(clouds)), ""
    if density is not None:
        ends = density.reshape(-1, 3)[:, :2]
        limits = list(zip(ends.min(axis=0).tolist(), ends.max(axis=0).tolist(), strict=True))
        lines = f"; {plots.points.HOLD} learned density"

    def stored(points: np.ndarray) -> np.ndarray | None:  # which are those of the file
        return None if density is None else density[..., 2]

    parts = []
    for title, points in clouds.items():
        figure = plots.scatter({title: points}, None, columns, stored, limits)
        figure.suptitle("")  # the caption says it
        label = f"Scatter of {len(points)} points, {title}, in the plane of {' and '.join(columns)}"
        below = f"{len(points)} points of the test split" if title == "data" else caption
        parts.append(found.plot(title, figure, label, f"{below}{lines}"))
    return pages.figures(*parts)


def _film(found: Found) -> str:
    if found.info.levels is None:
        return ""
    if (path := found.path(sample.FILM)) is None:
        return found.missing("No film yet", "sample", "--config.sampling.gif=true")
    film = pages.film(path, "Film of a grid of images that emerge from noise", found.cell)
    return pages.figure(film, "From noise to images, as the sampler goes")


def _training(found: Found) -> str:
    logs = [values for _, values in logged(found.workdir)]
    path = found.workdir / FILE
    if path.is_file() and (damaged := path.read_bytes().count(b"\n") - len(logs)):
        print(f"note: {path}: {damaged} damaged lines are left out", file=sys.stderr)
    lines = [each for each in logs if "loss" in each]  # others are of scores on the way
    if len(lines) < FEWEST:
        return pages.paragraph(f"The log has {len(lines)} lines, too few for a curve.")
    from score_sde import plots

    every = math.ceil(len(lines) / MOST)
    parts = [lines[begin : begin + every] for begin in range(0, len(lines), every)]
    means = [
        part[-1] | {"loss": math.fsum(line["loss"] for line in part) / len(part)} for part in parts
    ]
    step = lines[-1]["step"]
    captions = {"loss": f"Loss of training; {lines[-1]['loss']:.4g} at step {step}"}
    if "learning_rate" in lines[-1]:
        captions["learning_rate"] = "Learning rate"
    scores = [each for each in logs if "loss" not in each]
    for name in dict.fromkeys(itertools.chain(*scores)):
        points = [(line[name], line["step"]) for line in scores if name in line]
        if name == "step" or len(points) < FEWEST:
            continue
        value, at = min(points)
        captions[name] = f"{name} of samples on the way; least {value:.4g} at step {at}"
    return pages.figures(
        *(
            found.plot(
                f"training-{number}",
                plots.losses(means + scores, [name]),
                f"Curve over {step} training steps: {caption}",
                caption,
            )
            for number, (name, caption) in enumerate(captions.items())
        )
    )


def _levels(found: Found) -> str:
    levels = (found.document(judge.SUMMARY) or {}).get(LEVELS)
    if levels is None:
        return ""
    from score_sde import plots

    label = f"Curve of the loss at {len(levels['loss'])} noise levels"
    caption = f"Loss of the test split by noise level: {levels['is']}"
    return found.plot("levels", plots.loss_by_level(levels), label, caption)


def _classifier(found: Found) -> str:
    facts = found.document(f"{workdirs.CLASSIFIER}/{levels.ACCURACY}")
    if facts is None:
        return ""
    from score_sde import plots

    shares, of = facts["accuracy"], f"{facts['n']} in the {facts['split']} split"
    label = f"Curve of the accuracy at {len(shares)} noise levels, {shares[0]:.1%} without noise"
    caption = f"Classifier of noisy data after {facts['step']} steps: {facts['is']}, {of}"
    return found.plot("classifier", plots.accuracy_by_level(facts), label, caption)


def _quality(found: Found) -> str:
    if found.info.levels is None:
        return ""
    if (facts := found.document(judge.SUMMARY)) is None:
        return found.missing("No figures yet", "evaluate")
    depends = {key: value for key, value in facts.items() if key not in ("figures", LEVELS)}
    about = pages.details("What these figures depend on", pages.table(_rows(depends)))
    return pages.table(_rows(facts["figures"])) + about


def _rows(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of a table."""
    rows = []
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, dict) and value.keys() == {"value", "standard_error"}:
            rows.append((name, f"{value['value']:.4g} ± {value['standard_error']:.2g}"))
        elif isinstance(value, dict):
            rows += _rows(value, f"{name}, ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):  # commands' machines
            numbered = {f"{name} {number}": each for number, each in enumerate(value, 1)}
            rows += _rows(numbered)
        elif isinstance(value, list):  # a command
            rows.append((name, shlex.join(map(str, value))))
        else:
            rows.append((name, f"{value:.4g}" if isinstance(value, float) else f"{value}"))
    return rows


def _sweep(found: Found) -> str:
    if not (entries := found.document(sweep.JSON, list)):
        return ""
    from score_sde import plots

    figures = [key for key, value in entries[0]["figures"].items() if isinstance(value, float)]
    figure = next((key for key in figures if key.startswith("FID")), figures[0])
    settings = list(entries[0]["settings"])
    lines: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for entry in entries:
        given = [entry["settings"][key] for key in settings]
        # All but the number of steps makes lines of their own.
        others = {key: each for key, each in entry["settings"].items() if "num_steps" not in key}
        title = ", ".join(
            each if isinstance(each, str) else f"{key.split('.')[-1]} {each}"
            for key, each in others.items()
        )
        point = entry["nfe"], entry["figures"][figure]
        lines.setdefault(title or found.config.sampling.method, []).append(point)
        numbers = [f"{entry['figures'][key]:.4g}" for key in figures]
        rows.append((*given, f"{entry['nfe']:.0f}", *numbers))
    label = f"Curve of {figure} at {len(rows)} settings over the evaluations of the network"
    curve = found.plot("sweep", plots.quality(lines, figure), label, f"{figure} against NFE")
    head = [key.removeprefix("sampling.") for key in settings]
    return curve + pages.table(rows, [*head, "NFE", *figures])


def _likelihood(found: Found) -> str:
    path, summary = found.path(likelihood.VALUES), found.document(likelihood.SUMMARY)
    if path is None or summary is None:
        return found.missing("No likelihoods yet", "likelihood")
    from score_sde import plots

    with path.open("rb") as opened, np.load(opened) as file:
        likelihoods = of_rows({key: file[key] for key in file.files})
    values, unit = likelihoods.figure
    numbers = np.sort(np.asarray(values))
    # The first versions had only images, and did not say so.
    items = f"{summary['num_images']} {summary.get('items', 'images')}"
    caption = (
        f"{items} of {summary['data']}, {summary['split']} split, after {summary['step']} steps"
    )
    label = f"Histogram of {unit}, from {numbers[0]:.4g} to {numbers[-1]:.4g}"
    histogram = plots.likelihoods(likelihoods)
    parts, below = [found.plot("likelihood", histogram, label, caption)], ""
    if found.info.levels and (picture := path.with_name(likelihood.PICTURE)).is_file():
        k = min(likelihood.SHOWN, len(numbers))
        label = f"Two rows of {k} images: those of the fewest bits/dim above those of the most"
        caption = (
            f"Above the fewest bits/dim, {numbers[0]:.4g} to {numbers[k - 1]:.4g}; below the most, "
            f"{numbers[-1]:.4g} to {numbers[-k]:.4g}"
        )
        parts.append(pages.figure(pages.picture(picture, label, found.cell), caption))
    elif found.info.levels:
        below = found.missing("No picture of the most and least likely yet", "likelihood")
    about = pages.details("What the figure depends on", pages.table(_rows(summary)))
    return pages.figures(*parts) + below + about


def _interpolation(found: Found) -> str:
    if (path := found.path(interpolate.VALUES)) is None:
        if found.info.condition:  # which the mode refuses
            return ""
        return found.missing("No interpolations yet", "interpolate")
    if found.info.levels:
        label = "Rows of images that change from the first into the last"
        caption = (
            "Held-out images at both ends of a row, and between them what lies between their "
            "latents"
        )
        picture = pages.picture(path.with_name(interpolate.PICTURE), label, found.cell)
        return pages.figure(picture, caption)
    from score_sde import plots

    with path.open("rb") as opened, np.load(opened) as file:
        x, real = np.concatenate(file["x"]), np.concatenate(file["real"])
    figure = plots.clouds({"between their latents": x}, real, found.info.columns)
    for cloud in (cloud for axes in figure.axes for cloud in axes.collections):
        cloud.set(sizes=[16])  # they are few
    label = f"Scatter of {len(real)} held-out vectors and of what lies between their latents"
    return found.plot("interpolation", figure, label, label)


def _nearest(found: Found) -> str:
    if found.info.levels is None:
        return ""
    if (path := found.path(judge.NEIGHBOURS)) is None:
        return found.missing("No picture of them yet", "evaluate")
    facts, images = judge.read(path.parent), "training images"
    if isinstance(facts.get("reference"), dict) and "path" in facts["reference"]:
        images = f"images of {facts['reference']['path']}"
    label = f"Rows of a sample and the {images} that are nearest to it"
    caption = f"On the left a sample, then the nearest {images} by pixels: a copy would show"
    return pages.figure(pages.picture(path, label, found.cell), caption)


SECTIONS: dict[str, Callable[[Found], str]] = {
    "Run": _run,
    "Samples": _samples,
    "Film of the denoising": _film,
    "Training": _training,
    "Loss by noise level": _levels,
    "Classifier by noise level": _classifier,
    "Quality": _quality,
    "Quality against evaluations": _sweep,
    "Likelihood": _likelihood,
    "Interpolation": _interpolation,
    "Nearest images": _nearest,
}
