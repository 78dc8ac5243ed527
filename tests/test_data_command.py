"""`--mode data`: what it prints of images and vectors; its lines train, and bad data end it."""

import io
import shlex
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde import workdirs
from score_sde.config import default
from score_sde.data import DatasetInfo
from score_sde.modes.data import _moments, largest_distance, proposed_size
from tests.commands import DIGITS, FEW, TINY, command, refused, succeed

DRAW = np.random.default_rng(0)
NUMBER = 24


def photographs(folder):
    """Smooth pictures of two kinds, most of them 32 x 48; the last two are the same."""
    y, x = np.mgrid[:32, :48] / 32
    for index in range(NUMBER):
        waves = np.sin(x * (1 + index) + y)[..., None] * DRAW.uniform(0.5, 1, 3) * 100 + 120
        place = folder / ("sea" if index % 2 else "hills") / f"{index:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(waves[: 31 if index == 3 else 32].astype(np.uint8)).save(place)
    (place.parent / "copy.png").write_bytes(place.read_bytes())
    return folder


def lines_of(told):
    """The config lines, as a shell reads them."""
    return shlex.split(told.partition("with this preset:")[2].replace("\\\n", ""))


def test_a_look_at_photographs(tmp_path):
    """What is there, and the lines of a config."""
    folder = photographs(tmp_path / "my photos")
    own = ("--config.data.name=folder", f"--config.data.dir={folder}")
    told = succeed("--mode=data", DIGITS, *own, cwd=tmp_path)
    for words in (
        "files: 25 images of 2 sizes (height, width), most often (32, 48) 24 times",
        "data: images 32 x 48 x 3 of folder: 23 train, 2 test",
        "classes: 2, with so many training items: hills (",
        "channel 2: mean ",
        "in the model's units, [-1, 1]",
        "exact duplicates: 1 training items repeat another, 0 test items",
        "picture: data.png",
    ):
        assert words in told, told
    lines = lines_of(told)
    assert "--config.data.image_size=(32, 48)" in lines and own[1] in lines
    assert "--config.model.class_conditional=True" in lines
    assert "--config.training.batch_size=16" in lines
    sheet = Image.open(tmp_path / "data.png")
    # 5 x 5 images, magnified to 64 pixels of height, with lines of one pixel between them.
    assert sheet.size == (2 * (5 * 49 - 1), 2 * (5 * 33 - 1))


@pytest.mark.thorough
def test_photographs_from_a_look_to_samples(tmp_path):
    """The commands of docs/data.md, with a network that compiles in a moment."""
    folder = photographs(tmp_path / "my photos")
    own = ("--config.data.name=folder", f"--config.data.dir={folder}")
    lines = lines_of(succeed("--mode=data", DIGITS, *own, cwd=tmp_path))
    workdir = tmp_path / "run"
    train = ("--mode=train", DIGITS, "--workdir", workdir, *lines, *TINY)
    told = succeed(*train, cwd=tmp_path)
    assert "data: 23 images of folder" in told
    info = workdirs.load_info(workdir)
    assert info.shape == (32, 48, 3) and info.classes == ("hills", "sea") and info.digest
    succeed("--mode=sample", "--workdir", workdir, *FEW, cwd=tmp_path)
    with np.load(workdir / "samples.npz") as arrays:
        assert arrays["images"].shape == (3, 32, 48, 3)

    # A run knows its data by their content.
    victim = folder / "sea" / "01.png"
    Image.fromarray(255 - np.asarray(Image.open(victim))).save(victim)
    more = "--config.training.num_steps=6"
    done = command(*train, more, cwd=tmp_path)
    assert done.returncode == 2 and "the data are not those that" in done.stderr, done.stderr


