"""FID, KID, Inception Score and sliced Wasserstein: closed cases, and second implementations."""

import tracemalloc

import numpy as np
import pytest
from scipy import linalg

from score_sde.evaluation import (
    Rows,
    Statistics,
    fid_infinity,
    frechet_distance,
    inception_score,
    kid,
    sliced_wasserstein,
    statistics,
)


def gaussian(n: int, features: int, seed: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, (n, features))


# --- Fréchet --------------------------------------------------------------------------------------


def test_gaussians_that_commute():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    turn = linalg.qr(gaussian(3, 3, 0))[0]
    first = Statistics(np.array([1.0, 0.0, 2.0]), turn @ np.diag(a) @ turn.T)
    second = Statistics(np.zeros(3), turn @ np.diag(b) @ turn.T)
    exact = 5.0 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    # Rounding of float64 in numbers of order 10.
    assert frechet_distance(first, second) == pytest.approx(exact, abs=1e-13)
    assert frechet_distance(second, first) == pytest.approx(exact, abs=1e-13)
    assert abs(frechet_distance(first, first)) < 1e-13


def test_against_the_root_of_the_product():
    first = statistics([gaussian(100, 20, 1) @ gaussian(20, 20, 2)])
    second = statistics([gaussian(100, 20, 3) @ gaussian(20, 20, 4) + 1.0])
    root = linalg.sqrtm(first.sigma @ second.sigma)
    exact = np.square(first.mu - second.mu).sum() + np.trace(
        first.sigma + second.sigma - 2.0 * root.real
    )
    # sqrtm's own error is some 1e-16 times a condition number of 1e4.
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-9)


