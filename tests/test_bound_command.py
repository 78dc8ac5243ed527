"""`--mode likelihood` by the variational bounds, as a user would."""

import json

import numpy as np
import pytest

from tests.commands import DIGITS, ROOT, TINY, succeed

FEW = ("--config.likelihood.num_images=5", "--config.likelihood.batch_size=3")
BOUND = ("--config.likelihood.method=bound", "--config.likelihood.num_times=4")


def likelihood(workdir, *arguments):
    return succeed("--mode=likelihood", "--workdir", workdir, *FEW, *arguments, cwd=ROOT)


def found(workdir):
    with np.load(workdir / "likelihood.npz") as arrays:
        return dict(arrays), json.loads((workdir / "likelihood.json").read_text())


def check(arrays, summary, told):
    """Terms, figure and errors go together, and are what is said."""
    assert f"{summary['bits_per_dim']:.4f} +- {summary['standard_error']:.4f} bits/dim" in told
    unit = 64 * np.log(2)
    terms = sum(summary[name] for name in ("prior", "diffusion", "reconstruction"))
    assert summary["bits_per_dim"] == pytest.approx(terms, rel=1e-5)  # float32 sums
    assert summary["bits_per_dim"] == pytest.approx(-summary["log_prob"] / unit, rel=1e-5)
    assert arrays["prior"].shape == (5,) and summary["num_images"] == 5 and summary["complete"]
    assert f"diffusion {summary['diffusion']:.4f}" in told


@pytest.mark.thorough
def test_the_bound_beside_the_flows_likelihood(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    loose = ("--config.likelihood.rtol=1e-1", "--config.likelihood.atol=1e-1")
    likelihood(workdir, *loose)
    before, _ = found(workdir)
    told = likelihood(workdir, *BOUND, "--config.likelihood.num_images=3")
    # What the flow read is among the differences; its file is kept.
    assert "it is now likelihood.old.npz" in told and "likelihood.method" in told
    with np.load(workdir / "likelihood.old.npz") as old:
        np.testing.assert_array_equal(old["bits_per_dim"], before["bits_per_dim"])
    first, _ = found(workdir)
    told = likelihood(workdir, *BOUND)  # it goes on
    assert "3 items of these settings; going on after them" in told
    arrays, summary = found(workdir)
    np.testing.assert_array_equal(arrays["log_prob"][:3], first["log_prob"])
    check(arrays, summary, told)
    assert "(digits, test): upper bound: variational bound, up to Monte Carlo, 4 times each" in told
    assert "decoder: Gaussian density of dequantized items, uniform, 17 levels, t_min 1e-05" in told
    assert f"at most {summary['standard_error_times']:.4f} over times" in told
    assert summary["nfe"] == 5 and summary["steps"] is None and "NFE 5, " in told
    # The flow's settings are not read, nor do the numbers depend on them.
    told = likelihood(workdir, *BOUND, "--config.likelihood.rtol=1e-2")
    assert "not read with these settings: config.likelihood.rtol\n" in told
    assert "5 items of these settings; nothing to compute" in told


@pytest.mark.thorough
def test_the_bound_of_a_chains_levels(tiny_run, tmp_path):
    workdir = tiny_run("discrete", tmp_path)
    told = likelihood(workdir, "--config.likelihood.method=vlb")
    arrays, summary = found(workdir)
    check(arrays, summary, told)
    assert arrays["steps"].shape == (5, 99) and summary["nfe"] == 100
    assert sum(summary["steps"]) == pytest.approx(summary["diffusion"], rel=1e-4)
    assert "all 100 levels, one noise each" in told and "variance large" in told
    told = likelihood(workdir, *BOUND)
    assert "of another likelihood.method" in told and "4 times each" in told


def test_the_bound_of_levels_of_a_model_in_continuous_time(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    told = likelihood(workdir, *BOUND, "--config.likelihood.method=vlb")
    arrays, summary = found(workdir)
    check(arrays, summary, told)
    assert arrays["steps"].shape == (5, 3) and summary["nfe"] == summary["num_times"] == 4
    assert "4 levels evenly spread in time, one noise each" in told
    assert "17 levels, t_min 1e-05, variance large" in told


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["flow", "cosine", "sigmoid"])
def test_the_bounds_of_a_process_that_ends_in_noise(name, tmp_path):
    """No term of the prior is left; nothing is infinite."""
    keys = ("parameterization=velocity", "condition=log_sigma")
    own = (f"--config.sde.name={name}", *(f"--config.model.{key}" for key in keys))
    own = (*own, "--config.training.loss=flow", "--config.training.sample_every=0")
    workdir = tmp_path / "run"
    succeed("--mode=train", DIGITS, *TINY, *own, "--workdir", workdir, cwd=tmp_path)
    for method in ("bound", "vlb"):
        told = likelihood(workdir, *BOUND, f"--config.likelihood.method={method}")
        arrays, summary = found(workdir)
        check(arrays, summary, told)
        np.testing.assert_allclose(arrays["prior"], 0.0, atol=1e-5)  # float32's sine of pi / 2
