"""Where data live, and how they become the numbers that a model sees, and back.

`Pixels` are integers and `Vectors` floating-point columns. A `Space` has the members

    shape                         of one item
    dequantize                    whether training spreads the data over their bins
    check(data)                   the data as an array; ValueError for data of another kind
    to_model(data, noise=None)    float32 (B, *shape); noise uniform in [0, 1) spreads over the bins
    from_model(x)                 back to the data's units
    dequantized(keys, data, ...)  continuous points for a likelihood, with their log density
    figure(log_prob)              a log probability as bits per dimension, or as nats

A likelihood takes the density p of the model, in the model's units. `dequantized` returns points x
and a log density. For data with bins, log p(x) - log_density bounds the log probability of the
data. For data without bins it is the log density in the data's units.

**Pixels.** There are ``levels`` grey levels: 256 for 8-bit images, 17 for scikit-learn's digits. A
dequantized pixel v is spread over its bin: (v + u) / levels, u uniform in [0, 1). Otherwise it is
v / (levels - 1). If ``centered``, [0, 1] is mapped to [-1, 1].

**Vectors.** Each column is standardised: x = (v - mean) / std. So log p of v is that of x minus the
sum of log std. With a known bin width w a value stands for [v - w/2, v + w/2].

**Dequantization.** It makes the likelihood of discrete data from the density p of a continuous
model. An item v has the probability P(v) = int p(x) dx over its cell, the product of its D bins.
The cells do not overlap, so these are the probabilities of a discrete model. Let q(x | v) be any
density that vanishes outside the cell. Jensen's inequality gives (Theis et al. 2016,
arXiv:1511.01844; Ho et al. 2019, arXiv:1902.00275)

    log P(v) = log E_q[p(x) / q(x | v)] >= E_q[log p(x) - log q(x | v)].

- uniform: q is constant on the cell. With bins of width w in the model's units, -log q = D log w.
  It suits models that were trained on uniformly dequantized data: there p is nearly as flat in a
  cell as q.
- truncated normal (Zheng et al. 2023, arXiv:2305.03935): x = alpha v' + sigma z. Here v' is the
  value as the model knows it, in the middle of its bin; alpha and sigma are the process's at t_min.
  z is standard normal given |z| <= tau = alpha w / (2 sigma), so x stays in the bin of width alpha
  w around alpha v'. The density of each number is q = phi(z) / (sigma Z): phi is the standard
  normal density, and Z = erf(tau / sqrt(2)) the probability of |z| <= tau. It suits models that
  were trained on pixels as they are: a large tau distributes x as the network's input at t_min in
  training, and a small one makes q uniform. The uniform x lies off the levels that such a network
  knows. For a model trained on dequantized data the bound holds but is loose, as q covers a part of
  the cell only.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from score_sde.errors import require

DEQUANTIZATIONS = ("uniform", "truncated_normal")
THREEFRY = "threefry2x32"


def item_keys(key: Array, num: int, first: int | Array = 0) -> Array:
    """A key for each of the items first ... first + num - 1, (num,): what is drawn for an item does
    not depend on how many are drawn at a time.

    The keys are threefry's. Those of JAX's other generators draw other numbers for an item in
    another batch; one of them is folded into a key of threefry's."""
    if f"{jax.random.key_impl(key)}" != THREEFRY:
        words, key = jax.random.key_data(key), jax.random.key(0, impl=THREEFRY)
        for word in words:
            key = jax.random.fold_in(key, word)
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(num))


class Dequantized(NamedTuple):
    """Continuous points drawn for data.

    Attributes:
        x: in the model's units, float32 (B, *shape).
        log_density: what is subtracted from log p(x), nats, float32 (B,): log q(x | v), or for
            vectors without bins the log volume that standardisation leaves of a unit.
    """

    x: Array
    log_density: Array


