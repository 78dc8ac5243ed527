"""The nine recorded networks, converted, against the numbers of the original code bases.

Tolerances are those that come with the recordings. In float64 everything is: weights, frequencies,
tables and times. In float32 ours is held against the original's float64: its own float32 has the
cancellation of 1 - exp(-B) at small times.
"""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build
from score_sde.convert import score_sde_pytorch
from score_sde.convert.original import arrays as original_arrays
from score_sde.discrete import discretization
from score_sde.likelihood import log_likelihood
from score_sde.losses import level_error, weighted_error
from score_sde.training import step as training_step
from score_sde.training.optimizers import learning_rate_schedule, optimizer
from score_sde.training.state import TrainState
from tests.cases import only
from tests.commands import as_users_have_it
from tests.convert.originals import NAMES, describe, load, source, spec_of

# What the original could not run has no record.
LIKELIHOODS = tuple(
    name for name in NAMES if name not in ("ve_ncsnpp_discrete", "ve_ncsnpp_pyramid")
)
RUNS = tuple(name for name in NAMES if "flax" not in name and name != "ve_ncsnpp_discrete")


# A network under each process; one is a Flax file.
QUICK = ("vp_ddpmpp_continuous", "flax_subvp_ddpmpp_continuous", "ve_ncsnpp_options")
# Scores and losses: VE with FIR, and DDPM's chain.
IN_FLOAT64 = ("ve_ncsnpp_continuous", "vp_ddpm_discrete")


@pytest.fixture(scope="module", params=only(QUICK, NAMES))
def named(request, reference_dir):
    return request.param, load(reference_dir, request.param)


@cache
def in_fours(apply):
    """The network, compiled for four images alone; fewer are filled up. Equal networks share it: a
    compilation each, for scores, losses and runs. Convolutions in float64 are loops of XLA's own:
    enough work for optimized code (tests/conftest.py) to pay."""
    optimized = {"xla_backend_optimization_level": 1} if jax.config.jax_enable_x64 else None
    compiled = jax.jit(apply, compiler_options=optimized)

    def call(params, x, noise, condition):
        rows = np.minimum(np.arange(4), len(x) - 1)
        return compiled(params, x[rows], noise[rows], condition)[: len(x)]

    return call


def model_of(original, params, levels="smooth"):
    return build.model(original.config, in_fours(original.apply), params, levels=levels)


def score_errors(original):
    """The largest error of the score at each recorded time, and of each image of the mixed batch,
    relative to the largest value; and that of the raw weights."""
    arrays = original.arrays
    dtype = jax.tree.leaves(original.params)[0].dtype

    def error(params, t, x, expected):
        score = model_of(original, params, levels="original")
        ours = score(jnp.asarray(x, dtype), jnp.asarray(t, dtype))
        return np.abs(ours - expected).max(axis=(1, 2, 3)), np.abs(expected).max(axis=(1, 2, 3))

    errors = []
    for index, t in enumerate(arrays["t"]):
        apart, size = error(
            original.params, np.repeat(t, 2), arrays["x"][index], arrays["score_f64"][index]
        )
        errors.append(apart.max() / size.max())
    t, x = arrays["t_mixed"], arrays["x_mixed"]
    apart, size = error(original.params, t, x, arrays["score_mixed_f64"])
    raw, raw_size = error(original.raw_params, t, x, arrays["score_mixed_rawweights"])
    # These are recorded in float32 only, whose std cancels at small times (VP, sub-VP).
    late = t > 1e-2
    return [*errors, *(apart / size)], (raw / raw_size)[late]


def test_scores(named):
    name, original = named
    errors, raw = score_errors(original)
    # Fourier features of log sigma: arguments of several hundred radians.
    tolerance = 2e-4 if original.config.model.embedding == "fourier" else 1e-4
    assert max(errors) < tolerance, name
    assert max(raw) < tolerance, name


