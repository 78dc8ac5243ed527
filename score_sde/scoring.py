"""From a config to what scores images: the features, the reference, and the distance of the two."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from score_sde import build, evaluation
from score_sde.config import refuse
from score_sde.data import Arrays, DatasetInfo, Streamed
from score_sde.display import eight_bits
from score_sde.errors import UserError, besides, one_line
from score_sde.evaluation import FeatureFn, Rows, Statistics, classifier, weights
from score_sde.evaluation.network import FEATURES
from score_sde.evaluation.rows import chunk_of, key_of, read_stored, stored
from score_sde.paths import move_aside
from score_sde.progress import bar
from score_sde.training.mesh import is_writer

FULL = 50_000  # samples of a FID without a number in its name
CLASSIFIER, FOLDER = "classifier.npz", "features"


class Extractor(NamedTuple):
    """What makes features of images.

    Attributes:
        function: of images uint8 (B, H, W, C) of 0 to 255.
        size: F, of the features.
        about: features, weights and resize, by which two sets of features are comparable.
        facts: more that a reader wants to know.
        head: (F, classes), which makes logits of features for the Inception Score; None without.
    """

    function: FeatureFn
    size: int
    about: dict[str, Any]
    facts: dict[str, Any]
    head: np.ndarray | None = None

    def named(self, figure: str) -> str:
        """A figure's name: FID and KID are of Inception's features alone."""
        if self.about["features"] == "classifier":
            other = {"FID": "Frechet distance", "KID": "squared MMD"}
            for name, plain in other.items():
                if figure.startswith(name):
                    plain = figure.replace(name, plain, 1).replace("_", " ")
                    return f"{plain} (classifier features)"
        return figure

    def check(self, about: Mapping[str, Any], size: int, where: str) -> None:
        """Raise UserError for features, or statistics of some, that are not comparable."""
        evaluation.check_same(self.about, about, where)
        if size != self.size:
            kind = self.about["features"]
            allowed = f"allowed are {self.size}, those of {kind}"
            raise UserError(f"{where}: of {size} features; {allowed}")

    def distance_of(self, n: int) -> str:
        """The name of the distance of n samples: `FID` for 50,000 or more; otherwise with their
        number, such as `FID-5k`."""
        if n >= FULL:
            return self.named("FID")
        return self.named(f"FID-{n // 1000}k" if n % 1000 == 0 else f"FID-{n}")


def extractor(
    config: ConfigDict, info: DatasetInfo, folders: Sequence[Path], train: Arrays | None = None
) -> Extractor:
    """Return what `eval.features` names. A classifier is found in one of the folders, or trained on
    the labels of the training split (which is read unless it is given) and kept in the last.

    Raises:
        UserError: no weights of Inception; a set without classes for the classifier.
    """
    return EXTRACTORS[config.eval.features](config, info, folders, train)


def _by_classifier(
    config: ConfigDict, info: DatasetInfo, folders: Sequence[Path], train: Arrays | None
) -> Extractor:
    found = _classifier(config, info, folders, train)
    about = {"features": "classifier", "weights": found.digest, "resize": "none"}
    if max(info.shape[:2]) > classifier.LARGEST:
        about["resize"] = f"bilinear, antialiased, to {classifier.LARGEST} pixels at most"
    return Extractor(found.features(), classifier.WIDTHS[-1], about, {"classifier": found.about})


def _by_inception(config: ConfigDict, *_: Any) -> Extractor:
    arrays, resize = weights.read(config.eval.inception_weights), config.eval.resize
    about = {"features": "inception-2015", "weights": weights.digest(arrays), "resize": resize}
    try:
        function = evaluation.inception(arrays, resize)
        return Extractor(function, FEATURES, about, {}, arrays.get("classifier"))
    except ValueError as error:
        raise UserError(f"config.eval.inception_weights: {one_line(error)}") from error


EXTRACTORS = {"inception": _by_inception, "classifier": _by_classifier}
"""What computes features, by the names that configs give them."""


def _classifier(
    config: ConfigDict, info: DatasetInfo, folders: Sequence[Path], train: Arrays | None
) -> classifier.Classifier:
    if not info.num_classes:
        allowed = f"{besides(EXTRACTORS, 'classifier')}, as {info.name} has no classes to learn"
        raise refuse("eval.features", "classifier", allowed)
    train = train or build.arrays(config, info, "train")
    labels = np.asarray(train.condition["labels"])  # which may be streamed
    split = hashlib.sha256(Rows.of(train.x).digest.encode() + labels.tobytes()).hexdigest()
    about = {
        "set": info.name,
        "training_split": split,
        "image_size": info.shape[:2],
        "channels": info.shape[-1],
        "num_classes": info.num_classes,
        **classifier.RECIPE,
    }
    path = folders[-1] / CLASSIFIER
    for folder in folders:
        if found := classifier.read(folder / CLASSIFIER, about):
            return found
    steps = classifier.num_steps(len(labels))
    with bar(total=steps, desc="classifier", unit="step") as shown:
        learnt = classifier.train(_images(train, info), labels, info.num_classes, shown.update)
    found = classifier.Classifier(learnt, dict(about))
    if number := info.splits["test"]:
        test = build.arrays(config, info, "test")
        share = classifier.accuracy(found, _images(test, info), test.condition["labels"])
        found.about.update(held_out_accuracy=share, held_out_images=number)
        print(f"classifier: {share:.2%} of {number} held-out images of {info.name} are right")
    if is_writer():
        if theirs := classifier.read(path, about):  # of a command that was faster
            return theirs
        move_aside([path], "of other images or settings")
        classifier.write(path, found)
    return found


def _images(arrays: Arrays, info: DatasetInfo) -> Any:
    return lambda rows: eight_bits(arrays.x[rows], info.levels or 256)


def training_split(config: ConfigDict, info: DatasetInfo, x: np.ndarray | Streamed) -> Rows:
    """Return the images of the training split x that are the reference, of 0 to 255:
    `eval.num_reference` at random, or all. Those that are streamed are read in chunks."""
    number = config.eval.num_reference or len(x)
    order = np.sort(np.random.default_rng(0).permutation(len(x))[:number])
    size, levels = chunk_of(x.shape), info.levels or 256
    starts = range(0, len(order), size)
    return Rows(
        (len(order), *x.shape[1:]),
        lambda: (eight_bits(x[order[begin : begin + size]], levels) for begin in starts),
    )


def features(
    made_by: Extractor, images: Rows, folder: Path, batch_size: int, about: dict[str, Any]
) -> Rows:
    """Return the features of images (N, F). They are kept in a folder within `folder`, whose name
    depends on images and extractor; those that are there are not computed again.

    Args:
        made_by: what makes them.
        images: uint8 (N, H, W, C) of 0 to 255.
        folder: of all folders of features.
        batch_size: images at a time.
        about: what the images are, for a reader of the folder.

    Raises:
        UserError: images that the extractor does not take.
    """
    depends = {**made_by.about, "images": images.digest}
    place = folder / key_of(depends)
    with bar(total=len(images), desc=f"features {place.name}", unit="image") as shown:

        def of(chunk: np.ndarray) -> np.ndarray:
            try:
                return evaluation.features(made_by.function, chunk, batch_size, shown.update)
            except ValueError as error:
                where = about.get("path", "the samples")
                by = f"config.eval.features = {made_by.about['features']!r}"
                raise UserError(f"{where}: {one_line(error)}, with {by}") from error

        for number in stored(place, {**about, **depends}, images, of):
            shown.update(number)
    return read_stored(place)[0]


def statistics(
    made_by: Extractor, found: Rows, about: dict[str, Any], path: Path | None = None
) -> Statistics:
    """Return mean and covariance of features, of what `about` says; write them where there is a
    path."""
    kept = evaluation.statistics(found, {**about, **made_by.about})
    if path:
        evaluation.write_statistics(path, kept)
    return kept
