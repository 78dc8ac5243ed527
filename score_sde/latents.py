"""The latents of a run's data by the probability flow, and what lies between them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import build
from score_sde.batches import joined
from score_sde.data import DatasetInfo
from score_sde.display import THUMBNAILS, as_pictures, form, mean, shown
from score_sde.errors import require
from score_sde.samplers.ode import slerp
from score_sde.score import Model
from score_sde.sde import SDE
from score_sde.spaces import Space, item_keys


@shown
class Interpolation(NamedTuple):
    """What lies between n pairs of items, as numpy arrays.

    Attributes:
        x: (n, num + 2, *shape) in the data's units; the first and last of each row are the pair
            itself, there and back.
        latents: of the pairs, float32 (n, 2, *shape).
        nfe: evaluations of the score for each item, int32: (n, num + 4), the pair's encoding
            first, then its row's decoding.
        rms: root mean square of what there and back changes in each item of a pair, in the model's
            units, float32 (n, 2).
        levels: of images, whose values are 0 ... levels - 1; None for vectors, and in a batch.
    """

    x: np.ndarray
    latents: np.ndarray
    nfe: np.ndarray
    rms: np.ndarray
    levels: int | None = None

    @property
    def images(self) -> np.ndarray:
        """x, by the name that suits images."""
        return self.x

    def _facts(self) -> dict[str, str]:
        n, row = self.x.shape[:2]
        facts = {"pairs": f"{n}", "between": f"{row - 2}", "x": form(self.x)}
        return facts | {"NFE": mean(self.nfe), "RMS change there and back": mean(self.rms)}

    def _pictures(self) -> tuple[Any, int, int] | None:
        """A row for each pair, as many as there is room for."""
        row = self.x.shape[1]
        pairs = self.x[: max(1, THUMBNAILS // row)]
        found = as_pictures(pairs.reshape(-1, *self.x.shape[2:]), self.levels or 256)
        return found and (*found, row)


@dataclass(frozen=True)
class Latents:
    """The way of a run's data to their latents and back.

    Attributes:
        config: the run's.
        info: the data's facts.
        sde: the process.
        score: smooth in t.
        space: where the data live.
        in_batches: `Run.in_batches` with the sizes of sampling.
    """

    config: ConfigDict = field(repr=False)
    info: DatasetInfo = field(repr=False)
    sde: SDE
    score: Model
    space: Space
    in_batches: Callable[..., Iterator[Any]] = field(repr=False)

    def to_model(self, key: Array, data: np.ndarray) -> np.ndarray:
        """Return items as the model was trained on them: dequantized, or as they are."""
        items = jnp.asarray(data)
        if not self.space.dequantize:
            return np.asarray(self.space.to_model(items))
        keys = item_keys(key, len(data))
        return np.asarray(self.space.dequantized(keys, items, "uniform", 1.0, 1.0).x)

    def flow(
        self, x: np.ndarray, condition: Mapping[str, ArrayLike], *, back: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take states (n, *shape) from t_min to T, or back; also return the evaluations (n,)."""
        build.check_score(self.config, "the probability flow")
        chosen = build.probability_flow(self.config)
        with build.errors_of("sde"):
            self.sde.check_flow(self.score)
        follow = chosen.decode if back else chosen.encode

        def carry(part: tuple[Array, dict[str, Array]], _: int) -> tuple[Array, Array]:
            end = follow(self.sde, self.score.given(part[1]), part[0])
            return end.x, end.nfe

        given = build.checked_condition(self.config, self.info, len(x), condition)
        return joined(self.in_batches(carry, (x, given), len(x)))

    def interpolation_batches(
        self,
        key: Array,
        first: ArrayLike,
        second: ArrayLike,
        num: int,
        condition: Mapping[str, ArrayLike],
        *,
        begin: int = 0,
    ) -> Iterator[Interpolation]:
        """As `Run.interpolate`, as many pairs at a time as `sampling.batch_size` has room for. The
        first is that of index `begin`."""
        pairs = [self.space.check(items) for items in (first, second)]
        n = len(pairs[0])
        require(num >= 1, "num", num, "integers of at least 1")
        if len(pairs[1]) != n:
            raise ValueError(f"{n} and {len(pairs[1])} items: allowed are as many second as first")
        given = build.checked_condition(self.config, self.info, n, condition)
        x0 = np.stack(pairs, axis=1)
        x0 = self.to_model(key, x0.reshape(-1, *self.space.shape)).reshape(x0.shape)
        room = max(1, self.config.sampling.batch_size // (num + 2))
        for index in range(begin, n, room):
            part = slice(index, index + room)
            yield self._between(x0[part], {name: rows[part] for name, rows in given.items()}, num)

    def _between(self, pairs: np.ndarray, given: dict[str, np.ndarray], num: int) -> Interpolation:
        latents, there = self._rows(pairs, given, back=False)
        ends, weights = jnp.asarray(latents), jnp.linspace(0.0, 1.0, num + 2)
        x, nfe = self._rows(np.asarray(slerp(ends[:, 0], ends[:, 1], weights)), given, back=True)
        change = np.square(x[:, [0, -1]] - pairs).reshape(len(pairs), 2, -1).mean(axis=2)
        data = np.asarray(self.space.from_model(jnp.asarray(x)))
        return Interpolation(data, latents, np.concatenate([there, nfe], axis=1), np.sqrt(change))

    def _rows(
        self, x: np.ndarray, given: dict[str, np.ndarray], *, back: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `flow`, for rows of states (n, row, *shape) with a condition for each row."""
        n, row = x.shape[:2]
        each = {name: np.repeat(array, row, axis=0) for name, array in given.items()}
        ends, nfe = self.flow(x.reshape(-1, *x.shape[2:]), each, back=back)
        return ends.reshape(x.shape), nfe.reshape(n, row)
