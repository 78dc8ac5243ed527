"""Images that are higher than wide, through the modes that a run has."""

import numpy as np
import pytest
from PIL import Image

from tests.commands import DIGITS, FEW, TINY, succeed

HEIGHT, WIDTH, SCALE = 6, 4, 11  # grids are magnified to 64 pixels at least
X = np.random.default_rng(0).integers(0, 256, (40, HEIGHT, WIDTH, 3), np.uint8)
LOOSE = ("--config.{0}.rtol=0.1", "--config.{0}.atol=0.1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run in its default workdir, and that workdir with samples and a film."""
    folder = tmp_path_factory.mktemp("high")
    np.savez(folder / "high.npz", x=X)
    data = ("--config.data.name=npz", f"--config.data.dir={folder / 'high.npz'}")
    succeed("--mode=train", DIGITS, *TINY, *data, "--config.data.augment=0.5", cwd=folder)
    more = ("--config.sampling.gif", "--config.sampling.png")
    succeed("--mode=sample", *FEW, *more, cwd=folder)
    return folder, folder / "runs" / "vp_digits"


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def pixels(columns, rows):
    """Width and height of a grid, with lines of one pixel."""
    return (columns * (WIDTH + 1) - 1) * SCALE, (rows * (HEIGHT + 1) - 1) * SCALE


@pytest.mark.thorough
def test_samples_and_their_film(trained):
    _, workdir = trained
    assert arrays(workdir / "samples.npz")["images"].shape == (3, HEIGHT, WIDTH, 3)
    assert Image.open(workdir / "samples.png").size == pixels(2, 2)
    film = Image.open(workdir / "samples.gif")
    assert film.size == pixels(2, 2) and film.n_frames > 1
    assert Image.open(workdir / "samples_png" / "000002.png").size == (WIDTH, HEIGHT)


@pytest.mark.thorough
def test_likelihoods(trained):
    folder, workdir = trained
    loose = [flag.format("likelihood") for flag in LOOSE]
    few = ("--config.likelihood.num_images=2", "--config.likelihood.divergence=rademacher")
    succeed("--mode=likelihood", *few, *loose, cwd=folder)
    assert np.isfinite(arrays(workdir / "likelihood.npz")["bits_per_dim"]).all()
    assert Image.open(workdir / "likelihood.png").size == pixels(2, 2)


@pytest.mark.thorough
def test_interpolations(trained):
    folder, workdir = trained
    loose = [flag.format("sampling") for flag in LOOSE]
    few = ("--config.sampling.num_pairs=1", "--config.sampling.num_between=1")
    succeed("--mode=interpolate", *few, *loose, cwd=folder)
    assert arrays(workdir / "interpolation.npz")["images"].shape == (1, 3, HEIGHT, WIDTH, 3)
    assert Image.open(workdir / "interpolation.png").size == pixels(3, 1)


@pytest.mark.thorough
def test_restorations(trained):
    folder, workdir = trained
    Image.fromarray(X[0]).resize((WIDTH // 2, HEIGHT // 2)).save(folder / "small.png")
    few = ("--config.sampling.num_steps=2", "--config.restore.num_draws=2")
    task = ("--input=small.png", "--task=super_resolve")
    succeed("--mode=restore", *task, *few, cwd=folder)
    assert arrays(workdir / "restored.npz")["images"].shape == (1, 2, HEIGHT, WIDTH, 3)
    # The measurement, enlarged, two draws, their mean and deviation.
    assert Image.open(workdir / "restored.png").size == pixels(5, 1)


@pytest.mark.thorough
def test_colours_of_a_grey_image(trained):
    """DiffPIR without noise sets the grey of the denoised data, up to the rounding of each channel.
    What the range of pixels cuts off is left out."""
    folder, workdir = trained
    grey = np.random.default_rng(1).integers(100, 150, (HEIGHT, WIDTH), np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    exact = ("--config.restore.method=diffpir", "--config.restore.sigma_y=0.0")
    few = ("--config.sampling.num_steps=2", "--config.restore.num_draws=2")
    succeed("--mode=restore", "--input=grey.png", "--task=colorize", *exact, *few, cwd=folder)
    drawn = arrays(workdir / "restored.npz")["images"][0].astype(int)
    whole = ((drawn > 0) & (drawn < 255)).all(axis=-1)
    assert whole.any()
    assert np.abs(drawn.mean(axis=-1) - grey)[whole].max() <= 1
    sheet = np.asarray(Image.open(workdir / "restored.png"))
    first = sheet[::SCALE, : WIDTH * SCALE : SCALE]
    np.testing.assert_array_equal(first, np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.thorough
def test_an_export_and_back(trained):
    folder, workdir = trained
    succeed("--mode=export", "--target=out", cwd=folder)
    succeed("--mode=convert", "--source=out", "--workdir=back", cwd=folder)
    succeed("--mode=sample", "--workdir=back", *FEW, cwd=folder)
    ours, theirs = (arrays(at / "samples.npz")["images"] for at in (workdir, folder / "back"))
    # The film's states are kept by another program: a pixel next to the edge of its bin may move.
    assert np.abs(ours.astype(int) - theirs).max() <= 1
