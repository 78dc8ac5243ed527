"""Non-leaking augmentation looked at, and judged: are digits drawn turned or mirrored?

    python benchmarks/augmentation.py --picture docs/augmentation.png
    python main.py --config configs/edm_digits.py --mode train
    python main.py --config configs/edm_digits.py --mode train --workdir runs/edm_digits_all \\
        "--config.data.augmentations=('flip_x','flip_y','scale','rotate','stretch','move')"
    python benchmarks/augmentation.py runs/edm_digits_all runs/edm_digits

The picture: images as they are and by each operation of `score_sde/augmentation.py`, except flips
at three strengths. Sizes are in standard deviations.

Two runs, one trained with all operations and one without flips and rotations: a support vector
machine says of each image whether the digit is upright, turned or mirrored. It is trained on real
digits as they are, by quarter and half turns, mirrored left to right, and upside down (mirrored top
to bottom). Some changed digits read as upright ones: a half turn leaves 0, 1, 2, 5 and 8 and takes
6 and 9 to each other; mirrored, 0, 1 and 8 are the same and 2 and 5 are each other; upside down,
3 is the same, too. The machine is not trained on these. Nor on a 3 by a half turn, which is a
mirrored one. So a quarter turn of every digit can be told, and other changes of some.

Rows: held-out real digits, as they are and changed; the samples of both runs; and the control, the
first run's samples under the condition of each change, from the same noise.

upright, turned, mirrored   shares of the images
error                       standard error of 1 - upright
told                        of real digits whose change can be told, the share that was told

Writes `augmentation.csv` and, with the first images of each row, `augmentation.png` beside this
file, and prints a Markdown table.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import image_rows
import jax
import jax.numpy as jnp
import numpy as np
from lines import folder, markdown
from sklearn.svm import SVC

import score_sde
from score_sde import build, data
from score_sde.augmentation import OPERATIONS, drawn, parameters, transformed
from score_sde.modes import start
from score_sde.run import Run

UPRIGHT, TURNED, MIRRORED = "upright", "turned", "mirrored"
Values = Mapping[str, float]


class Change(NamedTuple):
    """What is done to a digit.

    Attributes:
        values: of the operations, in turn for the images of a set.
        kind: what the judge should say.
        digits: those of which the change can be told.
    """

    values: Sequence[Values]
    kind: str
    digits: Sequence[int] = range(10)


CHANGES = {
    "as they are": Change([{}], UPRIGHT),
    "quarter turns": Change([{"angle": 0.5 * np.pi}, {"angle": -0.5 * np.pi}], TURNED),
    "half turns": Change([{"angle": np.pi}], TURNED, (4, 7)),
    "mirrored": Change([{"flip_x": 1.0}], MIRRORED, (3, 4, 6, 7, 9)),
    "upside down": Change([{"flip_y": 1.0}], MIRRORED, (4, 6, 7, 9)),
}
STRENGTHS: dict[str, Sequence[Values]] = {  # of the operation that is the label's first word
    "flip_x": [{"flip_x": 1.0}],
    "flip_y": [{"flip_y": 1.0}],
    "scale: -2, 1, 2": [{"scale": size} for size in (-2.0, 1.0, 2.0)],
    "rotate: 30°, 90°, 180°": [{"angle": np.radians(angle)} for angle in (30.0, 90.0, 180.0)],
    "stretch: 2, along 0°, 45°, 90°": [
        {"stretch": 2.0, "along": np.radians(along)} for along in (0.0, 45.0, 90.0)
    ],
    "move: right 1, up 1, left 2 and down 1": [
        {"move_x": 1.0},
        {"move_y": -1.0},
        {"move_x": -2.0, "move_y": 1.0},
    ],
}
SHOWN = {"digits": (7, 4), "fashion_mnist": (9, 0)}  # classes, in the picture
SIDE = 32  # pixels of its images
DRAWN = 12  # images of each row of the table's picture
REAL = "held-out real digits"
FIELDS = ("images", "change", "number", UPRIGHT, TURNED, MIRRORED, "error", "told")
Row = dict[str, str]


def in_turn(values: Sequence[Values], number: int) -> dict[str, jax.Array]:
    """The values of ``number`` images, as `score_sde.augmentation` has them."""
    nothing = drawn(jax.random.key(0), number, 0.0, (), jnp.dtype("float32"))
    of_each = [values[i % len(values)] for i in range(number)]
    return {
        name: jnp.asarray([each.get(name, 0.0) for each in of_each], jnp.float32)
        for name in nothing
    }


def changed(images: np.ndarray, values: Sequence[Values]) -> np.ndarray:
    """The images (n, H, W, C) with values in turn, rounded to levels as drawn ones are."""
    x = jnp.asarray(images, jnp.float32)
    return np.rint(jax.jit(transformed)(x, in_turn(values, len(images))))


class Judge:
    """Says of digits, (n, 8, 8, 1), whether they are upright."""

    def __init__(self) -> None:
        x, labels = real("train")
        images, kinds = [], []
        for values, kind, digits in CHANGES.values():
            chosen = np.isin(labels, digits)
            for each in values:
                images.append(changed(x, [each])[chosen])
                kinds += [kind] * len(images[-1])
        flat = np.concatenate(images).reshape(len(kinds), -1)
        # C and gamma as digits_judge.py; each kind counts as much.
        self.machine = SVC(C=10.0, gamma=1e-3, class_weight="balanced").fit(flat, kinds)

    def says(self, images: np.ndarray) -> np.ndarray:
        """The kind of each."""
        return np.asarray(self.machine.predict(images.reshape(len(images), -1).astype(float)))


def real(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits and their labels."""
    found = data.load("digits", split, "")
    return np.asarray(found.x), np.asarray(found.condition["labels"])