class Space(ABC):
    """What `Pixels` and `Vectors` share: the figure that reports a likelihood, and dequantization.

    Attributes:
        shape: of one item.
        dequantize: training spreads the data over their bins.
    """

    shape: Any  # of the fields of subclasses, or their properties
    dequantize: Any

    @property
    def has_bins(self) -> bool:
        """Whether items are discrete, so that they have probabilities."""
        return True

    def figure(self, log_prob: Array) -> Array:
        """Bits per dimension, float32 (B,), from nats of log P or of a bound of it; without bins
        nats of log density."""
        return bits_per_dim(log_prob, math.prod(self.shape)) if self.has_bins else log_prob

    def dequantized(
        self, keys: Array, data: Array, method: str, alpha: Array | float, sigma: Array | float
    ) -> Dequantized:
        """Points in the cells of items; the items themselves where there are no bins.

        Args:
            keys: one for each item, (B,).
            data: items (B, *shape), as they are stored.
            method: one of `DEQUANTIZATIONS`, see the module's docstring; without effect where there
                are no bins.
            alpha: factor of the data at t_min, ().
            sigma: standard deviation of the noise at t_min, (). Both are for "truncated_normal".

        Raises:
            ValueError: another method.
        """
        known = method in DEQUANTIZATIONS
        require(known, "dequantization", method, ", ".join(DEQUANTIZATIONS))
        if self.has_bins and method == "truncated_normal":
            return _truncated_normal(keys, *self._bins(data), alpha, sigma)
        noise = _uniform(keys, self.shape) if self.has_bins else None
        log_density = jnp.full(len(data), self._log_density(), jnp.float32)
        return Dequantized(self.to_model(data, noise), log_density)

    def log_decoded(self, data: Array, mean: Array, std: Array) -> Array:
        """log P of items (B, *shape) whose value in the model's units is N(mean, std^2 I), nats,
        float32 (B,). For spaces with bins that training does not spread the data over."""
        raise NotImplementedError(f"{type(self).__name__} spreads its data over their bins")

    @abstractmethod
    def check(self, data: ArrayLike) -> np.ndarray:
        """The data as an array; ValueError for data of another kind."""

    @abstractmethod
    def to_model(self, data: Array, noise: Array | None = None) -> Array:
        """Items (B, *shape) to float32 in the model's units; noise spreads them over the bins."""

    @abstractmethod
    def from_model(self, x: Array) -> Array:
        """Back to the data's units."""

    @abstractmethod
    def _bins(self, data: Array) -> tuple[Array, Array]:
        """The middles of the items' bins (B, *shape), and their widths, in the model's units."""

    @abstractmethod
    def _log_density(self) -> float:
        """What is subtracted from log p of an item that is uniform in its cell, or has none."""


