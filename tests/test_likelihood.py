"""Likelihoods against exact ones, and the recorded likelihood of the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde import oracle
from score_sde.likelihood import log_likelihood
from score_sde.samplers import ProbabilityFlow
from score_sde.sde import expand
from score_sde.spaces import bits_per_dim
from tests.cases import (
    EVERY,
    FIRST,
    PUBLISHED,
    overlapping_mixture,
    process_of,
    recorded_score,
    thorough,
)

DIMS = 4


@pytest.fixture(scope="module")
def mixture():
    return overlapping_mixture(DIMS)


@jax.jit
def truth(mixture, sde, x0):
    return mixture.log_prob(sde, x0, jnp.full(len(x0), 1e-5))


SIZES = [(name, 16) for name in FIRST]
SIZES += thorough(*((name, dims) for name in FIRST for dims in (2, 256)))


@pytest.mark.parametrize(("name", "dims"), SIZES)
def test_pointwise_with_the_oracles_own_end(name, dims):
    """Exact divergence, exact p_T: what is left is the solver, 1e-3 nats/dim by design at the
    default tolerance. At half of it the mean changes by less than 0.002 bits/dim."""
    sde, mixture = process_of(name), overlapping_mixture(dims)
    x0 = mixture.sample(jax.random.key(0), 256 if dims < 256 else 4)  # 256: as many tangents each
    exact = truth(mixture, sde, x0) / dims

    def of(tolerance):
        return log_likelihood(
            jax.random.key(1),
            sde,
            mixture.score(sde),
            x0,
            divergence="exact",
            rtol=tolerance,
            atol=tolerance,
            terminal_log_prob=Partial(_end, mixture, sde),
        )

    ours, finer = of(1e-5), of(5e-6)
    assert ours.latent.shape == x0.shape and ours.nfe.dtype == jnp.int32
    assert ours.by_probe.shape == (len(x0), 1)
    np.testing.assert_allclose(ours.log_prob / dims, exact, rtol=0, atol=1e-3)
    assert abs(np.mean(finer.log_prob - ours.log_prob)) / dims / np.log(2) < 0.002


def _end(mixture, sde, x, t):
    return mixture.log_prob(sde, x, t)


@pytest.mark.thorough
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_priors_mismatch_is_what_the_docstring_says(name):
    """At every point, for data of mean 1: what the default for p_T costs, without a solve."""
    sde, dims, num = PUBLISHED[name], 16, 4096
    data = oracle.gaussian(jnp.ones(dims), 0.25 * jnp.eye(dims))
    alpha, sigma = (float(f(jnp.full(1, sde.T))[0]) for f in (sde.alpha, sde.sigma))
    x = alpha * data.sample(jax.random.key(0), num)
    x = x + sigma * jax.random.normal(jax.random.key(1), (num, dims))
    error = np.asarray(sde.prior_log_prob(x) - data.log_prob(sde, x, jnp.full(num, sde.T)))
    expected = alpha * np.sqrt(dims) / sigma
    # A standard deviation of 4096 draws scatters by 1 %; the data's variance adds a little.
    assert abs(error.std() / expected - 1) < 0.06
    assert abs(error.mean() + 0.5 * expected**2) < 4 * expected / np.sqrt(num)
    assert error.std() / dims < 1e-2


@pytest.mark.parametrize("name", ["vp", *thorough("subvp", "ve")])
def test_on_average_with_the_prior_and_a_probe(name, mixture):
    """4096 draws, Hutchinson's estimate and the process's prior: 1e-3 nats/dim on average.

    The prior's mismatch is below KL(p_T || prior) / D, some 1e-5 at the paper's constants; the
    probe's error averages out: 3 standard errors of the mean difference are granted on top.
    """
    sde, num = process_of(name), 4096
    x0 = mixture.sample(jax.random.key(2), num)
    ours = log_likelihood(jax.random.key(3), sde, mixture.score(sde), x0)
    error = np.asarray(ours.log_prob - truth(mixture, sde, x0)) / DIMS
    assert abs(error.mean()) < 1e-3 + 3 * error.std() / np.sqrt(num)


@pytest.mark.thorough
def test_classes_belong_to_points(mixture):
    """A score with a label for each point: density and samples are those of each point's class."""
    sde, num = PUBLISHED["vp"], 64
    labels = jnp.arange(num) % 2
    means = jnp.asarray([[2.0] * DIMS, [-1.0] * DIMS])

    def by_class(x, t, *, labels):
        alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
        return (alpha * means[labels] - x) / (alpha**2 * 0.25 + sigma**2)

    score = Partial(by_class, labels=labels)
    x0 = means[labels] + 0.5 * jax.random.normal(jax.random.key(6), (num, DIMS))
    ours = log_likelihood(jax.random.key(7), sde, score, x0, divergence="exact")
    one_class = oracle.gaussian(jnp.zeros(DIMS), 0.25 * jnp.eye(DIMS))
    exact = one_class.log_prob(sde, x0 - means[labels], jnp.full(num, 1e-5))
    # As above; the prior at T, which is wrong by alpha(T) = 0.0066 times the mean, adds 0.02 at the
    # points that lie 3 standard deviations out.
    np.testing.assert_allclose(ours.log_prob / DIMS, exact / DIMS, rtol=0, atol=3e-2)
    assert abs(np.mean(ours.log_prob - exact) / DIMS) < 1e-2
    # The flow is affine, and ends within rounding and tolerance of where the class's own flow does.
    drawn = ProbabilityFlow().sample(jax.random.key(8), sde, score, shape=(num, DIMS)).x
    spread = 5 * 0.5 / np.sqrt(num / 2)
    for label in (0, 1):
        assert np.abs(drawn[labels == label].mean(0) - means[label]).max() < spread