@pytest.mark.thorough
def test_the_run_of_photographs_needs_no_data_to_sample(tmp_path):
    """A workdir keeps the facts: with the folder gone it is loaded and drawn from."""
    x = DRAW.integers(0, 256, (12, 4, 6), np.uint8)
    np.savez(tmp_path / "mine.npz", images=x)
    own = ("--config.data.name=npz", f"--config.data.dir={tmp_path / 'mine.npz'}")
    small = ("--config.training.batch_size=8", "--config.training.num_steps=1")
    arguments = ("--mode=train", DIGITS, f"--workdir={tmp_path / 'run'}", *own, *TINY, *small)
    succeed(*arguments, cwd=tmp_path)
    (tmp_path / "mine.npz").unlink()
    run = score_sde.load(tmp_path / "run")
    assert run.sample(jax.random.key(0), 1).images.shape == (1, 4, 6, 1)


def test_vectors(tmp_path):
    x = DRAW.standard_normal((40, 3)) * [1.0, 5.0, 0.1]
    x[7] = x[3]
    np.savez(tmp_path / "mine.npz", x=x, columns=["a", "b", "c"])
    own = ("--config.data.name=npz", f"--config.data.dir={tmp_path / 'mine.npz'}")
    output = tmp_path / "look"
    told = succeed(
        "--mode=data", DIGITS, *own, "--config.sde.name=ve", f"--output={output}", cwd=tmp_path
    )
    for words in (
        "data: vectors 3 of npz: 36 train, 4 test",
        "classes: none",
        "column b: mean ",
        "sigma_data: 1, ",
        "(all pairs)",
        "1 training items repeat another",
    ):
        assert words in told, told
    lines = lines_of(told)
    assert "--config.model.name=mlp" in lines
    [sigma] = [float(line.split("=")[1]) for line in lines if "sigma_max" in line]
    assert Image.open(output / "data.png").size[0] > 100

    # The rule for sigma_max: the largest distance, rounded up to three digits.
    rows = np.random.default_rng(0).permutation(40)[:36]
    unit = (x[rows] - x[rows].mean(0)) / x[rows].std(0)
    exact = max(np.linalg.norm(a - b) for a in unit for b in unit)
    assert exact <= sigma <= 1.02 * exact