@dataclass(frozen=True)
class Pixels(Space):
    """Images of integers.

    Attributes:
        shape: (H, W, C) of one image.
        levels: number of integer levels; pixels are 0 ... levels - 1.
        centered: the model sees [-1, 1] (VP, sub-VP) instead of [0, 1] (VE).
        dequantize: the model was trained on uniformly dequantized pixels, so its samples fill the
            bins.
    """

    shape: tuple[int, ...]
    levels: int
    centered: bool
    dequantize: bool

    def check(self, data: ArrayLike) -> np.ndarray:
        """The images as an array; ValueError for anything but uint8 (n, H, W, C) of the levels."""
        images = np.asarray(data)
        if images.dtype != np.uint8 or images.shape[1:] != self.shape or not len(images):
            raise ValueError(
                f"images are {images.dtype} {images.shape}: allowed are uint8 "
                f"(n, {', '.join(map(str, self.shape))}) with n of at least 1"
            )
        if images.max() >= self.levels:
            raise ValueError(f"images reach {images.max()}: allowed are 0 to {self.levels - 1}")
        return images

    def to_model(self, data: Array, noise: Array | None = None) -> Array:
        """Integer images (B, H, W, C) to float32 in the model's range.

        Args:
            data: uint8, values 0 ... levels - 1.
            noise: uniform in [0, 1) of the same shape for dequantized pixels; None scales them as
                they are.
        """
        pixels = data.astype(jnp.float32)
        unit = pixels / (self.levels - 1) if noise is None else (pixels + noise) / self.levels
        return 2.0 * unit - 1.0 if self.centered else unit

    def flipped(self, key: Array, data: Array) -> Array:
        """Images (B, H, W, C), of which each is mirrored left to right with probability 1/2."""
        mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (len(data), 1, 1, 1))
        return jnp.where(mirrored, data[:, :, ::-1], data)

    def from_model(self, x: Array) -> Array:
        """Samples in the model's range to uint8 pixels 0 ... levels - 1."""
        unit = 0.5 * (x + 1.0) if self.centered else x
        top = self.levels - 1
        pixels = jnp.floor(unit * self.levels) if self.dequantize else jnp.round(unit * top)
        return jnp.clip(pixels, 0, top).astype(jnp.uint8)

    def log_decoded(self, data: Array, mean: Array, std: Array) -> Array:
        """The first bin and the last are open (Ho et al. 2020, arXiv:2006.11239, eq. 13)."""
        middles, width = self._bins(data)
        low = jnp.where(data == 0, -jnp.inf, (middles - 0.5 * width - mean) / std)
        high = jnp.where(data == self.levels - 1, jnp.inf, (middles + 0.5 * width - mean) / std)
        # On the side where the distribution function is small, so that it does not round to 1.
        is_above = low > 0.0
        low, high = jnp.where(is_above, -high, low), jnp.where(is_above, -low, high)
        below, up_to = log_ndtr(low), log_ndtr(high)
        log_p = up_to + jnp.log1p(-jnp.exp(below - up_to))
        return jnp.sum(log_p.reshape(len(data), -1), axis=1)

    @property
    def _scale(self) -> float:
        return 2.0 if self.centered else 1.0

    def _bins(self, data: Array) -> tuple[Array, Array]:
        if self.dequantize:
            middles, bins = self.to_model(data, jnp.full(data.shape, 0.5, jnp.float32)), self.levels
        else:
            middles, bins = self.to_model(data), self.levels - 1
        return middles, jnp.float32(self._scale / bins)

    def _log_density(self) -> float:
        return -math.prod(self.shape) * math.log(self._scale / self.levels)


