"""The contract of scores: any callable, evaluated on the whole batch and never on a part of it.

Four Gaussians far apart, one for each sample of a batch. Whoever evaluates the score on a single
sample, a slice or another order ends at a wrong mean, or meets another shape.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.tree_util import Partial

from score_sde import guidance, inverse, oracle
from score_sde.bounds import likelihood_bound
from score_sde.likelihood import data_log_likelihood, log_likelihood
from score_sde.samplers import DDIM, SAMPLERS, PredictorCorrector, ProbabilityFlow
from score_sde.schedules import Cosine
from score_sde.score import Model, denoise
from score_sde.sde import VPSDE, expand
from score_sde.spaces import Pixels
from tests.cases import thorough

SDE = VPSDE()
MEANS = jnp.asarray([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]])
STD = 0.1
LABELS = jnp.arange(4)


def conditional(x: Array, t: Array, labels: Array) -> Array:
    """The exact score of a sample of each label's Gaussian."""
    number = len(labels)
    assert x.shape == (number, 2) and t.shape == (number,), f"evaluated on {x.shape}, {t.shape}"
    alpha, sigma = expand(SDE.alpha(t), x), expand(SDE.sigma(t), x)
    return (alpha * MEANS[labels] - x) / (jnp.square(alpha * STD) + jnp.square(sigma))


class Labelled:
    """An object with a method that is a score."""

    def __init__(self, labels: Array) -> None:
        self.labels = labels

    def score(self, x: Array, t: Array) -> Array:
        return conditional(x, t, self.labels)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided:
    """A pytree object, as classifier-free guidance is: two scores with the labels inside."""

    labels: Array
    weight: Array

    def __call__(self, x: Array, t: Array) -> Array:
        plain = conditional(x, t, jnp.zeros_like(self.labels))
        return plain + self.weight * (conditional(x, t, self.labels) - plain)


def captured_mask(x: Array, t: Array) -> Array:
    mask = jnp.asarray([True, False, True, False])[:, None]
    return jnp.where(mask, conditional(x, t, LABELS), conditional(x, t, jnp.asarray([1, 1, 3, 3])))


SCORES = {
    "lambda": lambda x, t: conditional(x, t, LABELS),
    "bound method": Labelled(LABELS).score,
    "functools.partial": functools.partial(conditional, labels=LABELS),
    "Partial by keyword": Partial(conditional, labels=LABELS),
    "Partial by position": Partial(lambda labels, x, t: conditional(x, t, labels), LABELS),
    "pytree object": Guided(LABELS, jnp.asarray(1.0)),
    "mask": captured_mask,
}
FLOWS = {control: ProbabilityFlow(step_control=control) for control in ("sample", "batch")}
STEPPED = {name: make for name, make in SAMPLERS.items() if name != "ode"}
KEPT = [name for name in STEPPED if name != "dpmpp"]  # which is unipc without its corrector


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_any_callable_is_evaluated_on_the_whole_batch(score):
    """At the ends of the flow, and in the density, each sample has its own Gaussian."""
    flow = FLOWS["sample"]
    drawn = flow.sample(jax.random.key(0), SDE, score, shape=(4, 2)).x
    # Of eight normal draws one in 2e5 times; the next Gaussian is 3 away.
    assert np.abs(drawn - MEANS).max() < 5 * STD
    # log of 1 / (2 pi STD^2): at the mean of a Gaussian in two dimensions.
    found = log_likelihood(jax.random.key(1), SDE, score, MEANS, divergence="exact").log_prob
    # The prior at T is wrong by alpha(T) times the mean, 0.0066 * 4.2: some hundredths of a nat.
    np.testing.assert_allclose(found, -np.log(2 * np.pi * STD**2), atol=0.05)


@pytest.mark.parametrize("control", FLOWS)
def test_encode_and_decode(control):
    score = SCORES["lambda"]
    latents = FLOWS[control].encode(SDE, score, MEANS).x
    assert np.abs(latents).max() < 0.1  # each sample is the mean of its own Gaussian
    # Both ways in some tens of steps, each to 1e-5 of the state.
    np.testing.assert_allclose(FLOWS[control].decode(SDE, score, latents).x, MEANS, atol=5e-4)


@pytest.mark.parametrize("name", [*KEPT, *thorough("dpmpp")])
def test_every_sampler(name):
    drawn = STEPPED[name](num_steps=60).sample(
        jax.random.key(0), SDE, SCORES["lambda"], shape=(4, 2)
    )
    assert np.abs(drawn.x - MEANS).max() < 1.0  # the Gaussians lie 3 apart


