"""Models of discrete levels and of classes, through the command line and by every sampler."""

import jax
import numpy as np
import pytest

import score_sde
from score_sde import workdirs
from score_sde.config import changed
from score_sde.data import load
from tests.commands import succeed


def test_discrete_training_then_sampling(tiny_run, tmp_path):
    """DDPM's training by the command line; its own sampler, and those that take any score."""
    workdir = tiny_run("discrete", tmp_path)
    sampling = ("--config.sampling.method=pc", "--config.sampling.faithful=True")
    sampling = (*sampling, "--config.sampling.num_steps=100")
    succeed("--mode=sample", *sampling, "--config.sampling.num_samples=3", cwd=tmp_path)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["images"].shape == (3, 8, 8, 1)
    assert arrays["nfe"].tolist() == [100, 100, 100]

    saved = workdirs.load(workdir)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jax.numpy.asarray([0.123, 0.5])
    for method in ("pc", "ode", "ald", "unipc", "heun"):
        loose = {"sampling.rtol": 0.1, "sampling.atol": 0.1, "sampling.num_steps": 21}
        chosen = {"sampling.method": method, "sampling.faithful": True}
        run = score_sde.load(workdir, changed(saved, loose | chosen))
        # 99 t = 12.2 and 49.5: the original's chain has the sigmas of levels 12 and 49, and these
        # levels belong to other times than the process's.
        smooth = np.allclose(run.score(x, t), run.smooth_score(x, t), rtol=1e-3)
        assert smooth == (method == "ode")
        assert run.sample(jax.random.key(0), 3).images.shape == (3, 8, 8, 1)


def test_a_class_conditional_model(tiny_run, tmp_path):
    """Trained and given likelihoods by the command line; by every sampler, with the labels that it
    is asked for. An image depends on its own label only."""
    workdir = tiny_run("classes", tmp_path)
    few = ("--config.likelihood.num_images=3", "--config.likelihood.rtol=1e-2")
    out = succeed("--mode=likelihood", *few, "--config.likelihood.atol=1e-2", cwd=tmp_path)
    assert "over 3 images (digits, test, given labels)" in out
    saved = workdirs.load(workdir)
    for method in ("pc", "ode", "unipc"):
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

    few = ("--config.sampling.num_pairs=2", "--config.sampling.num_between=1")
    loose = ("--config.sampling.rtol=1e-2", "--config.sampling.atol=1e-2")
    succeed("--mode=interpolate", *few, *loose, cwd=tmp_path)
    arrays = np.load(workdir / "interpolation.npz")
    assert (arrays["labels"][:, 0] == arrays["labels"][:, 1]).all()  # a pair is of one class
    latents = run.encode(jax.random.key(0), images, labels=labels)
    other = run.encode(jax.random.key(0), images, labels=[3, 1, 5])
    np.testing.assert_array_equal(latents[:2], other[:2])
    assert not np.array_equal(latents[2], other[2])
    with pytest.raises(ValueError, match="condition of nothing: allowed are labels"):
        run.encode(jax.random.key(0), images)
