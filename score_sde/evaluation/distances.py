"""Distances between two sets of features or images."""

import math
from typing import NamedTuple

import numpy as np

from score_sde.evaluation.extraction import Statistics, statistics
from score_sde.evaluation.rows import Rows

_DIRECTIONS = 2**26  # numbers, 512 MiB
_BLOCK = 2**23  # numbers of a block of images, 64 MiB


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    standard_error: float


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared Fréchet distance of two Gaussians (Dowson and Landau 1982), which is the FID
    (Heusel et al. 2017, eq. 6) when the features are Inception's:

        |mu1 - mu2|² + Tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)).

    With sigma1 = R Rᵀ, the last trace is the sum of the square roots of the eigenvalues of the
    symmetric Rᵀ sigma2 R. Everything in float64.

    The FID of few images is too large: compare figures of equal n only, or see `fid_infinity`.
    """
    return _distance(first, _root(first.sigma), second)


def _root(sigma: np.ndarray) -> np.ndarray:
    """R (F, r) with R Rᵀ = sigma (F, F) of rank r."""
    values, vectors = np.linalg.eigh(sigma)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _distance(first: Statistics, root: np.ndarray, second: Statistics) -> float:
    values = np.linalg.eigvalsh(root.T @ second.sigma @ root)
    overlap = np.sqrt(np.maximum(values, 0.0)).sum()
    mean = np.square(first.mu - second.mu).sum()
    return float(mean + np.trace(first.sigma) + np.trace(second.sigma) - 2.0 * overlap)


class Extrapolated(NamedTuple):
    """The FID at several n, and where it goes.

    Attributes:
        sizes: n, the largest first.
        values: the mean FID of the parts of n images.
        infinity: the value at 1/n = 0 of the line through the first two, and its standard error.
    """

    sizes: list[int]
    values: list[float]
    infinity: Estimate


def fid_infinity(
    features: np.ndarray | Rows, reference: Statistics, parts: int = 4, seed: int = 0
) -> Extrapolated:
    """The FID without the bias of a finite number of samples (Chong and Forsyth 2020).

    To first order the FID of n samples is FID∞ + b/n. As in the paper, the estimate is the
    intercept of a line in 1/n. The points are means over disjoint parts: the samples in random
    order are cut into k = 1 ... `parts` parts of N/k, so that every point uses all of them. The
    line goes through N and N/2, as it bends towards small n. The reference is taken as it is.

    The standard error is that of the mean over parts, averaged over k > 1: the points share it, as
    they share the samples. The bend is a further error. For draws from a Gaussian with the moments
    of CIFAR-10's features, of which FID∞ is 0, the estimate is -0.08 at N = 10,000 (the FID is
    2.4), -0.45 at 5000 (4.8) and -2.8 at 2000 (13), where N/2 is below F.

    Args:
        features: (N, F) of the samples, in memory or read in chunks, once for each part.
        reference: of the other side.
        parts: the most parts, at least 2.
        seed: of the order.

    Raises:
        ValueError: parts of fewer than two samples.
    """
    rows = features if isinstance(features, Rows) else Rows.of(features)
    order = np.random.default_rng(seed).permutation(len(rows))
    root = _root(reference.sigma)
    counts = range(1, parts + 1)
    values = [
        [_distance(reference, root, statistics(rows.at(np.sort(part)))) for part in cut]
        for cut in (_cut(order, count) for count in counts)
    ]
    means = [float(np.mean(found)) for found in values]
    errors = [np.std(found, ddof=1) / np.sqrt(len(found)) for found in values[1:]]
    sizes = [len(rows) // count for count in counts]
    return Extrapolated(sizes, means, Estimate(2.0 * means[0] - means[1], float(np.mean(errors))))


def _cut(order: np.ndarray, count: int) -> np.ndarray:
    """Disjoint parts of equal size, (count, size)."""
    size = len(order) // count
    return order[: size * count].reshape(count, size)


def kid(first: np.ndarray, second: np.ndarray, subset_size: int = 1000, seed: int = 0) -> Estimate:
    """The kernel Inception distance: the unbiased squared MMD with the kernel (x·y / F + 1)³
    (Bińkowski et al. 2018, sec. 4; Gretton et al. 2012, Lemma 6).

    It is the mean over disjoint random subsets, and its standard error that of this mean. Other
    tools draw 100 subsets of 1000 with overlap, whose scatter is no standard error. The value may
    be negative.

    Args:
        first, second: features (N, F), (M, F).
        subset_size: of each side; at most a tenth of the smaller set is taken.
        seed: of the subsets.

    Raises:
        ValueError: fewer than 20 rows on a side.
    """
    fewest = min(len(first), len(second))
    size = min(subset_size, fewest // 10)
    if size < 2:
        raise ValueError(f"{fewest} rows of features: KID needs at least 20")
    rng = np.random.default_rng(seed)
    cuts = (_cut(rng.permutation(len(x))[:fewest], fewest // size) for x in (first, second))
    values = [_mmd2(first[a], second[b]) for a, b in zip(*cuts, strict=True)]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))))


def _mmd2(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased squared MMD of equally many rows."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    n = len(x)
    within = sum(
        (kernel.sum() - np.trace(kernel)) / (n * (n - 1)) for kernel in (_cubic(x, x), _cubic(y, y))
    )
    return float(within - 2.0 * _cubic(x, y).mean())


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel of all pairs, (N, M)."""
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base


