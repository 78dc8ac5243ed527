"""Easy Consistency Tuning: its loss by its formula, its sampler on a model that is consistent, and
the commands of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build, consistency, load, objectives, presets
from score_sde.config import changed
from score_sde.data import describe
from score_sde.errors import UserError
from score_sde.losses import Pair, sample_times
from score_sde.modes.levels import loss_by_level
from score_sde.samplers import Consistency
from score_sde.schedules import EDM
from score_sde.score import pytree
from score_sde.sde import SDE, VPSDE, expand
from score_sde.training.state import TrainState
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


# The lower level r over the upper level t by stages of the training (Geng et al. 2024, section 3):
# 1 - (1 + 8 / (1 + e^t)) / 2^(stage + 1), and 0 where that is negative.
RATIOS = [
    (0, 0.5, 0.0),
    (0, np.log(7) - 1e-3, 0.0),  # it leaves 0 at ln 7
    (0, np.log(8), 1 / 18),
    (0, np.log(15), 1 / 4),
    (0, np.log(31), 3 / 8),
    (0, 80.0, 1 / 2),
    (1, np.log(5 / 3) - 1e-3, 0.0),  # here at ln(5 / 3)
    (1, np.log(3), 1 / 4),
    (1, np.log(7), 1 / 2),
    (1, 80.0, 3 / 4),
    (2, np.log(3), 5 / 8),
    (2, 80.0, 7 / 8),
    (7, np.log(3), 253 / 256),
    (7, 80.0, 255 / 256),
]


def test_the_lower_level_is_the_paper_s():
    """Of denoised data c t^2 and data 0 the loss is c (t^2 - r^2) / (t - r) = c (t + r)."""
    stage, t, ratio = np.asarray(RATIOS).T
    c = 1e6  # Huber's constant is less than 1e-7 of the distance

    def denoised(x, t):
        return c * expand(jnp.square(t), x) * jnp.ones_like(x)

    with jax.enable_x64():
        given = {"times_mean": jnp.log(t), "times_std": 0.0}  # a time for each of the examples
        x0, stage = jnp.zeros((len(t), 2), jnp.float64), jnp.asarray(stage)
        loss = jax.jit(lambda: consistency.loss(KEY, EDM(), denoised, x0, stage, **given))
        found = np.asarray(loss())
    np.testing.assert_allclose(found / (c * t) - 1.0, ratio, rtol=0, atol=1e-6)


def stages_of_loss(config, *steps):
    """The stages that the two levels of a training's loss show, after so many updates."""
    batch = {"x": jnp.zeros((64, 8, 8, 1), jnp.uint8), "condition": {}}

    def log_levels(step):
        told = []

        def apply(params, x, log_sigma, condition, **options):
            told.append(log_sigma)
            return jnp.zeros_like(x)

        state = TrainState(step, params=None, opt_state=None, ema=None)
        objectives.loss(config, apply, describe("digits"))(None, state, batch, KEY)
        return told

    levels = jax.jit(jax.vmap(log_levels))(jnp.asarray(steps, jnp.int32))
    lower, upper = sorted(np.exp(np.asarray(levels, np.float64)), key=np.sum)
    gap = 1.0 - lower / upper
    stages = np.log2((1.0 + 8.0 / (1.0 + np.exp(upper))) / gap) - 1.0
    inside = lower > 0.01  # of the others the data take the place
    found = [np.rint(np.median(row[each])) for row, each in zip(stages, inside, strict=True)]
    # float32's 1e-6 of a ratio is at most 3e-4 of a gap of 1 / 256.
    assert np.all(np.abs(stages - np.asarray(found)[:, None])[inside] < 1e-2)
    return found


def test_a_training_has_eight_stages_and_halve_every_sets_their_length():
    preset = changed(presets.load("ect_digits"), {"data.augment": 0.0})
    assert preset.training.num_steps == 1600  # 200 for each stage
    found = stages_of_loss(preset, 0, 199, 200, 1399, 1400, 1599)
    assert found == [0, 0, 1, 6, 7, 7]
    # 1500 are not eight equal parts: the last stage is the shorter one, and no ninth follows it.
    odd = changed(preset, {"training.num_steps": 1500})
    assert stages_of_loss(odd, 187, 188, 1499) == [0, 1, 7]
    typed = changed(preset, {"training.halve_every": 10})
    assert stages_of_loss(typed, 9, 10, 35) == [0, 1, 3]


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


@pytree
class Level:
    """A model whose denoised data are nothing from the level 50 on; below, so many times the level
    and x."""

    level: float
    x: float

    def denoised(self, x, t):
        known = self.level * expand(t, x) + self.x * x
        return jnp.where(expand(t < 50.0, x), known, jnp.zeros_like(x))


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        # Karras et al. 2022, eq. 5: halfway between 80 and 0.002 in t^(1/rho).
        ({}, ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7),
        ({"rho": 20.0}, ((80 ** (1 / 20) + 0.002 ** (1 / 20)) / 2) ** 20),  # the presets': 0.80
        ({"grid": "log_snr"}, 0.4),  # the geometric mean
    ],
    ids=["karras", "rho 20", "log_snr"],
)
def test_the_second_step_begins_at_the_grid_s_level(settings, level):
    """What is denoised there is the first step's data, here 0, with noise of that level."""
    sampler = Consistency(2, **settings)
    found = sampler.sample(KEY, EDM(), Level(1.0, 0.0), shape=(4000, 2)).x
    np.testing.assert_allclose(found, level, rtol=1e-5)  # powers in float32
    noised = sampler.sample(KEY, EDM(), Level(0.0, 1.0), shape=(4000, 2)).x
    # 8000 normal numbers: four standard errors of their mean and of their standard deviation.
    assert abs(noised.mean()) < 4 * level / np.sqrt(8000)
    np.testing.assert_allclose(noised.std(), level, rtol=4 / np.sqrt(16000))


TUNED = (*KINDS["digits"], "--config.training.sample_every=0", "--config.training.loss=consistency")


def test_a_consistency_model_has_no_score():
    with pytest.raises(UserError, match=r"for likelihoods, .*: a consistency model has none"):
        build.check_score(presets.load("ect_digits"), "likelihoods")


@pytest.mark.thorough
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
    "a network that is not told of the augmentation": (
        ("--config.data.augment=0.12",),
        "runs/vp_digits",
        "it has config.data.augment = 0.0, this config 0.12",
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