@pytest.mark.parametrize(
    ("predictor", "corrector"),
    [
        ("reverse_diffusion", "ald"),
        *thorough(
            ("euler_maruyama", "langevin"), ("ancestral", "none"), ("ancestral_large", "ald")
        ),
    ],
)
def test_predictors_and_correctors(predictor, corrector):
    sampler = PredictorCorrector(60, predictor, corrector)
    drawn = sampler.sample(jax.random.key(0), SDE, SCORES["lambda"], shape=(4, 2)).x
    assert np.abs(drawn - MEANS).max() < 1.0


@pytest.mark.parametrize("settings", [{"faithful": True}, *thorough({"probability_flow": True})])
def test_the_forms_of_predictor_and_corrector(settings):
    sampler = PredictorCorrector(60, "reverse_diffusion", "langevin", **settings)
    drawn = sampler.sample(jax.random.key(0), SDE, SCORES["lambda"], shape=(4, 2)).x
    assert np.abs(drawn - MEANS).max() < 1.0


def test_restorations_with_steps_of_their_own():
    """The first number is measured, each sample's own. The score and its labels say the second."""
    sampler = inverse.RePaint(20, resamplings=2)
    known = inverse.replacement(SDE, SCORES["lambda"], _first, MEANS[:, :1], 0.0)
    drawn = sampler.sample(jax.random.key(0), SDE, SCORES["lambda"], shape=(4, 2), project=known).x
    np.testing.assert_allclose(drawn[:, 0], MEANS[:, 0], atol=0.02)
    assert np.abs(drawn - MEANS).max() < 1.0

    # Particles take each other's places, so they have one label and one measurement.
    def particles(x, t):
        return conditional(x, t, jnp.ones(4, int))

    posterior = inverse.pigdm(SDE, particles, _first, MEANS[1:2, :1], 0.1)
    drawn = inverse.TwistedSMC(20).sample(jax.random.key(0), SDE, posterior, shape=(4, 2)).x
    assert np.abs(drawn - MEANS[1:2]).max() < 1.0


def _first(x: Array) -> Array:
    return x[:, :1]


class Classes:
    """A score function under a condition; those without a label have the mean 0."""

    def given(self, condition):
        labels = condition["labels"]

        def score(x, t):
            return conditional(x, t, jnp.maximum(labels, 0))  # the label 0 has the mean 0, too

        return score


def test_guidance():
    """Half as far again from the mean 0, where both Gaussians are equally wide. The batch is the
    whole one, or twice that, with as many labels."""
    by_classes = guidance.classifier_free(Classes(), LABELS, 1.5)
    by_scores = guidance.autoguidance(
        SDE, SCORES["lambda"], Partial(conditional, labels=jnp.zeros(4, int)), 1.5
    )
    for score in (by_classes, by_scores):
        drawn = DDIM(30).sample(jax.random.key(0), SDE, score, shape=(4, 2)).x
        assert np.abs(drawn - 1.5 * MEANS).max() < 1.0


@pytest.mark.parametrize("divergence", ["rademacher", "gaussian"])
def test_the_divergences_by_probes(divergence):
    """The score's Jacobian is a multiple of I: Rademacher probes are exact, others on average."""
    found = log_likelihood(
        jax.random.key(1), SDE, SCORES["mask"], MEANS, divergence=divergence, num_probes=64
    )
    exact = -np.log(2 * np.pi * STD**2)
    # z^2 over 64 probes and two dimensions scatters by sqrt(2 / 128), times 2 log(1 / STD) nats.
    wide = 0.05 if divergence == "rademacher" else 4 * 0.125 * 4.6
    np.testing.assert_allclose(np.asarray(found.log_prob)[[0, 2]], exact, atol=wide)


def test_the_bound():
    """Of the exact score it is log p, up to a scatter of one or two nats by 64 times. By another
    one's Gaussian it would lose 3^2 / (2 STD^2) = 450 nats."""
    found = likelihood_bound(jax.random.key(1), SDE, SCORES["lambda"], MEANS, num_times=64)
    np.testing.assert_allclose(found.log_prob, -np.log(2 * np.pi * STD**2), atol=10.0)


