"""Image sets as arrays in memory: `load(name, split, data_dir)`, and `INFO` about each of them.

Nothing here knows of models or configs, and importing it costs no more than numpy.
"""

from score_sde.data.info import INFO, Arrays, DatasetInfo, check
from score_sde.errors import UserError

__all__ = ["DATASETS", "INFO", "Arrays", "DatasetInfo", "load"]

DATASETS = INFO


def load(name: str, split: str, data_dir: str | None = None) -> Arrays:
    """Reads a whole split; where it has to, downloads it first.

    Args:
      name: a key of `INFO`.
      split: `"train"` or `"test"`.
      data_dir: folder of the user's files, and of what is downloaded; None or "" for the default
        (`score_sde.data.sources.cache_folder`). `digits` needs none.

    Returns:
      `Arrays(images, labels)`: images uint8 (N, H, W, C) with values 0 … levels - 1, labels
      int32 (N,), in the data set's official order, N as `INFO[name].splits[split]` says.

    Raises:
      UserError: one line: an unknown name or split, a set that is only described, a damaged or
        foreign file, or a set that cannot be had, with the ways to get it.
    """
    # Imported here: `--help` needs INFO only, and no readers.
    from score_sde.data import cifar10, digits, fashion_mnist

    loaders = {"digits": digits.load, "cifar10": cifar10.load, "fashion_mnist": fashion_mnist.load}
    if name not in INFO:
        raise UserError(f"config.data.name: {name!r} is not one of {', '.join(loaders)}")
    if not INFO[name].readable:
        raise UserError(
            f"config.data.name = {name!r}: its images cannot be read, only its models can be used; "
            f"sets that can are {', '.join(loaders)}"
        )
    if split not in INFO[name].splits:
        raise UserError(f"split: {split!r} is not one of {', '.join(INFO[name].splits)}")
    arrays = loaders[name](split, data_dir)
    check(arrays, INFO[name], split)
    return arrays
