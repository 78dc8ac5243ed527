"""`--mode data`: a look at the data before training."""

import hashlib
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde import build, data, evaluation, pictures, rules, scoring
from score_sde.config import changed, flat, refuse, resolve, takes
from score_sde.data import Arrays, DatasetInfo, Streamed
from score_sde.data.streamed import at_once
from score_sde.errors import UserError
from score_sde.modes import start
from score_sde.networks import NETWORKS
from score_sde.paths import local, move_aside
from score_sde.schema import SCHEMA

PICTURE = "data.png"
SHEET, LARGE_SHEET = 64, 16  # images, and those of sides beyond
LARGE = 128  # pixels
MOST_PIXELS = 64**2  # of a size that is proposed
PAIRED, PAIRED_BYTES = 2000, 2**28  # items whose distances are all taken, and their room
SHOWN = 20  # classes, columns or files in a list


def run(config: ConfigDict, workdir: Path, output: Path) -> None:
    """Print what the data are and which config lines suit them; write `data.png` into the
    output, and `eval.statistics` where it names a file."""
    target = config.eval.statistics and local(config.eval.statistics, "config.eval.statistics")
    if target:
        _check_target(target)
    config, sizes = _with_size(config)
    info = build.dataset(config)
    whole = {split: build.arrays(config, info, split) for split in ("train", "test")}
    splits = {split: _some(arrays) for split, arrays in whole.items()}
    train = splits["train"]
    kind = "images" if info.levels else "vectors"
    shape = " x ".join(map(str, info.shape))
    counts = ", ".join(f"{count} {split}" for split, count in info.splits.items())
    print(f"data: {kind} {shape} of {info.name}: {counts}")
    if len(train.x) < info.splits["train"]:
        print(f"looked at: {len(train.x)} training items at random, as the set is streamed")
    labels = whole["train"].condition.get("labels")
    part = isinstance(labels, Streamed)  # too many to be read
    classes = _classes(info, train.condition["labels"] if part else labels, part)
    for line in (*sizes, *classes, *_moments(config, info, train.x)):
        print(line)
    if info.further:
        print(f"further arrays: {', '.join(info.further)}; data.condition may name them")
    rows = train.x[_rows(train.x)]
    space: Any = build.space(config, info)  # which takes numpy's arrays too
    largest = largest_distance(np.asarray(space.to_model(rows)))
    of = f"the pairs of {len(rows)} of them, at least"
    of = "all pairs" if len(rows) == info.splits["train"] else of
    print(f"largest pairwise distance: {largest:.4g} in the model's units ({of})")
    print(_repeated(whole, splits))
    for line in info.skipped[:SHOWN]:
        print(f"left out: {line}")
    if len(info.skipped) > SHOWN:
        print(f"left out: {len(info.skipped) - SHOWN} more")
    path = output / PICTURE
    _picture(path, info, train.x)
    print(f"picture: {path}")
    proposed = _proposed(config, info, largest)
    try:
        rules.check(changed(config, proposed), info)
    except UserError as error:  # of a setting that the data say nothing about
        print(f"note: training with this preset is refused: {error}")
    print("\nconfig lines for --mode train with this preset:\n")
    print(" \\\n".join(f"  {shlex.quote(f'--config.{k}={v}')}" for k, v in proposed.items()))
    if target:
        _write_statistics(config, info, whole["train"], output, target)


