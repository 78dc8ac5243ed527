"""Point clouds that scikit-learn draws: two moons (D = 2) and the Swiss roll (D = 3)."""

import numpy as np

from score_sde.data.info import Arrays, DatasetInfo

_SPLITS = {"train": 8000, "test": 2000}
MOONS = DatasetInfo("moons", (2,), None, 2, _SPLITS, columns=("x", "y"))
SWISS_ROLL = DatasetInfo("swiss_roll", (3,), None, 0, _SPLITS, columns=("x", "y", "z"))


def load_moons(split: str, data_dir: str | None = None) -> Arrays:
    """Two half circles of radius 1 with normal noise of standard deviation 0.1; the moons are the
    two classes. Always the same points; `data_dir` is not used."""
    from sklearn.datasets import make_moons

    x, labels = make_moons(sum(_SPLITS.values()), noise=0.1, random_state=0)
    rows = _rows(split)
    return Arrays(x[rows].astype(np.float32), {"labels": labels[rows].astype(np.int32)})


def load_swiss_roll(split: str, data_dir: str | None = None) -> Arrays:
    """A rolled sheet (Marsland 2009, chapter 6) with normal noise of standard deviation 0.5. Always
    the same points; `data_dir` is not used."""
    from sklearn.datasets import make_swiss_roll

    x, _ = make_swiss_roll(sum(_SPLITS.values()), noise=0.5, random_state=0)
    return Arrays(x[_rows(split)].astype(np.float32), {})


def _rows(split: str) -> slice:
    train = _SPLITS["train"]
    return slice(train, None) if split == "test" else slice(train)