def inception_score(logits: np.ndarray, splits: int = 10) -> Estimate:
    """exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al. 2016, sec. 4).

    Args:
        logits: (N, classes), in their code `features @ classifier` without a bias.
        splits: parts of which the score is taken by itself. The value is their mean, the error its
            standard error (theirs is the standard deviation of the parts).
    """
    scores = []
    for part in np.array_split(logits.astype(np.float64), splits):
        log_p = part - np.logaddexp.reduce(part, axis=1, keepdims=True)
        log_mean = np.logaddexp.reduce(log_p, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores, ddof=1) / np.sqrt(splits)))


def sliced_wasserstein(
    first: np.ndarray | Rows, second: np.ndarray | Rows, num_projections: int = 256, seed: int = 0
) -> float:
    """The sliced Wasserstein distance of order 2 (Bonneel et al. 2015): the root of the mean over
    random directions of the squared distance of the projections.

    Args:
        first, second: (N, ...) and (M, ...), such as images of 0 to 255, in memory or read in
            chunks, once; in their unit.
        num_projections: directions, uniform on the sphere. Fewer are taken where they would fill
            more than 512 MiB: 85 of images 512 x 512 x 3.
        seed: of the directions.
    """
    sides = [each if isinstance(each, Rows) else Rows.of(each) for each in (first, second)]
    rng, size = np.random.default_rng(seed), math.prod(sides[0].shape[1:])
    number = max(1, min(num_projections, _DIRECTIONS // size))
    directions = rng.standard_normal((size, number))
    directions /= np.sqrt(np.einsum("fp,fp->p", directions, directions))  # in place
    most = max(map(len, sides))
    # The quantiles at the middles of `most` steps: of a set of that size, its sorted values.
    x, y = (
        np.sort(_projected(x, directions), axis=0)[(2 * np.arange(most) + 1) * len(x) // (2 * most)]
        for x in sides
    )
    return float(np.sqrt(np.square(x - y).mean()))


def _projected(x: Rows, directions: np.ndarray) -> np.ndarray:
    """(N, projections), by blocks of rows: images stay uint8 except for a block."""
    step = max(1, _BLOCK // len(directions))
    return np.concatenate(
        [
            chunk[begin : begin + step].reshape(-1, len(directions)) @ directions
            for chunk in x
            for begin in range(0, len(chunk), step)
        ]
    )
