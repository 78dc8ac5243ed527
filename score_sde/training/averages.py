"""The averages of a run whose length is chosen after the training: written at intervals, and read
as that of a length (`powers`)."""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from score_sde.errors import UserError
from score_sde.training.checkpoints import Checkpoints, newest_step, restore_ema, steps
from score_sde.training.mesh import placed
from score_sde.training.powers import LENGTHS, LONGEST, MISFIT, combination
from score_sde.training.state import TrainState

PyTree = Any

FOLDER = "averages"  # of a workdir, with a checkpoint of both averages for each interval


def keeper(folder: Path) -> Callable[[int, TrainState], None]:
    """Return a hook for the loop, which writes the averages. After a resumption steps are made
    again whose averages are there already."""

    def keep(step: int, state: TrainState) -> None:
        if newest_step(folder) < step:
            with Checkpoints(folder, keep=None) as kept:
                kept.save({"powers": state.powers, "step": state.step}, step)

    return keep


def restore(
    checkpoints: Path,
    folder: Path,
    params: PyTree,
    length: float,
    sharding: Sharding,
    step: int | None = None,
) -> tuple[int, PyTree]:
    """The step of a checkpoint, and the average of a length after it; writes nothing.

    Args:
        checkpoints: the run's; they have the averages at their own step.
        folder: of the averages written before.
        params: a tree of the shapes and dtypes.
        length: as of `combination`.
        sharding: where every leaf goes.
        step: of the checkpoint; by default the newest that can be read.

    Raises:
        UserError: as `restore_ema`, or a length that the averages do not give.
    """
    wanted = (params,) * len(LENGTHS)
    step, last = restore_ema(checkpoints, wanted, sharding, step, name="powers")
    written = [*(each for each in steps(folder) if each < step), step]
    weights, misfit = combination(written, length)
    if misfit > MISFIT:
        lengths = [number / 100 for number in range(1, round(100 * LONGEST) + 1)]
        fit = [each for each in lengths if combination(written, each)[1] <= MISFIT]
        raise UserError(
            f"config.sampling.average = {length}: allowed are 0, {fit[0]} to {fit[-1]} with the "
            f"averages of {len(written)} steps, up to {step}"
        )

    def powers() -> Iterator[PyTree]:
        for earlier in written[:-1]:
            yield from restore_ema(folder, wanted, sharding, earlier, name="powers")[1]
        yield from last

    def plus(total: PyTree, weighted: tuple[np.float64, PyTree]) -> PyTree:
        weight, power = weighted
        return jax.tree.map(lambda sums, leaf: sums + weight * np.asarray(leaf), total, power)

    nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)  # float64
    total = reduce(plus, zip(weights, powers(), strict=True), nothing)
    return step, placed(jax.tree.map(lambda leaf: leaf.astype(np.float32), total), sharding)
