"""Precision, recall, density, coverage, neighbours: closed cases, and a second implementation."""

import tracemalloc

import numpy as np
import pytest

from score_sde.evaluation import manifolds, nearest
from score_sde.evaluation.neighbours import Manifolds


def gaussian(n: int, features: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, (n, features)).astype(np.float32)


def naive(samples: np.ndarray, reference: np.ndarray, k_precision: int, k_density: int) -> list:
    """The definitions, point by point in float64."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a.astype(np.float64) - b))

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    def share_within(points: np.ndarray, others: np.ndarray) -> float:
        radii = [radius(others, i, k_precision) for i in range(len(others))]
        inside = [
            any(distance(p, o) <= r for o, r in zip(others, radii, strict=True)) for p in points
        ]
        return float(np.mean(inside))

    radii = [radius(reference, i, k_density) for i in range(len(reference))]
    counts = [
        sum(distance(r, s) <= radius for s in samples)
        for r, radius in zip(reference, radii, strict=True)
    ]
    return [
        share_within(samples, reference),
        share_within(reference, samples),
        sum(counts) / (k_density * len(samples)),
        float(np.mean([count > 0 for count in counts])),
    ]


@pytest.mark.parametrize(("k_precision", "k_density"), [(3, 5), (1, 2)])
def test_as_the_definitions_say(k_precision, k_density):
    samples, reference = gaussian(40, 6, 1, mean=0.7), gaussian(50, 6, 2)
    expected = naive(samples, reference, k_precision, k_density)
    # No distance of these lies so near an edge that float32 moves it across.
    np.testing.assert_allclose(manifolds(samples, reference, k_precision, k_density), expected)
    assert all(0.05 < share < 0.98 for share in expected)  # none is trivial


def test_equal_sets():
    x = gaussian(200, 6, 3)
    # A ball holds its k neighbours and its own point, so the density is (k + 1) / k.
    assert manifolds(x, x) == Manifolds(1.0, 1.0, pytest.approx(6 / 5), 1.0)


def test_disjoint_sets():
    assert manifolds(gaussian(60, 6, 4, mean=50.0), gaussian(50, 6, 5)) == (0.0, 0.0, 0.0, 0.0)


def test_half_of_the_samples_elsewhere():
    reference = gaussian(100, 6, 6)
    samples = np.concatenate([reference, gaussian(100, 6, 7, mean=50.0)])
    found = manifolds(samples, reference)
    # The others' balls do not reach the reference, so recall and coverage stay whole.
    assert found == (0.5, 1.0, pytest.approx(6 / 5 / 2), 1.0)


def test_one_image_again_and_again():
    """Balls of radius 0 hold what equals their centre, though far from the mean of all."""
    reference = np.concatenate([gaussian(1, 64, 8) * 30.0] * 10 + [gaussian(90, 64, 9)])
    found = manifolds(np.repeat(reference[:1], 20, axis=0), reference)
    assert found.precision == 1.0 and found.coverage == 0.1
    assert found.density == pytest.approx(10 / 5)


def test_too_few_points():
    with pytest.raises(ValueError, match="5 points: 5 neighbours need at least 6"):
        manifolds(gaussian(5, 2, 1), gaussian(9, 2, 2))


def test_nearest_of_images():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (30, 4, 4, 3), np.uint8)
    samples = np.concatenate([training[[7, 3]], rng.integers(0, 256, (5, 4, 4, 3), np.uint8)])
    indices, distances = nearest(samples, training, k=3)
    flat = [x.reshape(len(x), -1).astype(np.float64) for x in (samples, training)]
    exact = np.linalg.norm(flat[0][:, None] - flat[1], axis=-1)
    order = np.argsort(exact, axis=1)[:, :3]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(distances[:2, 0], 0.0)  # copies
    np.testing.assert_allclose(distances, np.take_along_axis(exact, order, axis=1), rtol=1e-5)


@pytest.mark.thorough
def test_memory_holds_a_block_of_the_distances():
    x = gaussian(6000, 2, 10)
    tracemalloc.start()
    found = manifolds(x, x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.precision == found.coverage == 1.0
    # All distances are 144 MB, and a second copy is needed to sort them. A block is 34 MB; a copy
    # to sort, masks of bytes and what is left of the last block make it three.
    assert peak < 110e6