def test_importance_draws():
    """Images of one pixel: a label for each, and two draws of each image."""
    levels = jnp.asarray([[[[0]]], [[[3]]]], jnp.uint8)
    labels = jnp.asarray([0, 1])

    def score(x: Array, t: Array) -> Array:
        assert x.shape == (2, 1, 1, 1)
        alpha, sigma = expand(SDE.alpha(t), x), expand(SDE.sigma(t), x)
        mean = expand(jnp.asarray([-0.75, 0.75])[labels], x)
        return (alpha * mean - x) / (jnp.square(alpha * 0.25) + jnp.square(sigma))

    pixels = Pixels((1, 1, 1), 4, centered=True, dequantize=True)
    found = data_log_likelihood(
        jax.random.key(0), SDE, score, levels, pixels, num_importance=2, divergence="exact"
    )
    # The bin around each one's mean is two standard deviations wide and has 0.68 of the mass. The
    # other's mean is 6 away: 18 nats, 26 bits.
    np.testing.assert_allclose(found.bits_per_dim, -np.log2(0.68), atol=1.5)


@pytest.mark.thorough
def test_a_process_without_data_at_T():
    """Where alpha(T) = 0 the methods that need the denoised data alone sample from it."""
    sde = oracle_at_zero()
    target = oracle.gaussian(jnp.asarray([1.0, -1.0]), 0.04 * jnp.eye(2))
    score = target.score(sde)
    names = [name for name, make in SAMPLERS.items() if make().denoised_only]
    assert names == ["ddim", "dpmpp", "unipc", "ipndm", "deis", "consistency"]
    for name in names[:-1]:
        sampler = SAMPLERS[name](num_steps=20, grid="angle")
        drawn = np.asarray(sampler.sample(jax.random.key(0), sde, score, shape=(256, 2)).x)
        # 256 draws of standard deviation 0.2, and the solver's own error of some per cent.
        assert np.abs(np.mean(drawn, 0) - np.asarray([1.0, -1.0])).max() < 0.06, name
        assert np.abs(np.std(drawn, 0) - 0.2).max() < 0.05, name
    drawn = SAMPLERS["ddim"](20).sample(jax.random.key(0), sde, Plain(score), shape=(4, 2)).x
    assert np.abs(np.asarray(drawn) - np.asarray([1.0, -1.0])).max() < 1.0
    with pytest.raises(ValueError, match=r"alpha\(T\) = 0.* a T a little lower"):
        SAMPLERS["pc"](num_steps=5).sample(jax.random.key(0), sde, score, shape=(2, 2))
    with pytest.raises(ValueError, match=r"allowed are scores with a method denoised"):
        SAMPLERS["ddim"]().sample(jax.random.key(0), sde, lambda x, t: score(x, t), shape=(2, 2))
    with pytest.raises(ValueError, match="grid = 'karras': allowed are uniform"):
        SAMPLERS["ddim"](grid="karras").sample(jax.random.key(0), sde, score, shape=(2, 2))


class Plain:
    """A score with its denoised data that is no pytree."""

    def __init__(self, score):
        self.score = score

    def __call__(self, x, t):
        return self.score(x, t)

    def denoised(self, x, t):
        return self.score.denoised(x, t)


def test_a_model_that_divides_by_alpha_is_refused_where_that_is_0():
    """Not nan: by itself and guided. The levels of a chain end before."""

    def model(parameterization, num_levels=0):
        settings = (parameterization, "time", num_levels)
        return Model(None, Cosine(), lambda params, x, noise, condition: x, *settings)

    guided = guidance.autoguidance(Cosine(), model("epsilon"), model("epsilon"), 2.0)
    for score in (model("epsilon"), model("score"), guided):
        with pytest.raises(ValueError, match="that does not divide by alpha, such as models with"):
            DDIM().check_start(Cosine(), score)
    DDIM().check_start(Cosine(), model("velocity"))
    DDIM(5, num_levels=10).check_start(Cosine(), model("epsilon", 10))


def oracle_at_zero():
    from tests.cases import Own

    class ToTheEnd(Own):
        T = 1.0

    return ToTheEnd()


def test_the_denoised_data_of_the_oracle_are_tweedies():
    mixture = oracle.gaussian_mixture(
        jnp.asarray([0.3, 0.7]), MEANS[:2], jnp.stack([0.1 * jnp.eye(2), 0.2 * jnp.eye(2)])
    )
    score, t = mixture.score(SDE), jnp.asarray([0.1, 0.3, 0.5])
    x = jnp.asarray([[0.5, 0.1], [1.0, -1.0], [2.0, 0.3]])
    by_score = denoise(SDE, lambda x, t: score(x, t), x, t)
    # Float32: numbers of up to 3 with some roundings of 1e-7, over an alpha of 0.27 at least.
    np.testing.assert_allclose(score.denoised(x, t), by_score, rtol=1e-5, atol=1e-5)