@dataclass(frozen=True)
class Vectors(Space):
    """Rows of floating-point columns, standardised for the model.

    Attributes:
        mean: of each column of the training data, in the data's units.
        std: their standard deviations, likewise; positive.
        bin_width: for values that were rounded or counted, the width of the bins that they stand
            for, in the data's units: a positive number for each column, or one for all. None for
            continuous data.

    Raises:
        ValueError: lengths that differ, or a number that is not finite or not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bin_width: tuple[float, ...] | float | None = None

    def __post_init__(self) -> None:
        # As tuples of Python's numbers, so that equal spaces are equal, hashable objects.
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        ok = bool(self.mean) and bool(np.isfinite(self.mean).all())
        require(ok, "mean", self.mean, "finite numbers, one for each column")
        object.__setattr__(self, "std", _positive("std", self.std, len(self.mean)))
        if self.bin_width is not None:
            widths = _positive("bin_width", self.bin_width, len(self.mean))
            object.__setattr__(self, "bin_width", widths)

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (len(self.mean),)

    @property
    def has_bins(self) -> bool:
        """Whether items are discrete, so that they have probabilities."""
        return self.bin_width is not None

    @property
    def dequantize(self) -> bool:
        """Whether training spreads the values over their bins."""
        return self.has_bins

    def check(self, data: ArrayLike) -> np.ndarray:
        """The vectors as float32 (n, D); ValueError for other shapes, for text, objects and complex
        numbers, and for numbers that are not finite in float32."""
        vectors = np.asarray(data)
        if vectors.dtype.kind not in "fiu" or vectors.shape[1:] != self.shape or not len(vectors):
            raise ValueError(
                f"vectors are {vectors.dtype} {vectors.shape}: allowed are numbers "
                f"(n, {len(self.mean)}) with n of at least 1"
            )
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError("vectors: allowed are numbers that are finite in float32")
        return vectors

    def to_model(self, data: Array, noise: Array | None = None) -> Array:
        """Vectors (B, D) in the data's units to float32 (B, D) in the model's.

        Args:
            data: float32.
            noise: uniform in [0, 1) of the same shape spreads the values over their bins; None
                takes them as they are.
        """
        x = (data.astype(jnp.float32) - _row(self.mean)) / _row(self.std)
        return x if noise is None else x + (noise - 0.5) * _row(self._widths)

    def from_model(self, x: Array) -> Array:
        """Vectors (..., D) of the model in the data's units, float32. Values with bins are not
        rounded: a width does not say where the bins lie."""
        rows = x.reshape(-1, len(self.mean)) * _row(self.std) + _row(self.mean)
        return rows.reshape(x.shape)

    def _bins(self, data: Array) -> tuple[Array, Array]:
        return self.to_model(data), jnp.asarray(self._widths, jnp.float32)

    def _log_density(self) -> float:
        volumes = [1.0 / width for width in self._widths] if self.has_bins else self.std
        return sum(map(math.log, volumes))

    @property
    def _widths(self) -> tuple[float, ...]:
        """The bins' widths in the model's units."""
        if not isinstance(self.bin_width, tuple):
            raise ValueError("noise spreads over bins, and these vectors have none (bin_width)")
        return tuple(width / std for width, std in zip(self.bin_width, self.std, strict=True))


def bits_per_dim(log_prob: Array, dims: int) -> Array:
    """Bits per dimension from nats of log P (or a bound of it) of discrete data of D dimensions."""
    return -log_prob / (dims * math.log(2.0))


def _positive(name: str, values: Sequence[float] | float, number: int) -> tuple[float, ...]:
    numbers = np.asarray(values, np.float64).ravel()
    row = tuple(np.broadcast_to(numbers, number).tolist()) if len(numbers) in (1, number) else ()
    ok = bool(row) and all(0 < value < math.inf for value in row)
    require(ok, name, values, f"positive numbers, one for each of {number} columns")
    return row


def _row(values: Sequence[float]) -> Array:
    """Constants of the columns as float32 (1, D)."""
    return jnp.asarray([values], jnp.float32)


def _uniform(keys: Array, shape: tuple[int, ...]) -> Array:
    """Numbers in [0, 1), float32 (B, *shape), from a key for each item."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def _truncated_normal(
    keys: Array, middles: Array, width: Array, alpha: Array | float, sigma: Array | float
) -> Dequantized:
    """The process's own noise at t_min, truncated to the bins (see the module's docstring).

    Args:
        keys: one for each item, (B,).
        middles: of the bins in the model's units, (B, *shape).
        width: of the bins, () or one for each column, (D,).
        alpha: factor of the data at t_min, ().
        sigma: standard deviation of the noise at t_min, ().
    """
    shape = middles.shape[1:]
    tau = 0.5 * alpha * width / sigma
    inside = jax.lax.erf(tau / math.sqrt(2.0))  # Z
    # By the inverse distribution function of a uniform number above -1 and below 1: at the ends
    # themselves z would be infinite where Z is 1 up to rounding.
    least = -1.0 + 2.0**-24

    def truncated(key: Array) -> Array:
        u = jax.random.uniform(key, shape, jnp.float32, least, 1.0)
        return math.sqrt(2.0) * jax.lax.erf_inv(inside * u)

    z = jax.vmap(truncated)(keys)
    log_phi = -0.5 * jnp.sum(jnp.square(z).reshape(len(z), -1), axis=1)
    rest = math.prod(shape) * (jnp.mean(jnp.log(sigma * inside)) + 0.5 * math.log(2.0 * math.pi))
    return Dequantized(alpha * middles + sigma * z, log_phi - rest)