@pytest.mark.thorough
def test_more_probes_scatter_less_and_agree_on_average(mixture):
    sde, num = PUBLISHED["vp"], 512
    x0 = mixture.sample(jax.random.key(4), num)

    def error(divergence, num_probes):
        ours = log_likelihood(
            jax.random.key(5),
            sde,
            mixture.score(sde),
            x0,
            divergence=divergence,
            num_probes=num_probes,
        )
        return np.asarray(ours.log_prob - exact.log_prob)

    exact = log_likelihood(jax.random.key(5), sde, mixture.score(sde), x0, divergence="exact")
    one, eight, gaussian = error("rademacher", 1), error("rademacher", 8), error("gaussian", 1)
    for estimate in (one, eight, gaussian):
        assert abs(estimate.mean()) < 3 * estimate.std() / np.sqrt(num) + 1e-3
    # Variance falls as 1 / probes; a ratio of two sample standard deviations of 512 scatters by
    # some 5 %.
    assert 0.28 < eight.std() / one.std() < 0.43
    assert (
        gaussian.std() > one.std()
    )  # Rademacher has the least variance of all probes (Hutchinson 1990)


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERY)
def test_there_and_back_returns_the_data(name, mixture):
    sde, t_min = process_of(name), 1e-3
    x0 = mixture.sample(jax.random.key(6), 64).reshape(64, 2, 2, 1)
    score = mixture.score(sde)
    latent = log_likelihood(jax.random.key(7), sde, score, x0, t_min=t_min).latent
    sampler = ProbabilityFlow(denoise=False, t_min=t_min)
    back = sampler.sample(jax.random.key(8), sde, score, latent).x
    # Some 100 steps there and back with an error of 1e-5 each, relative to states of size 1 (VE: up
    # to 50 at T, EDM up to 80). The discrete chain's beta jumps at each of its levels: a step's
    # error there is some times what the solver's estimate says.
    far = name in ("ve", "edm", "discrete")
    np.testing.assert_allclose(back, x0, atol=1e-2 if far else 2e-3)


