"""Sets prepared by TFDS: found and judged without it, read with it where it is installed."""

import dataclasses
import importlib.util
import io
import json

import numpy as np
import pytest

from score_sde.data import cifar10, load, prepared
from score_sde.errors import UserError

TINY = dataclasses.replace(cifar10.INFO, splits={"train": 20, "test": 7})
HAS_TFDS = all(importlib.util.find_spec(m) for m in ("tensorflow_datasets", "array_record"))
needs_tfds = pytest.mark.skipif(not HAS_TFDS, reason="needs the extra tfds")


def lay_out(folder, version, facts, name="cifar10"):
    place = folder / name / version
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return place


def test_newest_readable_version_is_found(tmp_path):
    assert prepared.find(tmp_path, "cifar10") is None
    newest = lay_out(tmp_path, "10.0.0", {"fileFormat": "tfrecord"})
    lay_out(tmp_path, "9.0.0", {})
    lay_out(tmp_path, "incomplete.ABC_11.0.0", {})
    lay_out(tmp_path, "12.0.0", {}, name="cifar100")
    assert prepared.find(tmp_path, "cifar10") == newest
    readable = lay_out(tmp_path, "3.0.2", {"fileFormat": "array_record"})
    assert prepared.find(tmp_path, "cifar10") == readable


@pytest.mark.parametrize("facts", [{"fileFormat": "tfrecord"}, {}])
def test_tfrecord_in_data_dir_is_told_with_the_remedy(facts, tmp_path):
    place = lay_out(tmp_path, "3.0.2", facts)
    with pytest.raises(UserError) as caught:
        load("cifar10", "train", str(tmp_path))
    line = str(caught.value)
    assert line.startswith(f"config.data.dir: {place} holds TFDS's format 'tfrecord'")
    assert "tfds build cifar10 --file_format=array_record" in line and "\n" not in line


def test_tfrecord_in_the_default_folder_is_passed_over(tmp_path, no_preparation):
    lay_out(tmp_path / "tfds", "3.0.2", {})  # TFDS_DATA_DIR
    with pytest.raises(
        UserError, match=r"^config\.data\.name: cifar10 is not in .* 'tfrecord'"
    ) as e:
        load("cifar10", "train")
    assert "Connection refused" in str(e.value)  # the download was tried all the same


def test_official_files_beside_an_unreadable_set_are_read(tmp_path):
    lay_out(tmp_path, "3.0.2", {})
    (tmp_path / "test_batch.bin").write_bytes(bytes(10_000 * 3073))
    assert len(load("cifar10", "test", str(tmp_path)).condition["labels"]) == 10_000


@pytest.mark.parametrize("facts", ["", "{", "[]"])
def test_damaged_facts(facts, tmp_path):
    place = lay_out(tmp_path, "3.0.2", facts)
    with pytest.raises(UserError, match=f"config.data.dir: {place}/dataset_info.json "):
        load("cifar10", "train", str(tmp_path))


@pytest.mark.skipif(HAS_TFDS, reason="the extra tfds is installed")
def test_missing_extra_is_named(tmp_path):
    lay_out(tmp_path, "3.0.2", {"fileFormat": "array_record"})
    with pytest.raises(UserError, match=r"to read it: pip install 'score-sde\[tfds\]'"):
        load("cifar10", "train", str(tmp_path))


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    """A set of few images that TFDS prepared as array_record, as the real one is laid out."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            image, label = (
                tfds.features.Image(shape=(32, 32, 3)),
                tfds.features.ClassLabel(num_classes=10),
            )
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {split: self._generate_examples(n) for split, n in TINY.splits.items()}

        def _generate_examples(self, count):
            for k in range(count):
                png = io.BytesIO()  # encoded here: TFDS encodes arrays by TensorFlow only
                pixels = np.full((32, 32, 3), k, np.uint8)
                pixels[1, 2, 0] = 200
                Image.fromarray(pixels).save(png, "PNG")
                png.seek(0)
                yield k, {"image": png, "label": k % 10}

    folder = tmp_path_factory.mktemp("prepared")
    builder = Cifar10(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


@needs_tfds
@pytest.mark.parametrize("split", ["train", "test"])
def test_array_record_is_read(split, tiny_set):
    found = prepared.find(tiny_set, "cifar10")
    assert found is not None and prepared.obstacle(found, "cifar10") is None
    images, condition = prepared.read(found, TINY, split)
    labels = condition["labels"]
    assert images.shape == (TINY.splits[split], 32, 32, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    # TFDS shuffles what it writes; pixels and labels stay together.
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(TINY.splits[split]))
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 10, labels)
    assert (images[:, 1, 2, 0] == 200).all()


@needs_tfds
def test_set_of_another_size_or_shape(tiny_set):
    found = prepared.find(tiny_set, "cifar10")
    with pytest.raises(UserError, match="the train split has 20 images, not 50000"):
        load("cifar10", "train", str(tiny_set))
    with pytest.raises(UserError, match=r"an image has \(32, 32, 3\), not \(28, 28, 3\)"):
        prepared.read(found, dataclasses.replace(TINY, shape=(28, 28, 3)), "test")


@needs_tfds
@pytest.mark.parametrize("damage", ["cut", "removed", "no features"])
def test_damaged_set_ends_in_one_line(damage, tiny_set, tmp_path):
    source = prepared.find(tiny_set, "cifar10")
    copy = tmp_path / "cifar10" / source.name
    copy.mkdir(parents=True)
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (shard,) = copy.glob("*-test.array_record-*")
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:2000])
    elif damage == "removed":
        shard.unlink()
    else:
        (copy / "features.json").unlink()
    with pytest.raises(UserError) as caught:
        prepared.read(copy, TINY, "test")
    assert str(caught.value).startswith(f"config.data.dir: {copy} ") and "\n" not in str(
        caught.value
    )
