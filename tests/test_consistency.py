"""Easy Consistency Tuning: its loss by its formula, its sampler on a model that is consistent, and
the commands of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import consistency, load
from score_sde.losses import Pair, sample_times
from score_sde.modes.levels import loss_by_level
from score_sde.samplers import Consistency
from score_sde.schedules import EDM
from score_sde.score import pytree
from score_sde.sde import SDE, VPSDE, expand
from tests.commands import DIGITS, FEW, KINDS, command, succeed

KEY = jax.random.key(3)
STD = 0.5  # of Gaussian data


def level(sde, t):
    return jnp.exp(-0.5 * sde.log_snr(t))


@pytest.mark.parametrize("sde", [EDM(), VPSDE()], ids=["edm", "vp"])
@pytest.mark.parametrize("halvings", [0, 3])
def test_the_loss_is_the_paper_s(sde, halvings):
    """In float64: D = p y / (1 + nu), with y = x / alpha = x0 + nu z, by the formulas of section 3,
    and its gradient with respect to p, which is of the upper level alone."""
    with jax.enable_x64():
        p = jnp.float64(0.7)
        x0 = jax.random.normal(KEY, (64, 3), jnp.float64)
        t_min = 0.01

        def found(p):
            def denoised(x, t):
                return p * x / expand(sde.alpha(t) * (1.0 + level(sde, t)), x)

            return consistency.loss(KEY, sde, denoised, x0, halvings, t_min=t_min)

        key_t, key_z = jax.random.split(KEY)
        t, _ = sample_times(key_t, sde, 64, Pair("log_normal", "epsilon"), t_min, jnp.float64)
        z = np.asarray(jax.random.normal(key_z, x0.shape, jnp.float64))
        nu, least = np.asarray(level(sde, t)), float(level(sde, jnp.float64(t_min)))
        ratio = 1.0 - 2.0 ** -(halvings + 1) * (1.0 + 8.0 / (1.0 + np.exp(nu)))
        lower = np.where(nu * ratio > least, nu * ratio, 0.0)
        assert np.any(lower > 0) and (halvings > 0 or np.any(lower == 0))
        slope = np.asarray(x0 + nu[:, None] * z) / (1.0 + nu)[:, None]
        below = 0.7 * np.asarray(x0 + lower[:, None] * z) / (1.0 + lower)[:, None]
        error = 0.7 * slope - np.where(lower[:, None] > 0, below, x0)
        root = np.sqrt(np.mean(error**2, axis=1) + 0.00054**2)
        # The inverse of the log-SNR and its logarithm are of some 1e-12.
        np.testing.assert_allclose(found(p), (root - 0.00054) / (nu - lower), rtol=1e-7)
        gradient = np.mean(error * slope, axis=1) / root / (nu - lower)
        np.testing.assert_allclose(jax.jacobian(found)(p), gradient, rtol=1e-7)


@pytree
class Consistent:
    """The ends of the flow's paths, where the data are N(0, STD^2)."""

    sde: SDE

    def __call__(self, x, t):
        raise AssertionError("the sampler needs the denoised data alone")

    def denoised(self, x, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return expand(STD / jnp.sqrt((alpha * STD) ** 2 + sigma**2), x) * x


@pytest.mark.parametrize("sde", [EDM(), VPSDE()], ids=["edm", "vp"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_consistent_model_samples_the_data(sde, steps):
    samples = Consistency(steps).sample(KEY, sde, Consistent(sde), shape=(4000, 2))
    assert np.all(samples.nfe == steps)
    # 8000 numbers: the standard error of their standard deviation is STD / 126.
    np.testing.assert_allclose(samples.x.std(), STD, atol=4 * STD / 126)
    # A sample depends on its index alone.
    part = Consistency(steps).sample(KEY, sde, Consistent(sde), shape=(5, 2), first=7)
    np.testing.assert_allclose(part.x, samples.x[7:12], rtol=1e-5)


TUNED = (*KINDS["digits"], "--config.training.sample_every=0", "--config.training.loss=consistency")


def test_a_run_is_tuned_and_sampled(tiny_run, tmp_path, inputs):
    tiny_run("digits", tmp_path)
    source = "--config.training.from=runs/vp_digits"
    tune = ("--mode=train", DIGITS, "--workdir=tuned", *TUNED)
    told = succeed(*tune, source, "--config.training.num_steps=2", cwd=tmp_path)
    assert "weights: the averages of runs/vp_digits, step 4" in told
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    told = succeed(*tune, source, cwd=tmp_path)  # the source is no longer needed
    assert "weights: " not in told
    sample = ("--mode=sample", "--workdir=tuned", "--config.sampling.method=consistency", *FEW)
    assert "NFE 2" in succeed(*sample, cwd=tmp_path)
    none = "needs a score: a consistency model has none"
    inpaint = ("restore", f"--input={inputs}", "--task=inpaint", "--mask=half", "--degrade")
    for mode, *more in (("likelihood",), ("interpolate",), inpaint):
        done = command(f"--mode={mode}", *more, "--workdir=tuned", cwd=tmp_path)
        said = done.stderr.splitlines()[-1]
        assert said.startswith(
            "error: config.training.loss = 'consistency': allowed are paper, likelihood"
        )
        assert done.returncode == 2 and said.endswith(none)
    edit = ("--mode=restore", f"--input={inputs}", "--task=edit", *sample[1:])
    assert "2 images" in succeed(*edit, cwd=tmp_path)  # any sampler edits
    assert loss_by_level(load(tmp_path / "tuned")) == {}


MISTAKES = {
    "no teacher": ((), "", "'': allowed are workdirs of trained runs with the loss consistency"),
    "no run": ((), "none", "'none': no config.json there; allowed are runs' workdirs"),
    "another process": (
        ("--config.sde.name=ve",),
        "runs/vp_digits",
        "'runs/vp_digits': it has config.sde.name = 'vp', this config 've'",
    ),
    "another network": (
        ("--config.model.parameterization=epsilon",),
        "runs/vp_digits",
        "it has config.model.parameterization = 'velocity', this config 'epsilon'",
    ),
}


@pytest.mark.parametrize(("more", "source", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_weights_of_another_model_are_refused(tiny_run, tmp_path, more, source, said):
    tiny_run("digits", tmp_path)
    tune = ("--mode=train", DIGITS, "--workdir=tuned", *TUNED, *more)
    done = command(*tune, f"--config.training.from={source}", cwd=tmp_path)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and line.startswith("error: config.training.from = ")
    assert line.endswith(said)
    assert not (tmp_path / "tuned" / "config.json").exists()
