"""The built-in point clouds: what they hold, and that they stay the same."""

import numpy as np
import pytest
from sklearn.datasets import make_moons, make_swiss_roll

from score_sde.data import DATASETS, load


@pytest.mark.parametrize("name", ["moons", "swiss_roll"])
def test_the_splits_are_all_that_scikit_learn_draws(name):
    splits = [load(name, split) for split in ("train", "test")]
    assert [len(split.x) for split in splits] == [8000, 2000]
    x = np.concatenate([split.x for split in splits])
    if name == "moons":
        drawn, labels = make_moons(10_000, noise=0.1, random_state=0)
        found = np.concatenate([split.condition["labels"] for split in splits])
        np.testing.assert_array_equal(found, labels)
        assert found.dtype == np.int32
    else:
        drawn, _ = make_swiss_roll(10_000, noise=0.5, random_state=0)
        assert not splits[0].condition
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, drawn.astype(np.float32))
    assert DATASETS[name].info.shape == x.shape[1:]