def test_fewer_images_than_features():
    """Covariances without full rank. The trace of the root is then the sum of the singular values
    of the products of images, over n - 1."""
    x, y = gaussian(12, 40, 5), gaussian(15, 40, 6, mean=0.5)
    centred = [each - each.mean(0) for each in (x, y)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / np.sqrt(11 * 14)
    first, second = statistics([x]), statistics([y])
    exact = np.square(first.mu - second.mu).sum() - 2.0 * overlap
    exact += np.trace(first.sigma) + np.trace(second.sigma)
    # Eigenvalues of 0 are found as 1e-15, whose roots are 3e-8; there are up to 12.
    assert frechet_distance(first, second) == pytest.approx(exact, abs=1e-6)


def test_extrapolation_to_all_images():
    """On Gaussians, whose distance is known: no bias is left, and the error is as it is said."""
    reference = Statistics(np.zeros(8), np.eye(8))
    exact = 8 * (0.1**2 + 0.1**2)  # of means of 0.1 and standard deviations of 1.1
    draws, n = 60, 400
    found = [fid_infinity(gaussian(n, 8, 100 + draw, 0.1, 1.1), reference) for draw in range(draws)]
    values = np.array([each.infinity.value for each in found])
    scatter = values.std(ddof=1)
    # The mean of 60 is known to scatter / sqrt(60): within four of these.
    assert abs(values.mean() - exact) < 4.0 * scatter / np.sqrt(draws)
    plain = np.array([each.values[0] for each in found])
    assert plain.mean() - exact > 8.0 * plain.std() / np.sqrt(draws)  # what it was before
    # Each error comes from 2 to 4 parts; their mean over 60 is good to some 10 %, and the scatter
    # of 60 likewise.
    errors = np.mean([each.infinity.standard_error for each in found])
    assert 0.6 < errors / scatter < 1.6
    assert found[0].sizes == [400, 200, 133, 100]


# --- KID ------------------------------------------------------------------------------------------


def naive_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, Lemma 6, pair by pair."""

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return float(np.mean([(a[i] @ b[j] / len(a[i]) + 1.0) ** 3 for i, j in pairs]))

    return mean(x, x, True) + mean(y, y, True) - 2.0 * mean(x, y, False)


def test_kid_as_the_definition_says():
    """Subsets of 2 of 20, taken apart again by their seed."""
    x, y = gaussian(20, 5, 1), gaussian(20, 5, 2, mean=0.5)
    rng = np.random.default_rng(7)
    orders = [rng.permutation(20).reshape(10, 2) for _ in range(2)]
    values = [naive_mmd2(x[a], y[b]) for a, b in zip(*orders, strict=True)]
    found = kid(x, y, seed=7)
    assert found.value == pytest.approx(np.mean(values), rel=1e-12)
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / np.sqrt(10), rel=1e-12)


def test_kid_of_gaussians():
    """In one dimension (x y + 1)³ has the features 1, √3 x, √3 x², x³, so MMD² is known from three
    moments. Of N(m, s²): m, m² + s², m³ + 3 m s²."""
    (m1, s1), (m2, s2) = (0.0, 1.0), (0.3, 1.2)
    moments = [(m, m**2 + s**2, m**3 + 3 * m * s**2) for m, s in ((m1, s1), (m2, s2))]
    first, second, third = np.square(np.subtract(*moments))
    exact = 3 * first + 3 * second + third
    found = kid(gaussian(10_000, 1, 1, m1, s1), gaussian(10_000, 1, 2, m2, s2))
    assert abs(found.value - exact) < 4.0 * found.standard_error < 0.5 * exact
    same = kid(gaussian(10_000, 1, 3), gaussian(10_000, 1, 4))
    assert abs(same.value) < 4.0 * same.standard_error


def test_kid_of_too_few():
    with pytest.raises(ValueError, match="19 rows of features: KID needs at least 20"):
        kid(gaussian(19, 2, 1), gaussian(50, 2, 2))


# --- The others -----------------------------------------------------------------------------------


def test_inception_score():
    # Sure of one of 5 classes, all of them equally often: 5. Sure of nothing: 1.
    sure = np.tile(50.0 * np.eye(5), (20, 1))
    assert inception_score(sure, splits=4) == pytest.approx((5.0, 0.0), abs=1e-12)
    assert inception_score(np.zeros((100, 5))) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_sliced_wasserstein_of_a_shift():
    x = np.random.default_rng(0).integers(0, 200, (50, 8, 8, 3), np.uint8)
    shift = np.random.default_rng(1).integers(0, 50, (8, 8, 3), np.uint8)
    exact = np.linalg.norm(shift.astype(float)) / np.sqrt(shift.size)
    found = sliced_wasserstein(x, x + shift, num_projections=2048)
    # The mean of 2048 squares of normal numbers is good to sqrt(2 / 2048) = 3 %, its root to half.
    assert found == pytest.approx(exact, rel=4 * 0.016)
    # The order of the rows moves a product by rounding at most: 192 terms of up to 200 in float64.
    assert sliced_wasserstein(x, x[::-1]) < 192 * 200 * 2.2e-16


def test_sliced_wasserstein_in_one_dimension():
    x, y = gaussian(30, 1, 1), gaussian(30, 1, 2)
    exact = np.sqrt(np.square(np.sort(x, 0) - np.sort(y, 0)).mean())
    assert sliced_wasserstein(x, y, num_projections=2) == pytest.approx(exact, rel=1e-12)
    # Each point once or thrice is the same distribution.
    assert sliced_wasserstein(x, np.repeat(x, 3, axis=0)) == 0.0


def test_sliced_wasserstein_of_large_images_fits():
    """200 images of 256 x 256 are 39 MB as bytes and 315 MB as float64; a block of these has 67."""
    shape = (200, 256, 256, 3)
    black, grey = (Rows(shape, lambda value=value: filled(value)) for value in (0, 9))

    def filled(value: int):
        yield np.full(shape, value, np.uint8)

    tracemalloc.start()
    found = sliced_wasserstein(black, grey, num_projections=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The sum over a direction is a normal number: 9 times the root of the mean of 4 squares.
    assert 0.5 < found < 9.0 * 4.0
    assert peak < 160e6


def test_sliced_wasserstein_of_what_is_read_in_chunks():
    x, y = gaussian(3000, 5, 1), gaussian(2000, 5, 2, mean=0.5)
    assert sliced_wasserstein(Rows.of(x), Rows.of(y)) == sliced_wasserstein(x, y)
