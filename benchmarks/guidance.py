"""What guidance does to class-conditional images: a trade of accuracy against diversity.

    python main.py --config configs/vp_digits.py:conditional --mode train
    python main.py --workdir runs/vp_digits-conditional --mode train_classifier    # if wanted
    python benchmarks/guidance.py runs/vp_digits-conditional
    python benchmarks/guidance.py runs/vp_digits-conditional --price    # of a step alone

Writes a CSV and a picture beside this file, named by the data set, and prints a Markdown table.

accuracy     share of the images that a support vector machine (RBF) takes for the class that they
             were drawn for. It is trained on real images, and knows nothing of the model.
precision    share of the images that lie among the training images; recall, the other way round
             (Kynkäänniemi et al. 2019), k = 3, of pixels, equally many on both sides.

Methods: classifier-free guidance of the conditional score, and classifier guidance of the
unconditional one, where the run has a classifier of noisy images. The price of a step: images/s of
guided samples against half of the plain ones', by turns.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import jax
import matplotlib
import numpy as np
from lines import folder
from sklearn.svm import SVC

import score_sde
from score_sde import data
from score_sde.config import changed
from score_sde.evaluation.neighbours import manifolds
from score_sde.modes import start
from score_sde.run import Run

FREE, BY_CLASSIFIER = "classifier-free", "classifier"
WEIGHTS = {
    FREE: (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0),
    BY_CLASSIFIER: (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
}
FIELDS = ("method", "weight", "nfe", "accuracy", "precision", "recall", "seconds")
PRICED = 256  # images drawn at a time for the price of a step
LEARNED = 10_000  # real images that the judge is trained on, at most


class Judge:
    """Knows real images, uint8 (n, H, W, C)."""

    def __init__(self, run: Run, number: int) -> None:
        rng = np.random.default_rng(0)
        x, labels = _split(run, "train")
        chosen = rng.permutation(len(x))
        learned = chosen[:LEARNED]
        self.top = run.info.levels - 1
        self.machine = SVC(C=10.0, gamma="scale").fit(self._flat(x[learned]), labels[learned])
        self.real = self._flat(x[chosen[:number]])

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share that is taken for its label."""
        return float((self.machine.predict(self._flat(images)) == labels).mean())

    def verdict(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
        """Accuracy, precision and recall."""
        found = manifolds(self._flat(images), self.real)
        return self.accuracy(images, labels), found.precision, found.recall

    def _flat(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) / self.top


def _split(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = data.load(run.info.name, name, run.config.data.dir)
    return np.asarray(found.x), np.asarray(found.condition["labels"])


def settings(method: str, weight: float) -> dict[str, float]:
    """The run's settings for a method and its weight."""
    if method == FREE:
        return {"sampling.guidance": weight}
    return {"sampling.guidance": 0.0, "sampling.classifier_scale": weight}


def rows(workdir: Path, run: Run, judge: Judge, number: int) -> list[dict[str, object]]:
    """The table's lines."""
    found = []
    for method, weights in WEIGHTS.items():
        if method == BY_CLASSIFIER:
            if not (workdir / "classifier" / "config.json").exists():
                print(f"{workdir}: no classifier, so no classifier guidance")
                continue
            config = changed(run.config, settings(method, 1.0))
            run = score_sde.load(workdir, config)
        for weight in weights:
            begin = time.perf_counter()
            drawn = run.changed(settings(method, weight)).sample(jax.random.key(0), number)
            values = (drawn.nfe.mean(), *judge.verdict(drawn.images, drawn.labels))
            values = (*values, time.perf_counter() - begin)
            numbers = (f"{value:.4g}" for value in values)
            found.append(dict(zip(FIELDS, (method, f"{weight:g}", *numbers), strict=True)))
            print(*found[-1].values(), flush=True)
    return found


def price(run: Run, number: int, rounds: int) -> None:
    """Print images/s of guided samples over half of the plain ones', by rounds. They are drawn in
    one batch."""
    run = run.changed({"sampling.batch_size": number})
    runs = [run.changed(settings(FREE, weight)) for weight in (1.0, 2.0)]
    seconds: list[list[float]] = []
    for _ in range(rounds + 1):  # the first compiles
        seconds.append([])
        for each in runs:
            begin = time.perf_counter()
            each.sample(jax.random.key(0), number)
            seconds[-1].append(time.perf_counter() - begin)
    ratios = [2.0 * plain / guided for plain, guided in seconds[1:]]
    print(
        f"a guided image/s over half a plain one, batches of {number}, {rounds} rounds: median "
        f"{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
    )


def picture(path: Path, lines: list[dict[str, object]]) -> None:
    """Accuracy, precision and recall by weight; and the trade, precision against recall."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    methods = list(dict.fromkeys(line["method"] for line in lines))
    number = len(methods) + 1
    figure, panels = pyplot.subplots(1, number, figsize=(3.7 * number, 3.4), layout="constrained")
    for method, panel, colour in zip(methods, panels, ("tab:blue", "tab:orange"), strict=False):
        of = [line for line in lines if line["method"] == method]
        accuracy, precision, recall = (
            [float(line[name]) for line in of] for name in ("accuracy", "precision", "recall")
        )
        weights = [float(line["weight"]) for line in of]
        panel.plot(weights, accuracy, "o-", label="accuracy")
        panel.plot(weights, precision, "s--", label="precision")
        panel.plot(weights, recall, "^:", label="recall")
        panel.set(title=f"{method} guidance", xlabel="weight", ylim=(0.0, 1.02))
        panels[-1].plot(recall, precision, "o-", color=colour, label=method)
        for line, *place in zip(of, recall, precision, strict=True):
            panels[-1].annotate(f" {line['weight']}", place, fontsize=7, color=colour)
    panels[0].legend()
    panels[-1].legend()
    panels[-1].set(title="the trade, by weight", xlabel="recall", ylabel="precision")
    figure.savefig(path, dpi=80)


def main() -> None:
    """Measure, and print the table."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("workdir", type=Path, help="of a run with classes and label dropout")
    parser.add_argument("--number", default=1500, type=int, help="images for each weight")
    parser.add_argument("--price", action="store_true", help="the price of a step, nothing else")
    parser.add_argument("--rounds", default=10, type=int, help="of the price of a step")
    parser.add_argument("--output", default=Path(__file__).parent, type=folder)
    chosen = parser.parse_args()
    start(chosen.number)
    run = score_sde.load(chosen.workdir)
    if chosen.price:
        price(run, PRICED, chosen.rounds)
        return
    judge = Judge(run, chosen.number)
    run = run.changed({"sampling.batch_size": chosen.number})
    held_out = judge.accuracy(*_split(run, "test"))
    print(f"accuracy of the judge on real held-out images: {held_out:.3f}")
    lines = rows(chosen.workdir, run, judge, chosen.number)
    name = chosen.output / f"guidance_{run.info.name}"
    with name.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(lines)
    picture(name.with_suffix(".png"), lines)
    print(f"\n| {' | '.join(FIELDS[:-1])} |\n|{'---|' * (len(FIELDS) - 1)}")
    for line in lines:
        print(f"| {' | '.join(str(line[field]) for field in FIELDS[:-1])} |")


if __name__ == "__main__":
    main()
