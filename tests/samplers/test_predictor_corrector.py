"""Predictor-corrector in `faithful` order against every recorded step and run of the original
code."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.discrete import original_step
from score_sde.samplers import PredictorCorrector
from score_sde.samplers.stepped import Context
from tests.cases import PUBLISHED, recorded_score

# What the original calls a predictor, and ours with its setting of the probability flow.
PREDICTORS = {
    "euler_maruyama_sde": ("euler_maruyama", False),
    "reverse_diffusion_sde": ("reverse_diffusion", False),
    "reverse_diffusion_ode": ("reverse_diffusion", True),
    "ancestral_sampling_sde": ("ancestral", False),
}
OURS = {"ancestral_sampling": "ancestral"}


@pytest.fixture(scope="module")
def arrays(reference_dir):
    with np.load(reference_dir / "solver_steps.npz") as file:
        return dict(file)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def recorded(arrays, request):
    """The recordings, to be computed with in either precision."""
    wide = request.param == np.float64
    with jax.enable_x64(wide):
        yield {key: array.astype(np.float64) if wide else array for key, array in arrays.items()}


@pytest.fixture(scope="module")
def runs(reference_dir):
    return json.loads((reference_dir / "solver_steps.json").read_text())["pc_runs"]


def exact(name, recorded):
    score = recorded_score(PUBLISHED[name], jnp.asarray(recorded["m"]), float(recorded["s0"]))
    return PUBLISHED[name], score


def close(value, recorded, key, index, err_msg=""):
    """Against the original's float64, to 1e-5 of the largest value, in float64 to 1e-8; its float32
    carries its own cancellation."""
    truth = recorded[f"{key}_f64"][index]
    tolerance = 1e-8 if value.dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(
        value, truth, rtol=0, atol=tolerance * np.abs(truth).max(), err_msg=err_msg
    )


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_recorded_predictor_steps(name, predictor, recorded):
    sde, score = exact(name, recorded)
    key = f"{name}__{predictor}"
    if f"{key}_x" not in recorded:  # the original raises there: no record
        assert (name, predictor) == ("subvp", "ancestral_sampling_sde")
        return
    ours, probability_flow = PREDICTORS[predictor]
    sampler = PredictorCorrector(
        num_steps=1000, predictor=ours, probability_flow=probability_flow, faithful=True
    )
    for index, time in enumerate(recorded["t"]):
        x, z = (jnp.asarray(recorded[f"{name}__{what}"][index]) for what in ("x", "noise"))
        t = jnp.full(len(x), time, x.dtype)
        step = original_step(sde, t, 1000)
        x, mean = sampler.predict(sde, score, x, t, jnp.full_like(t, 1e-3), step, z[0])
        close(x, recorded, f"{key}_x", index, f"t={time}")
        close(mean, recorded, f"{key}_xmean", index, f"t={time}")


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("steps", [1, 3])
def test_recorded_corrector_steps(name, corrector, steps, recorded):
    sde, score = exact(name, recorded)
    sampler = PredictorCorrector(
        num_steps=1000, corrector=corrector, corrector_steps=steps, faithful=True
    )
    for index, time in enumerate(recorded["t"]):
        x, z = (jnp.asarray(recorded[f"{name}__{what}"][index]) for what in ("x", "noise"))
        t = jnp.full(len(x), time, x.dtype)
        x, mean = sampler.correct(sde, score, x, t, original_step(sde, t, 1000), z[:steps])
        close(x, recorded, f"{name}__{corrector}_n{steps}_x", index, f"t={time}")
        close(mean, recorded, f"{name}__{corrector}_n{steps}_xmean", index, f"t={time}")


class Recorded(Context):
    """A context whose noise is the recorded one, in its tables."""

    def noise(self, x, index):
        return self.tables[index]


@partial(jax.jit, static_argnums=(0, 2))
def run_with(sampler, sde, score, x, noises):
    context = Recorded(sde, score, sampler.times(sde), noises, jnp.arange(len(x)))

    def body(carry, i):
        return sampler.step(*carry, i, context), None

    carry, _ = jax.lax.scan(body, (x, sampler.memory(x)), jnp.arange(sampler.num_steps))
    return sampler.end(*carry, context)


def test_recorded_runs(recorded, runs):
    """Whole runs with the recorded noise, through the sampler's own grid and steps."""
    counted = 0
    for run, settings in runs.items():
        name, noise = run.split("__")[0], jnp.asarray(recorded[run.split("__")[0] + "__pc_noise"])
        sde, score = exact(name, recorded)
        sampler = PredictorCorrector(
            num_steps=settings["N"],
            predictor=OURS.get(settings["predictor"], settings["predictor"]),
            corrector=settings["corrector"],
            corrector_steps=settings["n_steps"],
            snr=settings["snr"],
            probability_flow=settings["probability_flow"],
            denoise=settings["denoise"],
            faithful=True,
        )
        times = sampler.times(sde)
        np.testing.assert_allclose(
            times[:-1], recorded[f"{name}__pc_timesteps"], rtol=1e-5, atol=1e-6
        )
        x = sde.prior_std() * jnp.asarray(recorded[f"{name}__pc_prior_randn"])
        # In order of use: a level's corrector steps, then its predictor's.
        used = jnp.concatenate([noise[:, : sampler.corrections], noise[:, 2:]], axis=1)
        used = used.reshape(-1, *x.shape)
        out = run_with(sampler, sde, score, x, used)
        close(out, recorded, f"{run}_x", slice(None), run)
        counted += 1
    assert counted == len(runs) == 14


