"""Models of discrete levels and of classes, through the command line, by samplers with and without
noise."""

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde import build, workdirs
from score_sde.config import changed
from score_sde.data import load
from score_sde.modes.interpolate import pairs
from tests.commands import CONFIGS, TINY, refused, succeed


def test_discrete_training_then_sampling(tiny_run, tmp_path):
    """DDPM's training by the command line, and its own sampler."""
    workdir = tiny_run("discrete", tmp_path)
    sampling = ("--config.sampling.method=pc", "--config.sampling.faithful=True")
    sampling = (*sampling, "--config.sampling.num_steps=100")
    succeed("--mode=sample", *sampling, "--config.sampling.num_samples=3", cwd=tmp_path)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["images"].shape == (3, 8, 8, 1)
    assert arrays["nfe"].tolist() == [100, 100, 100]


@pytest.mark.thorough
def test_levels_of_a_discrete_model_by_each_sampler(tiny_run, tmp_path):
    workdir = tiny_run("discrete", tmp_path)
    saved = workdirs.load(workdir)
    for method in ("ald", "unipc", "heun"):
        assert build.sampler(changed(saved, {"sampling.method": method})).levels != "smooth"
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jax.numpy.asarray([0.123, 0.5])
    for method in ("pc", "ode"):
        loose = {"sampling.rtol": 0.1, "sampling.atol": 0.1, "sampling.num_steps": 21}
        chosen = {"sampling.method": method, "sampling.faithful": True}
        run = score_sde.load(workdir, changed(saved, loose | chosen))
        # 99 t = 12.2 and 49.5: the original's chain has the sigmas of levels 12 and 49, and these
        # levels belong to other times than the process's.
        smooth = np.allclose(run.score(x, t), run.smooth_score(x, t), rtol=1e-3)
        assert smooth == (method == "ode")
        assert run.sample(jax.random.key(0), 3).images.shape == (3, 8, 8, 1)


def test_a_class_conditional_model(tiny_run, tmp_path):
    """Trained and given likelihoods by the command line. Drawn from with noise and by the flow,
    with the labels that are asked for. An image depends on its own label only."""
    workdir = tiny_run("classes", tmp_path)
    few = ("--config.likelihood.num_images=3", "--config.likelihood.rtol=1e-2")
    out = succeed("--mode=likelihood", *few, "--config.likelihood.atol=1e-2", cwd=tmp_path)
    assert "over 3 images (digits, test, given labels)" in out
    saved = workdirs.load(workdir)
    for method in ("pc", "ode"):
        settings = {"method": method, "num_steps": 5, "batch_size": 2, "rtol": 1e-2, "atol": 1e-2}
        chosen = {f"sampling.{key}": value for key, value in settings.items()}
        run = score_sde.load(workdir, changed(saved, chosen))
        labels = np.asarray([3, 1, 4], np.int32)
        drawn = run.sample(jax.random.key(0), 3, labels=labels)
        other = run.sample(jax.random.key(0), 3, labels=np.asarray([3, 1, 5], np.int32))
        assert drawn.labels.tolist() == [3, 1, 4]
        np.testing.assert_array_equal(drawn.images[:2], other.images[:2])
    images = load("digits", "test", "").x[:3]
    with pytest.raises(ValueError, match="condition of nothing: allowed are labels"):
        run.log_likelihood(jax.random.key(0), images)
    latents = run.encode(jax.random.key(0), images, labels=labels)
    other = run.encode(jax.random.key(0), images, labels=[3, 1, 5])
    np.testing.assert_array_equal(latents[:2], other[:2])
    assert not np.array_equal(latents[2], other[2])
    with pytest.raises(ValueError, match="condition of nothing: allowed are labels"):
        run.encode(jax.random.key(0), images)


