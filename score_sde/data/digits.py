"""The handwritten digits that scikit-learn brings along: 1797 images of 8x8, no download.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part):
32x32 bitmaps whose 4x4 blocks were counted, so that a pixel has one of the 17 values 0 … 16.
"""

import numpy as np

from score_sde.data.info import Arrays, DatasetInfo

INFO = DatasetInfo("digits", (8, 8, 1), 17, 10, {"train": 1500, "test": 297})


def load(split: str, data_dir: str | None = None) -> Arrays:
    """The digits' `split`, as `score_sde.data.load` describes it; `data_dir` is not used.

    scikit-learn has one list of 1797. The split is fixed once for all, so that figures compare.
    The last 297 of a permutation of seed 0 are the test set.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    held_out = INFO.splits["test"]
    chosen = order[-held_out:] if split == "test" else order[:-held_out]
    images = bunch.images[chosen].astype(np.uint8)  # whole numbers, stored as float64
    labels = bunch.target[chosen].astype(np.int32)
    return Arrays(images[..., np.newaxis], {"labels": labels})