@pytest.mark.parametrize("predictor", ["ancestral", "ancestral_large"])
def test_clip_cuts_the_data_of_the_posterior(predictor):
    """DDPM's posterior mean (Ho et al. 2020, eq. 7) of the cut data, float32 beside float64."""
    sde, rng = PUBLISHED["vp"], np.random.default_rng(0)
    x, z, x0 = rng.normal(size=(3, 5, 4))
    t, s = np.linspace(0.2, 0.9, 5), np.linspace(0.1, 0.5, 5)
    steps = sde.reverse_step(*(jnp.asarray(each, jnp.float32) for each in (s, t)))
    a_t, a_s, sigma_t, sigma_s = (
        np.asarray(of(jnp.asarray(at, jnp.float32)), np.float64)[:, None]
        for of in (sde.alpha, sde.sigma)
        for at in (t, s)
    )
    beta = 1 - np.square(a_t / a_s)
    of_x0, of_x = a_s * beta / sigma_t**2, a_t / a_s * np.square(sigma_s / sigma_t)
    std = np.sqrt(beta) * (1 if predictor == "ancestral_large" else sigma_s / sigma_t)
    wanted = of_x0 * np.clip(x0, -0.5, 0.5) + of_x * x
    x, z, score, t = (
        jnp.asarray(each, jnp.float32) for each in (x, z, (a_t * x0 - x) / sigma_t**2, t)
    )
    sampler = PredictorCorrector(5, predictor, clip=0.5)
    found, mean = sampler.predict(sde, lambda *_: score, x, t, t, steps, z)
    np.testing.assert_allclose(mean, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, wanted + std * z, rtol=1e-4, atol=1e-5)
    drawn = sampler.sample(jax.random.key(0), sde, lambda x, t: -9 * x, shape=(3, 4))
    assert np.abs(drawn.x).max() <= 0.5


@pytest.mark.parametrize(("faithful", "order"), [(False, "ts"), (True, "tt")])
def test_the_corrector_is_at_the_time_that_was_reached(faithful, order):
    """Predictor at t, corrector at s; in the original's order the corrector first, both at t."""
    seen = []

    def score(x, t):
        seen.append(float(t[0]))
        return -x

    sampler = PredictorCorrector(50, corrector="ald", faithful=faithful)
    x, t, s = jnp.ones((2, 3)), jnp.full(2, 0.5), jnp.full(2, 0.25)
    sampler.level(PUBLISHED["vp"], score, x, t, s, jnp.ones((2, 2, 3)))
    assert seen == [{"t": 0.5, "s": 0.25}[which] for which in order]


def test_nfe_counts_every_evaluation():
    calls = []

    def score(x, t):
        calls.append(1)
        return -x

    sde, x = PUBLISHED["vp"], jnp.ones((2, 3))
    for predictor, corrector, corrections in (
        ("euler_maruyama", "none", 0),
        ("none", "langevin", 3),
        ("ancestral", "ald", 2),
    ):
        sampler = PredictorCorrector(
            num_steps=7,
            predictor=predictor,
            corrector=corrector,
            corrector_steps=max(corrections, 1),
            denoise=False,
        )
        calls.clear()
        t = jnp.full(2, 0.5)
        sampler.level(sde, score, x, t, 0.9 * t, jnp.ones((corrections + 1, 2, 3)))
        nfe = sampler.sample(jax.random.key(0), sde, lambda x, t: -x, shape=(2, 3)).nfe
        assert nfe.tolist() == [7 * len(calls)] * 2


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="predictor = 'heun': allowed are euler_maruyama"):
        PredictorCorrector(predictor="heun")
    with pytest.raises(ValueError, match="corrector = 'x': allowed are langevin, ald, none"):
        PredictorCorrector(corrector="x")
    with pytest.raises(ValueError, match="predictor = 'ancestral': allowed are euler_maruyama, re"):
        PredictorCorrector(predictor="ancestral", probability_flow=True)