@pytest.mark.thorough
def test_a_pair_that_is_interpolated_is_of_one_class(tiny_run, tmp_path):
    workdir = tiny_run("classes", tmp_path)
    few = ("--config.sampling.num_pairs=2", "--config.sampling.num_between=1")
    loose = ("--config.sampling.rtol=1e-2", "--config.sampling.atol=1e-2")
    succeed("--mode=interpolate", *few, *loose, cwd=tmp_path)
    with np.load(workdir / "interpolation.npz") as arrays:
        assert (arrays["labels"][:, 0] == arrays["labels"][:, 1]).all()


def test_pairs_are_of_one_class():
    np.testing.assert_array_equal(pairs(np.asarray([0, 1, 0, 1, 1])), [[0, 2], [1, 3]])


@pytest.mark.thorough
def test_labels_and_guidance_by_the_command_line(tiny_run, tmp_path):
    """The classes asked for in turn, a row for each in the picture, and two evaluations for one."""
    workdir = tiny_run("classes", tmp_path)
    sample = ("--mode=sample", "--config.sampling.num_steps=2", "--config.sampling.num_samples=5")
    guided = ("--config.sampling.labels=3,1", "--config.sampling.guidance=2.0")
    told = succeed(*sample, *guided, cwd=tmp_path)
    assert "5 images, NFE 6" in told
    with np.load(workdir / "samples.npz") as arrays:
        first = dict(arrays)
    assert first["labels"].tolist() == [3, 1, 3, 1, 3]
    # Two rows of two images, 8 pixels each, a line between, magnified 8 times.
    assert Image.open(workdir / "samples.png").size == (8 * 17, 8 * 17)
    plain = succeed(*sample, "--config.sampling.labels=3,1", cwd=tmp_path)
    assert "of another guidance" in plain and "NFE 3" in plain
    with np.load(workdir / "samples.npz") as arrays:
        assert not np.array_equal(arrays["images"], first["images"])
    # In an interval beyond all levels it is without effect.
    beyond = (*guided, "--config.sampling.guidance_interval=1e8,1e9")
    told = succeed(*sample, *beyond, "--output=beyond", cwd=tmp_path)
    assert "NFE 3" in told
    with (
        np.load(workdir / "samples.npz") as plain,
        np.load(tmp_path / "beyond/samples.npz") as arrays,
    ):
        np.testing.assert_array_equal(arrays["images"], plain["images"])
    for wrong, line in (
        ("--config.sampling.labels=3,10", "sampling.labels = (3, 10): allowed are classes from 0"),
        ("--config.sampling.guidance=-1", "sampling.guidance = -1.0: allowed are numbers of at"),
    ):
        assert line in refused(*sample, wrong, cwd=tmp_path)


MOONS = (
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.training.batch_size=16",
    "--config.training.num_steps=2",
    "--config.training.sample_every=0",
    "--config.sampling.method=dpmpp",
)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "settings"), [("vp_moons", MOONS), ("vp_digits", TINY)])
def test_the_conditional_variants_train_and_are_guided(tmp_path, name, settings):
    """By the commands of docs/control.md, with a small network and few steps."""
    workdir = tmp_path / "runs" / f"{name}-conditional"
    config = f"--config={CONFIGS / f'{name}.py'}:conditional"
    succeed("--mode=train", config, *settings, cwd=tmp_path)
    few = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=4")
    guided = ("--config.sampling.labels=1,0", "--config.sampling.guidance=2.0")
    told = succeed("--mode=sample", "--workdir", workdir, *few, *guided, cwd=tmp_path)
    assert "NFE 6" in told
    with np.load(workdir / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 0, 1, 0]
    assert (workdir / "samples.png").exists()


def test_guidance_needs_classes(tiny_run, tmp_path):
    tiny_run("digits", tmp_path)
    line = refused("--mode=sample", "--config.sampling.guidance=2.0", cwd=tmp_path)
    assert line == (
        "error: config.sampling.guidance = 2.0: allowed are 1 (none), as the model has no classes "
        "(config.model.class_conditional = False)"
    )
