"""Figures of nearest neighbours: precision, recall, density, coverage; the neighbours themselves.

Distances are computed a block of rows at a time: 50,000 against 50,000 features of 2048 stay below
4 GiB. They are float32, of values about the reference's mean, which costs the fewest digits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BLOCK = 2**23  # distances at a time: 32 MiB


class Manifolds(NamedTuple):
    """How two sets lie in each other's neighbourhoods.

    Attributes:
        precision: share of the samples that lie among the reference.
        recall: share of the reference that lies among the samples.
        density: in how many of the reference's balls a sample lies, over k; not bounded by 1.
        coverage: share of the reference whose ball holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(
    samples: np.ndarray, reference: np.ndarray, k_precision: int = 3, k_density: int = 5
) -> Manifolds:
    """Improved precision and recall (Kynkäänniemi et al. 2019, sec. 2), density and coverage
    (Naeem et al. 2020, sec. 3).

    All are counts of points in balls. The ball of a point reaches to its k-th neighbour in its own
    set, itself left out; a point on the edge is within. The figures depend on the numbers of
    points: compare those of equal numbers only. The papers take equally many on both sides.

    Args:
        samples: features (N, F).
        reference: features (M, F).
        k_precision: k of precision and recall, 3 in the paper.
        k_density: k of density and coverage, 5 in the paper.

    Raises:
        ValueError: a set of not more than k points.
    """
    fewest, most = min(len(samples), len(reference)), max(k_precision, k_density)
    if fewest <= most:
        raise ValueError(f"{fewest} points: {most} neighbours need at least {most + 1}")
    fake, real = _about_mean(samples, reference)
    real_radii = _radii(real, (k_precision, k_density))
    (fake_radii,) = _radii(fake, (k_precision,))
    among = np.zeros(len(fake), np.bool_)
    recalled, covered, balls = 0, 0, 0
    for rows, distances in _squared_distances(real, fake):
        among |= (distances <= real_radii[0, rows, None]).any(0)
        recalled += int((distances <= fake_radii).any(1).sum())
        inside = distances <= real_radii[1, rows, None]
        covered += int(inside.any(1).sum())
        balls += int(inside.sum())
    return Manifolds(
        precision=float(among.mean()),
        recall=recalled / len(real),
        density=balls / (k_density * len(fake)),
        coverage=covered / len(real),
    )


def nearest(
    samples: np.ndarray, reference: np.ndarray, k: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the reference to each sample, the nearest first. No figure of quality
    detects training images that were learned by heart; this shows them.

    Args:
        samples, reference: (N, ...), (M, ...): images or features, in the same unit.
        k: up to M.

    Returns:
        indices int64 (N, k) and Euclidean distances float32 (N, k).
    """
    x, y = _about_mean(samples, reference)
    indices = np.empty((len(x), k), np.int64)
    found = np.empty((len(x), k), np.float32)
    for rows, distances in _squared_distances(x, y):
        some = np.argpartition(distances, k - 1, axis=1)[:, :k]
        squared = np.take_along_axis(distances, some, axis=1)
        order = np.argsort(squared, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(some, order, axis=1)
        found[rows] = np.sqrt(np.take_along_axis(squared, order, axis=1))
    return indices, found


def _about_mean(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32 (N, F), about the second's mean."""
    x, y = (each.reshape(len(each), -1) for each in (first, second))
    centre = y.mean(0, dtype=np.float64).astype(np.float32)
    return (x - centre).astype(np.float32, copy=False), (y - centre).astype(np.float32, copy=False)


def _radii(x: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Squared distances (len(ks), N) to the k-th neighbours; a point is its own neighbour 0."""
    radii = np.empty((len(ks), len(x)), np.float32)
    for rows, distances in _squared_distances(x, x):
        radii[:, rows] = np.partition(distances, ks, axis=1)[:, list(ks)].T
    return radii


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of x's rows with their squared distances float32 (rows, M) from all of y's.
    Those that rounding cannot tell from 0 are 0, so that equal points have no distance."""
    # A squared distance is off by some float32 steps of the squared norm, as a sum of F products.
    rounding = 4.0 * np.finfo(np.float32).eps * np.sqrt(x.shape[1])
    x_norms, y_norms = (np.einsum("nf,nf->n", each, each) for each in (x, y))
    step = max(1, _BLOCK // len(y))
    for begin in range(0, len(x), step):
        rows = slice(begin, begin + step)
        distances = x[rows] @ y.T
        distances *= -2.0
        distances += x_norms[rows, None]
        distances += y_norms
        distances[distances < rounding * x_norms[rows, None]] = 0.0
        yield rows, distances