def losses(original):
    """Ours over the recorded ones (their float64), all forms of the loss; minus 1."""
    arrays, config = original.arrays, original.config
    sde, score = build.sde(config), model_of(original, original.params)
    dtype = jax.tree.leaves(original.params)[0].dtype
    x0, z = (jnp.asarray(arrays[f"loss_{what}"], dtype) for what in ("batch", "z"))
    found = {}
    for mean in (0, 1):
        if config.model.num_levels:
            chain = discretization(sde).chain(config.model.num_levels)

            def score_of(x, level):
                noise = score.at_level(level)
                return score.score_at(x, jax.tree.map(lambda a: a.astype(x.dtype), noise))

            level = jnp.asarray(arrays["loss_labels"].astype(np.int32))
            loss = level_error(chain, score_of, x0, level, z, reduce_mean=bool(mean))
            found[f"loss_discrete_mean{mean}"] = jnp.mean(loss)
            continue
        t = arrays["loss_t"]
        if "loss_u" in arrays:  # the times in float64
            t = 1e-5 + arrays["loss_u"].astype(np.float64) * (1.0 - 1e-5)
        t = jnp.asarray(t, dtype)
        for likelihood in (0, 1):
            weight = jnp.ones_like(t)
            if likelihood:
                weight = jnp.square(sde.diffusion(t) / sde.sigma(t))
            loss = weighted_error(sde, score, x0, t, z, weight, reduce_mean=bool(mean))
            found[f"loss_sde_mean{mean}_lw{likelihood}"] = jnp.mean(loss)
    return {key: float(value / arrays[f"{key}_f64"]) - 1.0 for key, value in found.items()}


def run_of_the_sampler(original):
    """The recorded run of the faithful sampler with its own noise, in the data's range [0, 1]."""
    arrays, config = original.arrays, original.config
    config = config.copy_and_resolve_references()
    num_steps = int(arrays["pc_N"])
    with config.unlocked():
        config.sampling.num_steps = num_steps
        if config.model.num_levels:  # its labels are those of as many levels
            config.model.num_levels = num_steps
    sampler, sde = build.sampler(config), build.sde(config)
    score = build.model(config, in_fours(original.apply), original.params, levels="original")
    draws = sampler.corrections + 1

    x = mean = jnp.asarray(arrays["pc_prior_randn"]) * sde.prior_std()
    noise = arrays["pc_noise"].reshape(num_steps, draws, *x.shape)
    for t, z in zip(sampler.times(sde), noise, strict=False):
        t = jnp.full(len(x), t, x.dtype)
        x, mean = sampler.level(sde, score, x, t, t, jnp.asarray(z))
    return (mean + 1.0) / 2.0 if config.model.centered else mean


@pytest.mark.parametrize("name", only(("vp_ddpm_discrete", *QUICK), RUNS))
def test_runs_of_the_sampler(name, reference_dir):
    original = load(reference_dir, name)
    expected = original.arrays["pc_x_f64"]
    ours = run_of_the_sampler(original)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def bits_per_dim(original, tolerance):
    """Of the recorded images with the recorded probe."""
    arrays, config = original.arrays, original.config
    dtype = jax.tree.leaves(original.params)[0].dtype
    data, probe = (jnp.asarray(arrays[f"lik_{what}"], dtype) for what in ("data", "eps"))
    likelihood = log_likelihood(
        jax.random.key(0),
        build.sde(config),
        build.model(config, original.apply, original.params),
        data,
        rtol=tolerance,
        atol=tolerance,
        probes=probe[:, None],
    )
    dims = data[0].size
    return -likelihood.log_prob / (dims * np.log(2.0)) + arrays["lik_offset"]


@pytest.mark.thorough
def test_bits_per_dim_of_one(reference_dir):
    """In float32 and at 1e-6, against the converged recording: 1e-3."""
    original = load(reference_dir, "vp_ddpmpp_continuous")
    expected = original.arrays["lik_bpd_tight"]
    np.testing.assert_allclose(bits_per_dim(original, 1e-6), expected, rtol=0, atol=1e-3)


def in_float64(function, directory, name):
    """What a function says of a recorded network in float64."""
    with (
        as_users_have_it(),
        jax.enable_x64(True),
        jax.default_matmul_precision("highest"),
    ):
        return function(load(directory, name, jnp.float64))


def scores_and_losses(original):
    errors, raw = score_errors(original)
    return [float(max(errors)), float(max(raw)), losses(original)]