def test_a_point_does_not_depend_on_its_batch_mates(mixture):
    sde = PUBLISHED["vp"]
    x0 = mixture.sample(jax.random.key(9), 12)
    score, key = mixture.score(sde), jax.random.key(10)
    whole = log_likelihood(key, sde, score, x0)
    parts = [log_likelihood(key, sde, score, x0[i : i + 4], first=i) for i in (0, 4, 8)]
    joined = np.concatenate([part.log_prob for part in parts])
    # The same arithmetic in batches of another size: rounding only.
    np.testing.assert_allclose(joined, whole.log_prob, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate([part.nfe for part in parts]), whole.nfe)


def test_nfe_is_what_was_evaluated(mixture):
    sde, calls = PUBLISHED["vp"], []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return mixture.score(sde)(x, t)

    x0 = mixture.sample(jax.random.key(11), 1)
    nfe = int(log_likelihood(jax.random.key(0), sde, counted, x0).nfe[0])
    jax.effects_barrier()
    assert len(calls) == nfe


@pytest.mark.parametrize("name", PUBLISHED)
def test_recorded_likelihood_and_ode_sampler(name, reference_dir):
    """The original's likelihood and ODE sampler under the analytic score, at the references'
    tolerances."""
    recorded = np.load(reference_dir / "solver_steps.npz")
    sde = PUBLISHED[name]
    score = recorded_score(sde, jnp.asarray(recorded["m"]), float(recorded["s0"]))

    def of(what):
        return recorded[f"{name}__{what}"]

    ours = log_likelihood(jax.random.key(0), sde, score, jnp.asarray(of("lik_data")))
    change = ours.log_prob - sde.prior_log_prob(ours.latent)
    np.testing.assert_allclose(change, of("lik_delta_logp"), rtol=1e-4)
    np.testing.assert_allclose(change, np.full(2, of("lik_delta_logp_exact")), rtol=1e-4)
    # Identity scaler and offset 8: 8-bit images in [0, 1], uniformly dequantized.
    bits = bits_per_dim(ours.log_prob - 48 * np.log(256), 48)
    np.testing.assert_allclose(bits, of("lik_bpd"), atol=1e-3)
    x = (
        ProbabilityFlow(denoise=False)
        .sample(jax.random.key(0), sde, score, jnp.asarray(of("ode_z")))
        .x
    )
    scale = np.abs(of("ode_x")).max() if name == "ve" else 1.0
    tolerance = 1e-4 if name == "ve" else 2e-4
    np.testing.assert_allclose(x, of("ode_x"), atol=tolerance * scale)
    np.testing.assert_allclose(x, of("ode_x_exact"), atol=tolerance * scale)


def test_a_solve_that_fails_says_why():
    sde = PUBLISHED["vp"]

    def broken(x, t):
        return jnp.where(t.reshape(-1, 1) > 0.5, jnp.nan, -x)

    with pytest.raises(RuntimeError, match="failed for 3 of 3 samples"):
        log_likelihood(jax.random.key(0), sde, broken, jnp.ones((3, 2)))
    with pytest.raises(RuntimeError, match="failed for 2 of 2 samples"):
        ProbabilityFlow().sample(jax.random.key(0), sde, broken, shape=(2, 2))


def test_an_unknown_divergence_and_no_probes_are_refused():
    with pytest.raises(ValueError, match="'hutchinson': allowed are rademacher, gaussian, exact"):
        log_likelihood(
            jax.random.key(0),
            PUBLISHED["vp"],
            lambda x, t: -x,
            jnp.ones((1, 2)),
            divergence="hutchinson",
        )
    with pytest.raises(ValueError, match="num_probes = 0: allowed are integers of at least 1"):
        log_likelihood(
            jax.random.key(0), PUBLISHED["vp"], lambda x, t: -x, jnp.ones((1, 2)), num_probes=0
        )


@pytest.mark.parametrize("t_min", [-0.1, 1.0, float("nan")])
def test_a_time_that_the_process_has_not_is_refused(t_min):
    with pytest.raises(ValueError, match=r"t_min = .*: allowed are times from 0 to below T = 1"):
        log_likelihood(
            jax.random.key(0), PUBLISHED["vp"], lambda x, t: -x, jnp.ones((1, 2)), t_min=t_min
        )