@pytest.mark.thorough
def test_of_a_stream_all_labels_and_files_are_looked_at(tmp_path):
    """2000 images are; of the others the class and the bytes of the file are at hand."""
    number = 2300
    images = np.zeros((number, 2, 2, 1), np.uint8)
    images[:, 0, :, 0] = np.arange(number)[:, None] // (1, 256) % 256  # all differ
    classes = np.where(np.arange(number) < 7, 0, 1)
    stream = ("--config.data.stream=True", "--config.model.name=tests.tiny:Tiny")
    np.savez(tmp_path / "mine.npz", images=images, labels=classes, y=classes, z=images[:, :, 0, 0])
    npz = ("--config.data.name=npz", f"--config.data.dir={tmp_path / 'mine.npz'}")
    told = succeed("--mode=data", DIGITS, *npz, *stream, cwd=tmp_path)
    train = np.random.default_rng(0).permutation(number)[: number - number // 10]
    assert "looked at: 2000 training items" in told
    rare = (train < 7).sum()
    counts = f"0 ({rare}), 1 ({len(train) - rare})"
    assert f"classes: 2, with so many training items: {counts}" in told
    assert "further arrays: y, z; data.condition may name them" in told
    assert (
        "0 training items repeat another, 0 test items are among the training items, of the" in told
    )

    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for index, image in enumerate(images[..., 0]):
            content = io.BytesIO()
            Image.fromarray(image if index != train[1] else images[train[0], ..., 0]).save(
                content, "ppm"
            )
            archive.writestr(f"{index:04d}.pgm", content.getvalue())
    files = ("--config.data.name=zip", f"--config.data.dir={tmp_path / 'mine.zip'}")
    told = succeed("--mode=data", DIGITS, *files, *stream, cwd=tmp_path)
    assert "1 training items repeat another, 0 test items are among the training items, by" in told


def test_pixels_are_counted_without_a_copy_of_all():
    x, config = np.zeros((3000, 64, 64, 1), np.uint8), default()
    x[::2] = 16
    info = DatasetInfo("mine", (64, 64, 1), 17, 0, {"train": 3000, "test": 0})
    tracemalloc.start()
    said = [*_moments(config, info, x)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said[0] == "channel 0: mean 8, standard deviation 8 (of 0 to 16)"
    assert peak < 5 * x.nbytes  # of 1000 items, numbers of 8 bytes


def test_the_largest_distance_is_that_of_all_pairs():
    x = DRAW.standard_normal((300, 2, 3)).astype(np.float32) + 100
    exact = max(np.linalg.norm(a - b) for a in x.astype(float) for b in x.astype(float))
    # Of float32 in sums of squares of some 100 centred numbers.
    assert largest_distance(x) == pytest.approx(exact, rel=1e-5)
    assert largest_distance(x[:1]) == 0.0


def test_a_proposed_size_is_near_the_images_and_can_be_halved():
    assert proposed_size(32, 48) == (32, 48)
    assert proposed_size(3000, 4000) == (56, 72)
    assert proposed_size(3, 5) == (8, 8)
    for height, width in ((100, 900), (64, 64), (65, 63)):
        found = proposed_size(height, width)
        assert all(side % 8 == 0 for side in found) and found[0] * found[1] <= 80**2


BAD = {
    "no folder": (("name=folder", "dir=none"), "config.data.dir = 'none': allowed is the path of"),
    "empty folder": (("name=folder", "dir=empty"), "has no images"),
    "few images": (("name=folder", "dir=few"), "has 3 images; at least 10"),
    "corrupt": (("name=folder", "dir=corrupt"), "1 of 12 images cannot be used: 11.png (0 bytes"),
    "no zip": (("name=zip", "dir=text.npz"), "not a zip archive"),
    "no npz": (("name=npz", "dir=text.npz"), "not a .npz file of numbers"),
    "pickle": (("name=npz", "dir=pickle.npz"), "holds pickled objects, which are never read"),
    "floats": (("name=npz", "dir=floats.npz"), "x is float64(12, 4, 4); allowed are uint8"),
    "size of an npz": (("name=npz", "dir=good.npz", "image_size=8"), "0 (its own (4, 6) pixels)"),
    "size in words": (("name=folder", "dir=few", "image_size=small"), "image_size = 'small'"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of data that do not serve."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    for name, number in (("few", 3), ("corrupt", 11)):
        (root / name).mkdir()
        for index in range(number):
            Image.fromarray(DRAW.integers(0, 256, (8, 8), np.uint8)).save(
                root / name / f"{index}.png"
            )
    (root / "corrupt" / "11.png").touch()
    (root / "text.npz").write_text("text")
    np.savez(root / "pickle.npz", x=np.asarray([{}] * 12))
    np.savez(root / "floats.npz", x=DRAW.uniform(size=(12, 4, 4)))
    np.savez(root / "good.npz", x=DRAW.integers(0, 256, (12, 4, 6), np.uint8))
    return root


@pytest.mark.parametrize("name", BAD)
def test_bad_data_end_in_one_line(bad, name):
    settings, words = BAD[name]
    line = refused("--mode=data", DIGITS, *(f"--config.data.{s}" for s in settings), cwd=bad)
    assert line.startswith("error: config.data.") and words in line, line


def test_what_a_training_asks_of_the_data(bad):
    """Fewer images than a batch, and labels of a set without."""
    train = ("--mode=train", DIGITS, "--workdir=run", "--config.data.name=npz", *TINY)
    own = "--config.data.dir=good.npz"
    for setting, words in (
        ("--config.training.batch_size=16", "training.batch_size = 16: allowed are 1 to 11, the"),
        ("--config.model.class_conditional", "model.class_conditional = True: allowed are False"),
    ):
        done = command(*train, own, "--config.training.batch_size=8", setting, cwd=bad)
        assert done.returncode == 2 and words in done.stderr, done.stderr
