"""`tfds:NAME`: any set that TFDS prepared as array_record, with the published models' crops."""

import importlib.util
import io
import json
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from score_sde.config import resolve
from score_sde.data import Streamed, describe, load
from score_sde.errors import UserError
from tests.commands import CONFIGS, TINY, command

HAS_TFDS = all(importlib.util.find_spec(m) for m in ("tensorflow_datasets", "array_record"))
needs_tfds = pytest.mark.skipif(not HAS_TFDS, reason="needs the extra tfds")
NUMBER = {"celeb_a": {"train": 12, "validation": 4, "test": 4}, "flowers": {"train": 9}}
FACTS = {"fileFormat": "array_record"}


def photograph(index: int, texture: int = 0) -> Image.Image:
    """178 x 218, whose middle 140 x 140 is one colour, as is what lies around it. A texture is a
    random number of up to so many that is added to the middle's green and blue."""
    pixels = np.full((218, 178, 3), 250, np.uint8)
    pixels[39:179, 19:159] = 10 * index
    more = np.random.default_rng(index).integers(0, texture, (140, 140, 2), np.uint8, endpoint=True)
    pixels[39:179, 19:159, 1:] += more
    return Image.fromarray(pixels)


def encoded(image: Image.Image) -> io.BytesIO:
    """As a file: TFDS encodes arrays by TensorFlow only."""
    content = io.BytesIO()
    image.save(content, "PNG")
    content.seek(0)
    return content


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^config\.data\.name = 'tfds:lsun/bedroom': .*tfds build"):
        describe("tfds:lsun/bedroom", str(tmp_path))
    with pytest.raises(UserError, match=r"data\.name = 'tfds:': "):
        describe("tfds:", str(tmp_path))
    with pytest.raises(UserError, match=r"data\.name = 'tfds:/etc': "):
        describe("tfds:/etc", str(tmp_path))
    assert resolve("data.name", "tfds:celeb_a").streams


@pytest.mark.parametrize("name", ["celeb_a", "lsun/church_outdoor"])
def test_what_only_tensorflow_reads(name, tmp_path):
    place = tmp_path / name / "2.1.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=rf"'tfrecord'.* tfds build {name} --file_format="):
        describe(f"tfds:{name}", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set with CelebA's splits and images, and one of a single split with classes and sizes."""
    import tensorflow_datasets as tfds

    class Base(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.1.0")
        shape, texture = (218, 178, 3), 140
        more: ClassVar = {}

        def _info(self):
            features = {"image": tfds.features.Image(shape=self.shape), **self.more}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {k: self._generate_examples(n) for k, n in NUMBER[self.name].items()}

        def _generate_examples(self, count):
            for index in range(count):
                more = {name: index % 3 for name in self.more}
                yield index, {"image": encoded(photograph(index, self.texture)), **more}

    class CelebA(Base):
        name = "celeb_a"

    class Flowers(Base):
        shape, texture = (None, None, 3), 0
        more: ClassVar = {"label": tfds.features.ClassLabel(num_classes=3)}

    place = tmp_path_factory.mktemp("tfds")
    for make in (CelebA, Flowers):
        make(data_dir=place, file_format="array_record").download_and_prepare()
    return str(place)


def antialiased(image: np.ndarray, size: int) -> np.ndarray:
    """As `tf.image.resize(image, [size, size], antialias=True)` is defined: the mean of the pixels
    by a triangle that is as much wider than two pixels as the image is reduced."""
    scale = len(image) / size
    distances = (np.arange(size)[:, None] + 0.5) * scale - (np.arange(len(image)) + 0.5)
    weights = np.maximum(0.0, 1.0 - np.abs(distances) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("ij,jkc,lk->ilc", weights, image, weights)


@needs_tfds
@pytest.mark.parametrize("stream", [True, False])
def test_celeba_is_cut_and_resized_as_published(stream, folder):
    info = describe("tfds:celeb_a", folder, image_size=64)
    assert (info.shape, info.num_classes) == ((64, 64, 3), 0)
    assert info.splits == {"train": 12, "test": 4} and info.digest
    train = load("tfds:celeb_a", "train", folder, info, stream=stream)
    assert isinstance(train.x, Streamed) == stream and train.condition == {}
    x = np.asarray(train.x)
    assert sorted(x[:, 0, 0, 0].tolist()) == [10 * index for index in range(12)]
    for image in x:
        middle = np.asarray(photograph(image[0, 0, 0] // 10, 140))[39:179, 19:159]
        # Half a level of rounding in each of Pillow's two passes, and its weights of 22 bits.
        assert np.abs(image - antialiased(middle, 64)).max() < 1.01
    assert describe("tfds:celeb_a", folder).shape == (140, 140, 3)


@needs_tfds
def test_other_sets_are_cut_to_the_largest_part_in_the_middle(folder):
    with pytest.raises(UserError, match=r"image_size = 0: the images of flowers have no common"):
        describe("tfds:flowers", folder)
    info = describe("tfds:flowers", folder, image_size=(16, 8), channels=1)
    assert info.shape == (16, 8, 1) and info.num_classes == 3
    assert info.splits == {"train": 9, "test": 0}
    parts = [load("tfds:flowers", "train", folder, info, stream=each) for each in (True, False)]
    np.testing.assert_array_equal(parts[0].x, parts[1].x)
    labels = np.asarray(parts[0].condition["labels"])
    np.testing.assert_array_equal(labels, parts[1].condition["labels"])
    np.testing.assert_array_equal(parts[1].x[:, 8, 4, 0] // 10 % 3, labels)
    assert len(load("tfds:flowers", "test", folder, info).x) == 0
    # An odd rest is cut off at whole pixels.
    odd = describe("tfds:flowers", folder, image_size=(218, 175))
    for x in load("tfds:flowers", "train", folder, odd, stream=False).x:
        expected = np.asarray(photograph(x[100, 100, 0] // 10))[:, 1:176]
        np.testing.assert_array_equal(x, expected)


@needs_tfds
def test_records_that_are_gone_end_in_one_line(folder, tmp_path):
    from shutil import copytree

    place = copytree(folder, tmp_path / "copy")
    x = load("tfds:celeb_a", "train", str(place), stream=True).x
    for shard in place.glob("celeb_a/*/*train*"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"^config\.data\.dir: .*2\.1\.0 cannot be read") as caught:
        x[:3]
    assert "\n" not in str(caught.value)


@needs_tfds
@pytest.mark.parametrize("preset", ["ve_celeba.py", "vp_256.py:church"])
def test_published_presets_train(preset, folder, tmp_path):
    """With a network and images that are small."""
    done = command(
        *("--mode=train", f"--config={CONFIGS / preset}", "--workdir=run", *TINY),
        *("--config.data.name=tfds:celeb_a", f"--config.data.dir={folder}"),
        *("--config.data.image_size=8", "--config.data.stream=true", "--config.data.workers=0"),
        *("--config.training.num_steps=2", "--config.training.batch_size=4"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "data: 12 images of tfds:celeb_a streamed by threads" in done.stdout