def row(images: str, change: str, said: np.ndarray, told: float | None = None) -> Row:
    """A line of the table."""
    upright, turned, mirrored = ((said == kind).mean() for kind in (UPRIGHT, TURNED, MIRRORED))
    error = np.sqrt(upright * (1.0 - upright) / len(said))
    numbers = [f"{number:.3f}" for number in (upright, turned, mirrored, error)]
    last = "" if told is None else f"{told:.3f}"
    return dict(zip(FIELDS, (images, change, f"{len(said)}", *numbers, last), strict=True))


def of_run(run: Run, values: Sequence[Values], number: int) -> np.ndarray:
    """Images drawn under the condition of a change, from the noise of ``Run.sample``."""
    score = run.score.given({"augmentation": parameters(in_turn(values, number))})
    shape = (number, *run.space.shape)
    found = build.sampler(run.config).sample(jax.random.key(0), run.sde, score, shape=shape)
    return np.asarray(run.space.from_model(found.x))


def measured(with_all: Run, without: Run, number: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    """The table's lines, and the first images of each."""
    judge, lines, shown = Judge(), [], {}
    x, labels = real("test")

    def add(images: np.ndarray, name: str, change: str, told: float | None = None) -> None:
        lines.append(row(name, change, judge.says(images), told))
        shown[f"{name}, {change}"] = images[:DRAWN] / 16.0
        print(*lines[-1].values(), flush=True)

    for change, (values, kind, digits) in CHANGES.items():
        images, can_be_told = changed(x, values), np.isin(labels, digits)
        add(images, REAL, change, (judge.says(images) == kind)[can_be_told].mean())
    for name, run in {"without flips and rotations": without, "all operations": with_all}.items():
        images = run.changed({"sampling.batch_size": number}).sample(jax.random.key(0), number)
        add(images.images, name, "as they are")
    for change, (values, _, _) in list(CHANGES.items())[1:]:
        add(of_run(with_all, values, number), "all operations", change)
    return lines, shown


def sheet(path: Path) -> None:
    """Images by each operation, at its strengths."""
    rows: dict[str, list[np.ndarray]] = {label: [] for label in STRENGTHS}
    for name, classes in SHOWN.items():
        found = data.load(name, "train", "")
        labels, top = np.asarray(found.condition["labels"]), data.describe(name).levels - 1
        for number in classes:
            image = np.asarray(found.x[int(np.argmax(labels == number))])[None] / top
            for label, strengths in STRENGTHS.items():
                images = [image, *(transformed_once(image, values) for values in strengths)]
                rows[label] += [enlarged(each[0]) for each in images]
                rows[label] += [np.ones((SIDE, SIDE, 1))] * (4 - len(images))  # white
    image_rows.save(path, rows)


def transformed_once(image: np.ndarray, values: Values) -> np.ndarray:
    """An image (1, H, W, C) changed."""
    return np.asarray(transformed(jnp.asarray(image, jnp.float32), in_turn([values], 1)))


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 1) with pixels that are squares, and a frame up to ``SIDE``."""
    times = SIDE // len(image)
    image = np.kron(image, np.ones((times, times, 1)))
    frame = (SIDE - len(image)) // 2
    return np.pad(image, ((frame, frame), (frame, frame), (0, 0)))


def main() -> None:
    """Draw the picture, or measure and print the table."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("workdirs", type=Path, nargs="*", help="with all operations, and without")
    parser.add_argument("--picture", type=Path, help="of the operations; nothing else is done")
    parser.add_argument("--number", default=900, type=int, help="images of each row")
    parser.add_argument("--output", default=Path(__file__).parent, type=folder)
    chosen = parser.parse_args()
    if chosen.picture:
        sheet(chosen.picture)
        return
    if len(chosen.workdirs) != 2:
        parser.error("workdirs: allowed are two, with all operations and without")
    start(chosen.number)
    with_all, without = (score_sde.load(workdir) for workdir in chosen.workdirs)
    settings = with_all.config.data
    if not settings.augment or set(settings.augmentations) != set(OPERATIONS):
        parser.error(f"{chosen.workdirs[0]}: allowed are runs with data.augment and all operations")
    found, shown = measured(with_all, without, chosen.number)
    with (chosen.output / "augmentation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(found)
    image_rows.save(chosen.output / "augmentation.png", shown)
    print(f"\n{markdown(found)}")


if __name__ == "__main__":
    main()
