"""Columns of vectors: which of them are conditions, and the constants that standardise them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from score_sde.data.info import Arrays, DatasetInfo
from score_sde.errors import UserError


def complete(
    info: DatasetInfo,
    train: np.ndarray,
    condition: tuple[str | int, ...],
    bin_width: float | Sequence[float] | None,
) -> DatasetInfo:
    """`info` with the columns' constants, and with the condition's columns apart.

    Args:
      info: of all columns.
      train: the training split, float32 (N, D).
      condition: names or indices of columns.
      bin_width: of each of the other columns, or one for all; None for continuous values.

    Raises:
      UserError: one line: a column that is unknown, named twice or constant; no column left; widths
        that are not positive or of another number.
    """
    taken = [_index(column, info.columns, condition) for column in condition]
    kept = [index for index in range(len(info.columns)) if index not in taken]
    if len(set(taken)) < len(taken) or not kept:
        raise UserError(
            f"config.data.condition = {condition}: allowed are different columns, and not all of "
            f"{', '.join(info.columns)}"
        )
    wide = train.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    for index, name in enumerate(info.columns):
        # Below, float32 has fewer than some ten values within a standard deviation.
        if not std[index] > 1e-6 * abs(mean[index]):
            raise UserError(
                f"config.data.name: column {name} of {info.name} is constant in float32 "
                f"(mean {mean[index]:g}, standard deviation {std[index]:g}); leave it out"
            )
    rest = [info.columns[index] for index in kept]
    return dataclasses.replace(
        info,
        shape=(len(kept),),
        columns=tuple(rest),
        mean=tuple(mean[kept].tolist()),
        std=tuple(std[kept].tolist()),
        bin_width=None if bin_width is None else _widths(bin_width, rest),
        condition=tuple(info.columns[index] for index in taken),
        condition_mean=tuple(mean[taken].tolist()),
        condition_std=tuple(std[taken].tolist()),
    )


def separated(arrays: Arrays, own: DatasetInfo, info: DatasetInfo) -> Arrays:
    """A split with the condition's columns taken out and standardised.

    Args:
      arrays: all columns.
      own: of the files as they are.
      info: of the run.

    Raises:
      UserError: one line: the files' columns are not the run's.
    """
    if set(own.columns) != {*info.columns, *info.condition}:
        raise UserError(
            f"config.data.name: {own.name} has the columns {', '.join(own.columns)}; the run's are "
            f"{', '.join((*info.columns, *info.condition))}"
        )
    if not info.condition:
        return arrays
    kept = [own.columns.index(name) for name in info.columns]
    taken = [own.columns.index(name) for name in info.condition]
    condition = {**arrays.condition, "vector": info.standardised(arrays.x[:, taken])}
    return Arrays(np.ascontiguousarray(arrays.x[:, kept]), condition)


def _widths(bin_width: float | Sequence[float], columns: Sequence[str]) -> tuple[float, ...]:
    given = np.asarray(bin_width, np.float64).ravel()
    widths = given if len(given) == len(columns) else np.repeat(given, len(columns))
    if len(widths) != len(columns) or not ((widths > 0) & np.isfinite(widths)).all():
        raise UserError(
            f"config.data.bin_width = {bin_width}: allowed are positive numbers, one for all "
            f"columns or one for each of {', '.join(columns)}"
        )
    return tuple(widths.tolist())


def _index(column: str | int, columns: tuple[str, ...], condition: tuple[str | int, ...]) -> int:
    """Where a column is, by its name or else its index."""
    if str(column) in columns:
        return columns.index(str(column))
    if str(column).isdecimal() and int(column) < len(columns):
        return int(column)
    raise UserError(
        f"config.data.condition = {condition}: no column {column}; allowed are "
        f"{', '.join(columns)}, and indices from 0 to {len(columns) - 1}"
    )