@pytest.mark.parametrize("name", only(IN_FLOAT64, NAMES))
def test_scores_and_losses_in_float64(name, reference_dir):
    """1e-9 (1e-7 for the Fourier features' hundreds of radians); losses to 1e-7, as recorded times
    are rounded to float32 where there is no `loss_u`."""
    score, raw, found = in_float64(scores_and_losses, reference_dir, name)
    fourier = describe(reference_dir, name).model.embedding == "fourier"
    assert score < (1e-7 if fourier else 1e-9), score
    assert raw < 1e-4, raw  # recorded in float32
    assert max(map(abs, found.values())) < 1e-7, found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_bits_per_dim_in_float64(name, reference_dir):
    """At 1e-8 against the converged recordings: 1e-4, 1e-3 for the sensitive vp_ddpm_discrete. The
    Flax files have none; theirs is SciPy's RK45 at 1e-5, whose error is 2e-2."""
    ours = in_float64(lambda o: np.asarray(bits_per_dim(o, 1e-8)), reference_dir, name)
    with np.load(reference_dir / f"{name}.npz") as arrays:
        converged = "lik_bpd_tight" in arrays.files
        expected = arrays["lik_bpd_tight" if converged else "lik_bpd"]
    tolerance = (1e-3 if name == "vp_ddpm_discrete" else 1e-4) if converged else 2e-2
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


def test_five_training_steps(reference_dir):
    """From the recorded start: warm-up from 0, clipping (three of the norms are above 1), Adam, and
    averages whose decay warms up; through our own train step."""
    original = load(reference_dir, "vp_ddpmpp_continuous")
    recorded = dict(np.load(reference_dir / "train_steps.npz"))
    sde = build.sde(original.config)

    def loss_of(params, state, batch, key):
        weight = jnp.ones_like(batch["t"])
        score = build.model(original.config, original.apply, params)
        return weighted_error(sde, score, batch["x"], batch["t"], batch["z"], weight)

    adam = optimizer(learning_rate_schedule(5e-3, num_steps=1000, warmup_steps=4))
    params = original.raw_params
    state = TrainState(jnp.int32(0), params, adam.init(params), params)
    update = jax.jit(partial(training_step.update, loss_of, adam, 0.9999))
    for index in range(5):
        batch = {
            "x": jnp.asarray(recorded["batch"][index]),
            "t": jnp.asarray(recorded["t"][index]),
            "z": jnp.asarray(recorded["z"][index]),
        }
        state, metrics = update(state, batch, jax.random.key(0))
        # The recording's tolerances, against its float64.
        np.testing.assert_allclose(metrics["loss"], recorded["loss_f64"][index], rtol=1e-5)
        np.testing.assert_allclose(
            metrics["grad_norm"], recorded["grad_norm_f64"][index], rtol=1e-5
        )
        np.testing.assert_allclose(metrics["learning_rate"], recorded["lr"][index], rtol=1e-6)
    known = list(original_arrays(spec_of(original.config)))
    flat = {"after": state.params, "ema": state.ema}
    order = json.loads((reference_dir / "train_steps.json").read_text())["parameter_order"]
    assert [f"module.{array.torch}" for array in known] == order
    compared = 0
    for array in known:
        key = f"module.{array.torch}"
        for what, tree in flat.items():
            ours = tree
            for step in array.path.split("/"):
                ours = ours[step]
            if f"{what}_f64/{key}" in recorded:
                expected = score_sde_pytorch.layout(recorded[f"{what}_f64/{key}"], array.layer)
                np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
                compared += 1
    assert compared == sum(key.startswith(("after_f64", "ema_f64")) for key in recorded) > 0
    # Every other parameter by how far it moved.
    for what, end in (("change_norm", state.params), ("ema_change_norm", state.ema)):
        for array, expected in zip(known, recorded[what], strict=True):
            if array.path.endswith("/key/bias"):
                continue  # softmax does not see it: Adam makes steps of its gradient's rounding
            before, after = params, end
            for step in array.path.split("/"):
                before, after = before[step], after[step]
            moved = np.linalg.norm(np.asarray(after, np.float64) - before)
            # 2e-6 for each of its elements.
            assert abs(moved - expected) < 2e-6 * np.sqrt(after.size), (array.path, what)


def test_all_fixtures_are_here(reference_dir):
    found = {path.stem for kind in ("*.pth", "*.flax") for path in reference_dir.glob(kind)}
    assert found == set(NAMES)
    assert all(source(reference_dir, name).exists() for name in NAMES)
