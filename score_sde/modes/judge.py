"""What samples are compared with, the figures of that, and the file that has them."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from score_sde import evaluation, pictures, scoring
from score_sde.errors import DAMAGED
from score_sde.evaluation import Rows, Statistics
from score_sde.modes.results import circumstances
from score_sde.modes.sides import Side, info_of_images, named, training_split
from score_sde.paths import move_aside, write_json

SUMMARY, NEIGHBOURS = "evaluation.json", "nearest.png"
SHOWN, NEAREST = 10, 5
# Where two evaluations of the same things may differ: what came out, when and where. Statistics are
# of the reference, and their last digits differ between machines.
FOUND = {"figures", "statistics", "likelihood", "loss_by_level", "depends"}
APART = FOUND | {"device", "num_devices", "versions", "command"}


class Judge(NamedTuple):
    """What samples are compared with.

    Attributes:
        config: of the run.
        folder: where features are kept.
        extractor: what makes them.
        reference: the other side, with features or statistics.
        statistics: of it.
    """

    config: ConfigDict
    folder: Path
    extractor: scoring.Extractor
    reference: Side
    statistics: Statistics

    @staticmethod
    def of(config: ConfigDict, workdir: Path, output: Path, reference: Path | str) -> "Judge":
        """The judge by a config's settings: the reference's features are computed."""
        given = named(Path(reference)) if reference else None
        made_by = scoring.extractor(config, info_of_images(config, workdir), (workdir, output))
        side = given or training_split(config, workdir)
        folder, where = output / scoring.FOLDER, f"{reference}"
        side = _with_features(config, made_by, side, folder, where)
        found = side.statistics
        if found is None:
            assert side.features is not None
            found = scoring.statistics(made_by, side.features, side.about)
        return Judge(config, folder, made_by, side, found)

    def score(self, ours: Side, output: Path, **more: Any) -> dict[str, Any]:
        """Write and return the figures of samples, with all that they depend on and with `more`.
        Write `nearest.png`."""
        made_by, theirs = self.extractor, self.reference
        where = ours.about.get("path", "")
        ours = _with_features(self.config, made_by, ours, self.folder, where)
        assert ours.features is not None
        figures = self._figures(ours.features)
        facts = {
            "figures": figures,
            "samples": ours.about,
            "reference": theirs.about,
            "statistics": self.statistics.digest,
            **made_by.about,
            **made_by.facts,
            "num_manifold": self.config.eval.num_manifold,
            "rounding": "samples are rounded to uint8",
            "precision": "features float32 at full precision, distances float64",
            "network_precision": self.config.model.dtype,
            "seed_of_subsets": 0,
            **circumstances(),
            "command": sys.argv,
            **more,
        }
        facts |= _kept(output, facts)
        shapes = [each.images.shape[1:] if each.images else None for each in (ours, theirs)]
        if ours.images and theirs.images and shapes[0] == shapes[1]:
            most = self.config.eval.num_manifold
            fake, real = (side.some(most) for side in (ours.images, theirs.images))
            figures["sliced_wasserstein"] = evaluation.sliced_wasserstein(fake, real)
            _show_nearest(ours.images, theirs.images, output / NEIGHBOURS)
        else:
            said = [f"of {each}" if each else "without images" for each in shapes]
            why = f"the samples are {said[0]}, the reference is {said[1]}"
            print(f"note: no sliced_wasserstein and no {NEIGHBOURS}: {why}")
        write_json(output / SUMMARY, facts)
        return facts

    def _figures(self, x: Rows) -> dict[str, Any]:
        """The figures of the samples' features."""
        name, reference = self.extractor.named, self.statistics
        several = evaluation.fid_infinity(x, reference)
        distance = evaluation.frechet_distance(reference, evaluation.statistics(x))
        found: dict[str, Any] = {
            self.extractor.distance_of(len(x)): distance,
            name("FID_at_sizes"): dict(zip(several.sizes, several.values, strict=True)),
            name("FID_infinity"): several.infinity._asdict(),
        }
        most, head = self.config.eval.num_manifold, self.extractor.head
        if head is not None:
            logits = x.some(most).array() @ head
            found["Inception_Score"] = evaluation.inception_score(logits)._asdict()
            found["Inception_Score_of"] = len(logits)
        if self.reference.features:
            fake, real = (each.some(most).array() for each in (x, self.reference.features))
            found[name("KID")] = evaluation.kid(fake, real)._asdict()
            n = min(len(fake), len(real))  # precision and its kin are of equal numbers
            rng = np.random.default_rng(0)
            fake, real = (each[rng.permutation(len(each))[:n]] for each in (fake, real))
            found |= evaluation.manifolds(fake, real)._asdict() | {"of_each_side": n}
        return found


def _with_features(
    config: ConfigDict, made_by: scoring.Extractor, side: Side, folder: Path, where: str
) -> Side:
    """The side with its features; those that were given must be of the same kind as ours."""
    if side.images:
        settings = folder, config.eval.batch_size, side.about
        found = scoring.features(made_by, side.images, *settings)
        return side._replace(features=found, about=side.about | {"sha256": side.images.digest})
    if side.features:
        size, digest = side.features.shape[1], side.features.digest
    else:
        assert side.statistics is not None
        size, digest = len(side.statistics.mu), side.statistics.digest
    made_by.check(side.about, size, where)
    return side._replace(about=side.about | {"sha256": digest})


def read(output: Path) -> dict[str, Any]:
    """What `evaluation.json` says; {} where there is none that can be read."""
    try:
        found = json.loads((output / SUMMARY).read_bytes())
    except DAMAGED:
        return {}
    return found if isinstance(found, dict) else {}


def _kept(output: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what stays of the evaluation that is there, its likelihood. Move one of other images,
    features or numbers out of the way, and report it."""
    there, here = read(output), json.loads(json.dumps(facts))
    if all(there.get(key) == here.get(key) for key in (there.keys() | here.keys()) - APART):
        return {key: there[key] for key in ("likelihood",) if key in there}
    if (output / SUMMARY).exists():
        reason = "of another evaluation" if there else "damaged"
        move_aside([output / SUMMARY, output / NEIGHBOURS], reason)
    return {}


def _show_nearest(samples: Rows, reference: Rows, path: Path) -> None:
    """A row for each of some samples: the sample, and the nearest of the reference by pixels."""
    shown = next(iter(samples))[:SHOWN]
    images = np.zeros((len(shown), 0, *shown.shape[1:]), np.uint8)
    distances = np.zeros((len(shown), 0), np.float32)
    for chunk in reference:
        indices, found = evaluation.nearest(shown, chunk, k=min(NEAREST, len(chunk)))
        images = np.concatenate([images, chunk[indices]], axis=1)
        distances = np.concatenate([distances, found], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :NEAREST]
        distances = np.take_along_axis(distances, order, axis=1)
        images = np.take_along_axis(images, order[:, :, None, None, None], axis=1)
    rows = np.concatenate([shown[:, None], images], axis=1)
    pictures.save_png(path, rows.reshape(-1, *rows.shape[2:]), 256, columns=rows.shape[1])
