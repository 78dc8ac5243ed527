"""Vectors through the command line: trained, drawn, scored, interpolated, and users' mistakes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde import workdirs
from score_sde.config import changed
from score_sde.likelihood import log_likelihood
from tests.commands import CONFIGS, DIGITS, command, succeed

MOONS = f"--config={CONFIGS / 'vp_moons.py'}"
SMALL = (
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.training.batch_size=16",
    "--config.training.num_steps=2",
    "--config.training.warmup_steps=0",
    "--config.training.ema_rate=0.5",
)
QUIET = (*SMALL, "--config.training.sample_every=0")
LOOSE = tuple(
    f"--config.{section}.{tolerance}=1e-2"
    for section in ("sampling", "likelihood")
    for tolerance in ("rtol", "atol")
)
FEW = ("--config.sampling.num_samples=6", "--config.sampling.batch_size=6")
DRAW = np.random.default_rng(0)
COLUMNS = ("a", "b", "c")


def values(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A file of vectors with names and classes; c is one plus a tenth of noise."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    x = DRAW.standard_normal((60, 3)) * [1.0, 5.0, 0.1] + [0.0, 10.0, 1.0]
    np.savez(path, x=x, labels=np.arange(60) % 3, columns=np.asarray(COLUMNS))
    return path


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """The workdir of two steps on the moons."""
    workdir = tmp_path_factory.mktemp("moons") / "run"
    told = succeed("--mode=train", MOONS, "--workdir", workdir, *QUIET, cwd=workdir.parent)
    assert "8000 vectors of moons" in told
    return workdir


def test_moons_are_drawn_beside_the_data(moons, tmp_path):
    told = succeed("--mode=sample", "--workdir", moons, *FEW, *LOOSE, cwd=tmp_path)
    assert "6 vectors, NFE " in told and "without" not in told and "not read" not in told
    arrays = values(moons / "samples.npz")
    assert arrays["x"].shape == (6, 2) and arrays["x"].dtype == np.float32
    assert np.isfinite(arrays["x"]).all() and "labels" not in arrays
    assert Image.open(moons / "samples.png").size == (1050, 525)


@pytest.mark.thorough
def test_the_contours_of_moons_are_computed_where_they_are_missing(moons, tmp_path):
    succeed("--mode=sample", "--workdir", moons, *FEW, *LOOSE, cwd=tmp_path)
    # As after Ctrl-C while the contours are solved for: the vectors are there, the picture is not.
    (moons / "samples.png").unlink()
    told = succeed("--mode=sample", "--workdir", moons, *FEW, *LOOSE, cwd=tmp_path)
    assert "nothing to compute" in told and "contours: " in told
    assert (moons / "samples.png").exists()
    # What the contours are of, for the report: x, y and the log density, which integrates to 1 at
    # most: the grid holds most of the density, and its sums are Riemann's.
    density = values(moons / "samples.npz")["density"]
    assert density.shape == (64, 64, 3)
    cell = np.ptp(density[..., 0]) * np.ptp(density[..., 1]) / 63**2
    assert 0.0 < cell * np.exp(density[..., 2]).sum() < 1.05
    told = succeed("--mode=sample", "--workdir", moons, *FEW, *LOOSE, cwd=tmp_path)
    assert "contours: " not in told


def test_progress_is_reported_from_inside_a_batch(moons):
    chosen = {"sampling.method": "ddim", "sampling.num_steps": 3, "sampling.batch_size": 6}
    run = score_sde.load(moons, changed(workdirs.load(moons), chosen))
    shares: list[float] = []
    key = jax.random.key(0)
    [drawn] = run.sample_batches(key, 6, progress=shares.append)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0])
    # In parts of a loop as in one: to rounding.
    np.testing.assert_allclose(drawn.x, run.sample(key, 6).x, rtol=1e-4, atol=1e-4)


def test_likelihoods_of_moons_are_exact_and_in_nats(moons, tmp_path):
    few = ("--config.likelihood.num_images=5", "--config.likelihood.batch_size=5")
    told = succeed("--mode=likelihood", "--workdir", moons, *few, *LOOSE, cwd=tmp_path)
    assert " nats over 5 vectors (moons, test)" in told and "bits" not in told
    summary = json.loads((moons / "likelihood.json").read_text())
    assert summary["divergence"] == "exact" and summary["dequantization"] is None
    nats = values(moons / "likelihood.npz")["log_weight"].astype(np.float64)
    assert nats.shape == (5, 1) and summary["log_prob"] == pytest.approx(nats.mean(), rel=1e-12)
    assert "bits_per_dim" not in summary


@pytest.mark.thorough
def test_moons_are_interpolated(moons, tmp_path):
    few = ("--config.sampling.num_pairs=2", "--config.sampling.num_between=1")
    told = succeed("--mode=interpolate", "--workdir", moons, *few, *LOOSE[:2], cwd=tmp_path)
    assert "2 pairs, 1 between: NFE " in told and "pixels" not in told
    arrays = values(moons / "interpolation.npz")
    assert arrays["x"].shape == (2, 3, 2) and arrays["x"].dtype == np.float32
    # Two solves at 1e-2 each, some ten steps.
    np.testing.assert_allclose(arrays["x"][:, [0, -1]], arrays["real"], atol=0.2)
    assert Image.open(moons / "interpolation.png").size == (1050, 525)


@pytest.mark.thorough
def test_a_density_given_classes_and_columns(table, tmp_path):
    """p(a, b | class, c): trained, drawn and scored from the command line; without the file drawn
    as before."""
    data = tmp_path / "mine.npz"
    shutil.copy(table, data)
    workdir = tmp_path / "run"
    own = ("--config.data.name=npz", f"--config.data.dir={data}", "--config.data.condition=('c',)")
    given = (*own, "--config.model.class_conditional=True")
    arguments = (*SMALL, "--config.training.sample_every=2")
    told = succeed("--mode=train", MOONS, "--workdir", workdir, *given, *arguments, cwd=tmp_path)
    assert "54 vectors of npz" in told and (workdir / "samples" / "step_000002.png").exists()

    sample = ("--mode=sample", "--workdir", workdir, *FEW, *LOOSE[:2])
    told = succeed(*sample, "--config.sampling.condition=(1.1,)", cwd=tmp_path)
    assert "without" not in told
    drawn = values(workdir / "samples.npz")
    assert drawn["x"].shape == (6, 2) and drawn["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    info = score_sde.load(workdir).info
    assert info.columns == ("a", "b") and info.condition == ("c",)
    np.testing.assert_array_equal(drawn["vector"], np.repeat(info.standardised([[1.1]]), 6, 0))
    assert 0.3 < drawn["vector"][0, 0] < 3  # one of c's standard deviations above its mean

    likelihood = ("--mode=likelihood", "--workdir", workdir, *LOOSE[2:])
    told = succeed(*likelihood, cwd=tmp_path)
    assert "over 6 vectors (npz, test, given labels, vector)" in told and " nats " in told

    done = command("--mode=interpolate", "--workdir", workdir, cwd=tmp_path)
    assert done.returncode == 2 and "a pair shares" in done.stderr

    # Another condition is another distribution, by the same noise.
    data.unlink()
    told = succeed(*sample, "--config.sampling.condition=(0.9,)", cwd=tmp_path)
    assert "the picture is without the data" in told and f"{data}" in told
    other = values(workdir / "samples.npz")
    assert (other["x"] != drawn["x"]).all() and (workdir / "samples.png").exists()
    assert "it is now samples.old.npz" in told
    for wrong in ("()", "(1.0,2.0)"):
        done = command(*sample, f"--config.sampling.condition={wrong}", cwd=tmp_path)
        line = done.stderr.rstrip("\n").splitlines()[-1]
        assert done.returncode == 2 and line.startswith("error: config.sampling.condition = ")
        assert line.endswith("allowed are a number for each of c")
    done = command(*sample, "--config.sampling.condition=(1e999,)", cwd=tmp_path)
    assert done.returncode == 2 and "config.sampling.condition = (inf,): allowed" in done.stderr
    run = score_sde.load(workdir)
    with pytest.raises(ValueError, match="vector: allowed are numbers that are finite"):
        run.sample(jax.random.key(0), 1, labels=[0], vector=[[np.nan]])
    done = command(*likelihood, "--config.likelihood.seed=1", cwd=tmp_path)
    assert done.returncode == 2 and f"config.data.dir = '{data}'" in done.stderr


@pytest.mark.thorough
def test_rounded_vectors_have_bits(tmp_path):
    data, workdir = tmp_path / "rounded.npz", tmp_path / "run"
    np.savez(data, x=np.round(2.0 * DRAW.standard_normal((40, 2))) / 2.0)
    own = ("--config.data.name=npz", f"--config.data.dir={data}", "--config.data.bin_width=0.5")
    at = ("--workdir", workdir)
    told = succeed(
        "--mode=train", MOONS, *at, *own, *QUIET, "--config.sde.sigma_max=60", cwd=tmp_path
    )
    assert "not read with these settings: config.sde.sigma_max\n" in told  # the process is VP
    told = succeed("--mode=likelihood", *at, *LOOSE[2:], cwd=tmp_path)
    assert " bits/dim over 4 vectors (npz, test): upper bound by dequantization" in told
    assert "the columns' bins" in told
    arrays = values(workdir / "likelihood.npz")
    summary = json.loads((workdir / "likelihood.json").read_text())
    bits = arrays["bits_per_dim"].astype(np.float64)
    assert bits.shape == (4,) and summary["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-12)
    # One dequantization: nats of the data's units, with the bin's volume, over D log 2.
    nats = arrays["log_weight"][:, 0].astype(np.float64)
    np.testing.assert_allclose(bits, -nats / (2 * np.log(2)), rtol=1e-5)
    # The contours are of the density at the points themselves, not of the bins around them.
    told = succeed("--mode=sample", *at, *FEW, *LOOSE, cwd=tmp_path)
    assert "contours: " in told
    run = score_sde.load(workdir)
    density = values(workdir / "samples.npz")["density"].reshape(-1, 3)
    x = (density[:, :2] - run.info.mean) / run.info.std
    found = log_likelihood(
        jax.random.key(0), run.sde, run.smooth_score, jnp.asarray(x, jnp.float32),
        divergence="exact", rtol=1e-2, atol=1e-2,
    ).log_prob  # fmt: skip
    # float32, and steps of a tolerance of 1e-2 that rounding may move; a bin's log volume is -1.4.
    np.testing.assert_allclose(density[:, 2], found - np.log(run.info.std).sum(), atol=0.02)


def npz(**arrays):
    """Settings of a file that is made in the folder of the command."""

    def made(folder):
        np.savez(folder / "some.npz", **arrays)
        return ("--config.data.name=npz", "--config.data.dir=some.npz")

    return made


NORMAL = DRAW.standard_normal((30, 3))
MISTAKES = {
    "unknown column": (
        MOONS,
        npz(x=NORMAL, columns=np.asarray(COLUMNS)),
        ("--config.data.condition=('d',)",),
        ("config.data.condition", "no column d", "a, b, c"),
    ),
    "all columns": (
        MOONS,
        npz(x=NORMAL),
        ("--config.data.condition=(0,1,2)",),
        ("config.data.condition", "not all of 0, 1, 2"),
    ),
    "constant column": (
        MOONS,
        npz(x=NORMAL * [1, 0, 1] + 7.0),
        (),
        ("column 1", "constant"),
    ),
    "missing file": (
        MOONS,
        lambda folder: ("--config.data.name=npz", "--config.data.dir=none.npz"),
        (),
        ("config.data.dir = 'none.npz'", "an array x"),
    ),
    "no classes": (
        MOONS,
        npz(x=NORMAL),
        ("--config.model.class_conditional=True",),
        ("config.model.class_conditional = True", "False"),
    ),
    "flip": (
        MOONS,
        lambda folder: (),
        ("--config.data.flip=True",),
        ("config.data.flip = True", "False"),
    ),
    "augmentation": (
        MOONS,
        lambda folder: (),
        ("--config.data.augment=0.1",),
        ("config.data.augment = 0.1: allowed are 0: moons are vectors",),
    ),
    "a network for images": (
        MOONS,
        lambda folder: (),
        ("--config.model.name=unet",),
        ("config.model.name = 'unet'", "allowed are mlp"),
    ),
    "a network for vectors": (
        DIGITS,
        lambda folder: (),
        ("--config.model.name=mlp",),
        ("config.model.name = 'mlp'", "allowed are unet"),
    ),
    "columns of images": (
        DIGITS,
        lambda folder: (),
        ("--config.data.condition=(0,)",),
        ("config.data.condition = (0,)", "vectors"),
    ),
}


def one_line(done):
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(("preset", "files", "wrong", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_line(tmp_path, preset, files, wrong, said):
    arguments = (*files(tmp_path), *QUIET[2:], *wrong)
    line = one_line(command("--mode=train", preset, *arguments, cwd=tmp_path))
    for words in said:
        assert words in line
    assert not (tmp_path / "runs").exists()


def test_what_a_run_of_vectors_cannot_draw(moons, tmp_path):
    sample = ("--mode=sample", "--workdir", moons)
    before = sorted(moons.iterdir())
    for wrong, said in (
        ("--config.sampling.gif=True", "False with vectors"),
        ("--config.sampling.condition=(1.0,)", "(), as there is no condition"),
    ):
        line = one_line(command(*sample, wrong, cwd=tmp_path))
        key, _, value = wrong.removeprefix("--").partition("=")
        assert f"error: {key} = {value}: allowed are {said}\n" == line
    assert sorted(moons.iterdir()) == before
