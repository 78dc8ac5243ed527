"""The list of data sets: what each entry says of itself, and sets of the user's own."""

import dataclasses

import numpy as np
import pytest

from score_sde.data import DATASETS, Arrays, Dataset, DatasetInfo, describe, load
from score_sde.errors import UserError


def test_every_entry_is_described_by_its_name():
    for name, dataset in DATASETS.items():
        if isinstance(dataset.info, DatasetInfo):
            assert dataset.info.name == name
            assert len(dataset.info.shape) == (3 if dataset.info.levels else 1)


def test_only_sets_that_are_not_read_have_other_image_sizes():
    assert describe("celeba").shape == (64, 64, 3)
    assert describe("celeba", image_size=12).shape == (12, 12, 3)
    assert describe("digits", image_size=8).shape == (8, 8, 1)
    images = describe("images", image_size=16, channels=1, num_classes=4)
    assert (images.shape, images.num_classes) == ((16, 16, 1), 4)
    with pytest.raises(UserError, match=r"image_size = 0: allowed are positive"):
        describe("images")
    with pytest.raises(UserError, match=r"channels = 3.*its own 1 channels"):
        describe("digits", channels=3)
    with pytest.raises(UserError, match=r"num_classes = 3.*0 for vectors"):
        describe("moons", num_classes=3)
    with pytest.raises(UserError, match=r"image_size = 16.*8 pixels"):
        describe("digits", image_size=16)
    with pytest.raises(UserError, match=r"image_size = 16.*0"):
        describe("moons", image_size=16)


def test_a_set_of_the_users_own_needs_no_line_in_the_list():
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    rows = {"train": slice(15), "test": slice(15, 20)}
    info = DatasetInfo("mine", (3,), None, 0, {"train": 15, "test": 5})
    mine = Dataset(info, lambda split, data_dir: Arrays(x[rows[split]], {}))
    found = describe(mine, condition=("2",))
    assert found.columns == ("0", "1") and found.mean == tuple(x[:15, :2].astype(float).mean(0))
    test = load(mine, "test", None, found)
    np.testing.assert_array_equal(test.x, x[15:, :2])
    assert test.condition["vector"].shape == (5, 1)
    for splits in ({"train": 15}, {"train": 15, "test": 5, "valid": 5}):
        with pytest.raises(UserError, match=r"mine has the splits train.* allowed are train, test"):
            describe(Dataset(dataclasses.replace(info, splits=splits), mine.load))
