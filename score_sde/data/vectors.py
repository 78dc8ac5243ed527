"""Columns that are conditions, and the constants that standardise vectors and conditions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from score_sde.data.info import Arrays, DatasetInfo
from score_sde.errors import UserError


def complete(
    info: DatasetInfo,
    train: Arrays,
    condition: tuple[str | int, ...],
    bin_width: float | Sequence[float] | None,
) -> DatasetInfo:
    """`info` with the columns' constants, and with the condition's columns apart.

    Args:
      info: of all columns.
      train: the training split, before columns are taken out.
      condition: names or indices of columns of vectors, or names of further arrays.
      bin_width: of each of the other columns, or one for all; None for continuous values.

    Raises:
      UserError: one line: a column that is unknown, named twice or constant; no column left; widths
        that are not positive or of another number.
    """
    found = _columns(train, info)
    taken = [name for column in condition for name in _named(column, found, info, condition)]
    kept = [name for name in info.columns if name not in taken]
    if len(set(taken)) < len(taken) or (info.columns and not kept):
        raise UserError(
            f"config.data.condition = {condition}: allowed are different columns, and not all of "
            f"{', '.join(info.columns)}"
        )
    names = [*info.columns, *(name for name in taken if name not in info.columns)]
    wide = np.stack([found[name] for name in names], axis=1).astype(np.float64, order="C")
    with np.errstate(invalid="ignore"):  # of numbers that are not finite, which are refused below
        both = wide.mean(axis=0), wide.std(axis=0)
    mean, std = (dict(zip(names, each.tolist(), strict=True)) for each in both)
    for name in names:
        # Below, float32 has fewer than some ten values within a standard deviation.
        if not std[name] > 1e-6 * abs(mean[name]):
            raise UserError(
                f"config.data.name: column {name} of {info.name} is constant in float32, or not "
                f"finite (mean {mean[name]:g}, standard deviation {std[name]:g}); leave it out"
            )
    return dataclasses.replace(
        info,
        shape=(len(kept),) if info.columns else info.shape,
        columns=tuple(kept),
        mean=tuple(mean[name] for name in kept),
        std=tuple(std[name] for name in kept),
        bin_width=None if bin_width is None else _widths(bin_width, kept),
        condition=tuple(taken),
        condition_mean=tuple(mean[name] for name in taken),
        condition_std=tuple(std[name] for name in taken),
    )


def separated(arrays: Arrays, own: DatasetInfo, info: DatasetInfo) -> Arrays:
    """A split with the condition's columns taken out and standardised, and without further arrays.

    Args:
      arrays: all columns.
      own: of the files as they are.
      info: of the run.

    Raises:
      UserError: one line: the files' columns are not the run's.
    """
    found = _columns(arrays, own)
    both = {*info.columns, *info.condition}
    if not set(own.columns) <= both or not both <= found.keys():
        raise UserError(
            f"config.data.name: {own.name} has the columns {', '.join(found)}; the run's are "
            f"{', '.join((*info.columns, *info.condition))}"
        )
    condition = {name: each for name, each in arrays.condition.items() if name == "labels"}
    if info.condition:
        rows = np.stack([found[name] for name in info.condition], axis=1)
        condition["vector"] = info.standardised(rows)
    if info.columns == own.columns:
        return Arrays(arrays.x, condition)
    x = np.stack([found[name] for name in info.columns], axis=1)
    return Arrays(np.ascontiguousarray(x), condition)


def _columns(arrays: Arrays, info: DatasetInfo) -> dict[str, np.ndarray]:
    """Each column by its name: those of vectors, then `NAME` or `NAME[0]`, `NAME[1]`, … of further
    arrays."""
    found = dict(zip(info.columns, arrays.x.T, strict=True)) if info.columns else {}
    for name, array in arrays.condition.items():
        if name != "labels":
            several = array.ndim > 1
            parts = {f"{name}[{i}]": array[:, i] for i in range(array.shape[1])} if several else {}
            for part, column in (parts or {name: array}).items():
                found.setdefault(part, column)
    return found


def _widths(bin_width: float | Sequence[float], columns: Sequence[str]) -> tuple[float, ...]:
    given = np.asarray(bin_width, np.float64).ravel()
    widths = given if len(given) == len(columns) else np.repeat(given, len(columns))
    if len(widths) != len(columns) or not ((widths > 0) & np.isfinite(widths)).all():
        raise UserError(
            f"config.data.bin_width = {bin_width}: allowed are positive numbers, one for all "
            f"columns or one for each of {', '.join(columns)}"
        )
    return tuple(widths.tolist())


def _named(
    column: str | int,
    found: dict[str, np.ndarray],
    info: DatasetInfo,
    condition: tuple[str | int, ...],
) -> list[str]:
    """The columns that a name or else an index stands for: one, or all of a further array."""
    if str(column) in found:
        return [str(column)]
    if several := [name for name in found if name.startswith(f"{column}[")]:
        return several
    if str(column).isdecimal() and int(column) < len(info.columns):
        return [info.columns[int(column)]]
    there = ", ".join(found) or "none"
    indices = f", and indices from 0 to {len(info.columns) - 1}" if info.columns else ""
    raise UserError(
        f"config.data.condition = {condition}: no column {column}; allowed are {there}{indices}"
    )