def _check_target(path: Path) -> None:
    """Refuse a file that cannot be written before hours of work are spent on it."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise refuse("eval.statistics", str(path), "files that can be written")
    if path.exists():
        evaluation.read_statistics(path)  # what else it may be is not replaced


def _write_statistics(
    config: ConfigDict, info: DatasetInfo, train: Arrays, output: Path, path: Path
) -> None:
    """Write mean and covariance of the training split's features, which stay in the output: the
    same command goes on after an interruption."""
    if info.levels is None:
        raise refuse("eval.statistics", str(path), f"'', as {info.name} are vectors")
    start(config.eval.batch_size)
    made_by = scoring.extractor(config, info, (output,), train)
    images = scoring.training_split(config, info, train.x)
    about = {"set": info.name, "split": "train", "n": len(images)}
    if info.digest:  # of a user's own files; any folder is named the same
        about["digest"] = info.digest
    settings = output / scoring.FOLDER, config.eval.batch_size, about
    if path.exists() and evaluation.read_statistics(path).about != {**about, **made_by.about}:
        move_aside([path], "of another set")
    scoring.statistics(made_by, scoring.features(made_by, images, *settings), about, path)
    said = ", ".join(f"{key} {value}" for key, value in {**about, **made_by.about}.items())
    print(f"statistics: {path}: {said}")


def largest_distance(x: np.ndarray) -> float:
    """The largest Euclidean distance between two rows of x (n, …): what Song and Ermon 2020
    (arXiv:2006.09011, technique 1) take for sigma_max."""
    flat_rows = x.reshape(len(x), -1).astype(np.float32)
    flat_rows = flat_rows - flat_rows.mean(axis=0)  # differences of small numbers lose less
    squares = np.square(flat_rows).sum(axis=1)
    best = 0.0
    for begin in range(0, len(x), 256):
        part = slice(begin, begin + 256)
        products = flat_rows[part] @ flat_rows.T
        best = max(best, float((squares[part, None] + squares - 2.0 * products).max()))
    return math.sqrt(best)


def _with_size(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """The config, with a size for files of images where it has none, and what sizes they have."""
    known = resolve("data.name", config.data.name)
    if not known.files or config.data.image_size:
        return config, []
    there = data.image_sizes(known, config.data.dir)
    height, width = np.median(list(there.elements()) or [(32, 32)], axis=0).tolist()
    size = proposed_size(height, width)
    if len(there) == 1 and height * width <= MOST_PIXELS:
        size = next(iter(there))
    often = ", ".join(f"{each} {count} times" for each, count in there.most_common(3))
    line = (
        f"files: {there.total()} images of {len(there)} sizes (height, width), most often {often}"
    )
    both = size[0] if len(set(size)) == 1 else size
    return changed(config, {"data.image_size": both}), [line]


def proposed_size(height: float, width: float) -> tuple[int, int]:
    """A height and width near those of images: multiples of 8, so that the network can halve them,
    and about 64 x 64 pixels at most, as larger ones want larger networks."""
    scale = min(1.0, math.sqrt(MOST_PIXELS / (height * width)))
    first, second = (max(8, 8 * round(scale * side / 8)) for side in (height, width))
    return first, second


def _classes(info: DatasetInfo, labels: Any, part: bool) -> Iterator[str]:
    if not info.num_classes:
        yield "classes: none"
        return
    names = info.classes or tuple(map(str, range(info.num_classes)))
    counts = np.bincount(labels, minlength=info.num_classes)
    shown = ", ".join(f"{n} ({c})" for n, c in zip(names[:SHOWN], counts[:SHOWN], strict=True))
    more = ", …" if len(names) > SHOWN else ""
    items = "of the items looked at" if part else "training items"
    yield f"classes: {len(names)}, with so many {items}: {shown}{more}"


def _moments(config: ConfigDict, info: DatasetInfo, x: np.ndarray) -> Iterator[str]:
    """Mean and standard deviation of each channel or column, and sigma_data."""
    if info.levels is None:
        for name, mean, std in list(zip(info.columns, info.mean, info.std, strict=True))[:SHOWN]:
            yield f"column {name}: mean {mean:.4g}, standard deviation {std:.4g}"
        yield "sigma_data: 1, as each column is standardised"
        return
    values, many = np.arange(info.levels), at_once(math.prod(x.shape[1:]))
    parts = (x[begin : begin + many] for begin in range(0, len(x), many))  # counting takes room
    channels = range(x.shape[-1])
    counts: Any = sum(
        np.stack([np.bincount(part[..., c].ravel(), minlength=info.levels) for c in channels])
        for part in parts
    )
    shares = counts / (x.size / x.shape[-1])
    means = shares @ values
    stds = np.sqrt(np.maximum(shares @ values**2 - means**2, 0.0))
    for index, (mean, std) in enumerate(zip(means, stds, strict=True)):
        top = info.levels - 1
        yield f"channel {index}: mean {mean:.4g}, standard deviation {std:.4g} (of 0 to {top})"
    all_channels = shares.mean(axis=0)
    spread = math.sqrt(max(all_channels @ values**2 - (all_channels @ values) ** 2, 0.0))
    reach = (2.0 if config.model.centered else 1.0) / (info.levels - 1)
    interval = "[-1, 1]" if config.model.centered else "[0, 1]"
    yield f"sigma_data: {spread * reach:.4g} in the model's units, {interval}"


def _some(arrays: Arrays) -> Arrays:
    """A split, or as much of a streamed one as is looked at."""
    x: Any = arrays.x
    rows = _rows(x) if isinstance(x, Streamed) else slice(None)
    return Arrays(x[rows], {name: array[rows] for name, array in arrays.condition.items()})


def _rows(x: Any) -> Any:
    """All items, or as many at random as there is time and room for their distances."""
    most = max(2, min(PAIRED, PAIRED_BYTES // (4 * math.prod(x.shape[1:]))))
    if len(x) <= most:
        return slice(None)
    return np.sort(np.random.default_rng(0).choice(len(x), most, replace=False))


def _repeated(whole: dict[str, Arrays], splits: dict[str, Arrays]) -> str:
    """How many items are copies of others, bit by bit. Those of a stream by their files' digests,
    else as many as were looked at."""
    found, basis = {}, ""
    for split, arrays in whole.items():
        x: Any = arrays.x
        if isinstance(x, Streamed) and x.digests is not None:
            found[split], basis = x.digests[x.rows].tolist(), ", by the bytes of their files"
            continue
        rows = splits[split].x
        found[split] = [hashlib.blake2b(row.tobytes()).digest() for row in rows]
        basis = ", of the items looked at" if len(rows) < len(x) else basis
    seen = set(found["train"])
    again, leaked = len(found["train"]) - len(seen), sum(each in seen for each in found["test"])
    return (
        f"exact duplicates: {again} training items repeat another, {leaked} test items are among "
        f"the training items{basis}"
    )


def _picture(path: Path, info: DatasetInfo, x: np.ndarray) -> None:
    if info.levels is None:
        pictures.save_scatter(path, {"data": x}, None, info.columns, keep=True)
        return
    number = min(len(x), SHEET if max(info.shape[:2]) <= LARGE else LARGE_SHEET)
    shown = np.sort(np.random.default_rng(0).choice(len(x), number, replace=False))
    pictures.save_png(path, x[shown], info.levels, keep=True)


def _proposed(config: ConfigDict, info: DatasetInfo, largest: float) -> dict[str, Any]:
    """The data's keys, and those of other sections that have to fit them."""
    values = flat(config)
    found = {
        key: value
        for key, value in values.items()
        if key.startswith("data.") and (key == "data.name" or value != SCHEMA[key].default)
    }
    rank = len(info.shape)
    if getattr(build.network_class(config), "rank", rank) != rank:
        found["model.name"] = next(
            name for name, make in NETWORKS.items() if getattr(make, "rank", 0) == rank
        )
    if found.get("model.name", values["model.name"]) == "unet":
        found |= _levels(config, info)
    if info.num_classes:
        found["model.class_conditional"] = True
    if "sigma_max" in takes(resolve("sde.name", config.sde.name)):
        found["sde.sigma_max"] = float(f"{1.005 * largest:.3g}")  # rounded up
    if info.splits["train"] < config.training.batch_size:
        found["training.batch_size"] = 2 ** int(math.log2(info.splits["train"]))
    return found


def _levels(config: ConfigDict, info: DatasetInfo) -> dict[str, Any]:
    """The U-Net's levels and attention, where the config's do not go with the images' size."""
    both, found = info.shape[0] | info.shape[1], {}
    multipliers, attends = config.model.multipliers, config.model.attention_resolutions
    most = (both & -both).bit_length()
    if len(multipliers) > most:
        multipliers = found["model.multipliers"] = multipliers[:most]
    sizes = [min(info.shape[:2]) // 2**level for level in range(len(multipliers))]
    if not set(attends) <= set(sizes):
        found["model.attention_resolutions"] = (sizes[-1],) if sizes[-1] <= 32 else ()
    return found
