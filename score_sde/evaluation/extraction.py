"""Features of many images in batches, and their mean and covariance."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.errors import DAMAGED, UserError, one_line
from score_sde.evaluation.network import FeatureFn
from score_sde.paths import whole


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of a set.

    Attributes:
        mu: float64 (F,).
        sigma: float64 (F, F), with the divisor n - 1.
        n: how many images; 0 where a file of another tool does not say it.
        about: what they are of: the set, the features, the weights' digest, the resize.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of mean and covariance."""
        return hashlib.sha256(self.mu.tobytes() + self.sigma.tobytes()).hexdigest()


def batches(
    function: FeatureFn,
    images: np.ndarray,
    batch_size: int = 64,
    done: Callable[[int], object] = lambda count: None,
) -> Iterator[np.ndarray]:
    """Yield the features of images, a batch at a time: float32 (n, F), n <= `batch_size`.

    The last batch is filled up with its last image, so that one program serves all.

    Args:
        function: images uint8 (B, H, W, C) -> features (B, F), such as `inception`.
        images: uint8 (N, H, W, C). Float samples are rounded to uint8 before, as a file of them is.
        batch_size: B.
        done: called after each batch with its n.
    """
    for begin in range(0, len(images), batch_size):
        batch = images[begin : begin + batch_size]
        missing = batch_size - len(batch) if begin else 0
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        yield np.asarray(function(filled))[: len(batch)]
        done(len(batch))


def features(
    function: FeatureFn,
    images: np.ndarray,
    batch_size: int = 64,
    done: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """The features of images, float32 (N, F); arguments as of `batches`."""
    return np.concatenate([*batches(function, images, batch_size, done)])


def statistics(parts: Iterable[np.ndarray], about: Mapping[str, Any] | None = None) -> Statistics:
    """Mean and covariance of features that come in parts (n, F). Memory does not grow with N.

    In float64, by the update of Chan, Golub and LeVeque (1983): sums of squares are taken about the
    mean, so that a large mean does not cost digits.

    Raises:
        ValueError: fewer than two rows.
    """
    parts = iter(parts)
    first = np.asarray(next(parts, np.zeros((0, 0))), np.float64)
    n, mu, scatter = 0, np.zeros(first.shape[1]), np.zeros((first.shape[1],) * 2)
    for part in itertools.chain([first], parts):
        rows = np.asarray(part, np.float64)
        if not len(rows):
            continue
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - mu
        total = n + len(rows)
        scatter += centred.T @ centred + np.outer(shift, shift) * (n * len(rows) / total)
        mu, n = mu + shift * (len(rows) / total), total
    if n < 2:
        raise ValueError(f"{n} rows of features: a covariance needs at least 2")
    return Statistics(mu, scatter / (n - 1), n, about or {})


def write_statistics(path: Path, found: Statistics) -> None:
    """Write an .npz file of `mu`, `sigma`, `n` and `about` (JSON). Other tools read the first two.

    Raises:
        UserError: it cannot be written.
    """
    with whole(path) as file:
        np.savez(file, mu=found.mu, sigma=found.sigma, n=found.n, about=json.dumps(found.about))


def read_statistics(path: Path) -> Statistics:
    """Read an .npz file of ours, or one of another tool with `mu` (F,) and `sigma` (F, F).

    Raises:
        UserError: one line: a file that is missing, damaged, pickled, or of something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"mu", "sigma"} - set(file.files)
            if missing:
                raise ValueError(f"has no {' and no '.join(sorted(missing))}")
            mu, sigma = (_real(file[name]) for name in ("mu", "sigma"))
            n = int(file["n"]) if "n" in file.files else 0
            about = json.loads(str(file["about"])) if "about" in file.files else {}
            if not isinstance(about, dict):
                raise ValueError("about is no mapping")
    except DAMAGED as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else one_line(e)[:100]
        raise UserError(f"{path}: no statistics ({reason}); allowed is .npz of mu, sigma") from e
    square = mu.ndim == 1 and mu.size and sigma.shape == (len(mu), len(mu))
    if not square or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(
            f"{path}: mu is {mu.shape}, sigma {sigma.shape}; allowed are finite (F,) and (F, F)"
        )
    # Of a covariance in float32 both halves are the same to 1e-7.
    if np.abs(sigma - sigma.T).max() > 1e-5 * np.abs(sigma).max() or np.diag(sigma).min() < 0.0:
        raise UserError(f"{path}: sigma is no covariance: not symmetric, or of negative variances")
    return Statistics(mu, sigma, n, about)


def _real(array: np.ndarray) -> np.ndarray:
    """The array in float64; ValueError for complex ones, of which a part would be lost."""
    if np.iscomplexobj(array):
        raise ValueError("complex numbers")
    return np.asarray(array, np.float64)


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> None:
    """Refuse to compare features that were made in different ways.

    Args:
        ours, theirs: `Statistics.about`. Where both have `features`, `weights` or `resize`, these
            must be equal; files of other tools have none.
        where: names the other side.

    Raises:
        UserError: they differ.
    """
    for key in ("features", "weights", "resize"):
        if key in ours and key in theirs and ours[key] != theirs[key]:
            raise UserError(f"{where}: its {key} is {theirs[key]!r}; allowed is {ours[key]!r}")
