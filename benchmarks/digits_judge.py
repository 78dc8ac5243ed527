"""Are these 8x8 images digits? Measures of drawn digits against scikit-learn's real ones.

confidence   mean top probability of a support vector machine trained on the 1500 training digits
classes      the share of each of its ten classes, and the largest deviation from the real shares in
standard errors
near         share of drawn digits at most as far from a real digit as 99 % of real digits are from
another
covered      share of real digits at most that far from a drawn one
copies       drawn digits that lie nearer to a training digit than any two training digits lie to
each other
"""

from typing import NamedTuple

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from score_sde import data


class Verdict(NamedTuple):
    """What the judge says of n drawn digits; see the module."""

    confidence: float
    near: float
    covered: float
    class_deviation: float
    copies: int


class Judge:
    """Knows the real digits. Images are uint8 (n, 8, 8, 1), levels 0 ... 16."""

    def __init__(self) -> None:
        real = data.load("digits", "train", "")
        self.real, self.labels = _flat(real.x), real.condition["labels"]
        machine = SVC(kernel="rbf", C=10.0, gamma=1e-3)
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


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
