"""Are these images digits? Measures of drawn images against real ones of a data set, by default
scikit-learn's 8x8 digits.

confidence   mean top probability of a support vector machine trained on the training images
classes      the share of each of its ten classes, and the largest deviation from the real shares in
standard errors
near         share of drawn images at most as far from a real one as 99 % of real ones are from
another
covered      share of real images at most that far from a drawn one
copies       drawn images that lie nearer to a training image than any two of these to each other
"""

from typing import NamedTuple

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from score_sde import data

LEARNED = 5000  # real images that it knows, at most: all digits


class Verdict(NamedTuple):
    """What the judge says of n drawn images; see the module."""

    confidence: float
    near: float
    covered: float
    class_deviation: float
    copies: int


class Judge:
    """Knows the first real training images of a set, uint8 (n, H, W, C)."""

    def __init__(self, name: str = "digits", data_dir: str = "") -> None:
        real = data.load(name, "train", data_dir)
        self.real = _flat(np.asarray(real.x[:LEARNED]))
        self.labels = np.asarray(real.condition["labels"][:LEARNED])
        gamma = 1e-3 if name == "digits" else "scale"
        machine = SVC(kernel="rbf", C=10.0, gamma=gamma)
        self.machine = CalibratedClassifierCV(machine, ensemble=False).fit(self.real, self.labels)
        self.neighbours = NearestNeighbors(n_neighbors=2).fit(self.real)
        between = self.neighbours.kneighbors(self.real)[0][:, 1]
        self.radius, self.closest = np.quantile(between, 0.99), between.min()

    def verdict(self, images: np.ndarray) -> Verdict:
        """Judge drawn images."""
        drawn = _flat(images)
        probability = self.machine.predict_proba(drawn)
        expected = np.bincount(self.labels, minlength=10) / len(self.labels)
        found = np.bincount(probability.argmax(1), minlength=10) / len(drawn)
        error = np.sqrt(expected * (1 - expected) / len(drawn))
        to_real = self.neighbours.kneighbors(drawn, 1)[0][:, 0]
        to_drawn = NearestNeighbors(n_neighbors=1).fit(drawn).kneighbors(self.real)[0][:, 0]
        return Verdict(
            confidence=float(probability.max(1).mean()),
            near=float((to_real <= self.radius).mean()),
            covered=float((to_drawn <= self.radius).mean()),
            class_deviation=float(np.abs((found - expected) / error).max()),
            copies=int((to_real < self.closest).sum()),
        )


def outside(images: np.ndarray) -> float:
    """Mean top probability of a machine with a narrower kernel, which knows all 1797 digits.

    C = 10, gamma = 0.48 for pixels in [0, 1]. Real digits have 0.987, noise 0.174.
    """
    both = [data.load("digits", split) for split in ("train", "test")]
    real = np.concatenate([_flat(np.asarray(part.x)) for part in both]) / 16.0
    labels = np.concatenate([np.asarray(part.condition["labels"]) for part in both])
    machine = SVC(kernel="rbf", C=10.0, gamma=0.48, probability=True, random_state=0)
    return float(machine.fit(real, labels).predict_proba(_flat(images) / 16.0).max(1).mean())


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
