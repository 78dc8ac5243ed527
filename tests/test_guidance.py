"""Guidance with exact scores: what it is at weights 0 and 1, in an interval, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.stats import ks_2samp

from score_sde import guidance, inverse, oracle
from score_sde.bounds import likelihood_bound
from score_sde.likelihood import log_likelihood
from score_sde.samplers import DDIM, ExponentialMultistep, Heun, ProbabilityFlow
from score_sde.score import Logits, Model, reverse_only
from score_sde.sde import VESDE, VPSDE
from tests.cases import SAMPLER_CASES, Own, SubVPSDE, thorough

SDE = VPSDE()
LABELS = jnp.asarray([0, 1, 2, 1], jnp.int32)
MEANS = jnp.asarray([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
WEIGHTS = jnp.asarray([0.5, 0.3, 0.2])


def network(params, x, noise, condition):
    """Denoised data, shifted by the label's row; no label, no shift."""
    shift = jax.nn.one_hot(condition["labels"], 3) @ params["table"]
    return jnp.tanh(x @ params["matrix"] + shift + 0.1 * noise[:, None])


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    params = {"matrix": rng.normal(size=(2, 2)), "table": rng.normal(size=(3, 2))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    return Model(params, SDE, network, "denoised", "log_snr")


compiled = jax.jit(lambda score, x, t: score(x, t))


def states(number: int = 4) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(1))
    t = jax.random.uniform(keys[1], (number,), minval=0.01, maxval=0.99)
    return jax.random.normal(keys[0], (number, 2)), t


def test_weights_0_and_1_are_the_scores_themselves(model):
    x, t = states()
    for weight, labels in ((1.0, LABELS), (0, jnp.full(4, -1, jnp.int32))):
        found, plain = (
            guidance.classifier_free(model, LABELS, weight),
            model.given({"labels": labels}),
        )
        np.testing.assert_array_equal(found(x, t), plain(x, t))
        np.testing.assert_array_equal(found.denoised(x, t), plain.denoised(x, t))


def test_learned_variances_are_those_of_the_guided_model(model):
    """The score is guided, and the share of the larger variance is the condition's own."""

    def twice(params, x, noise, condition):
        denoised = network(params, x, noise, condition)
        return jnp.concatenate([denoised, jnp.sin(denoised)], axis=-1)

    learned = dataclasses.replace(model, apply=twice, learned_variance=True)
    (x, t), given = states(), learned.given({"labels": LABELS})
    _, share = given.score_and_share(x, t)
    free = guidance.classifier_free(learned, LABELS, 3.0, interval=(0.0, 1e3))
    by_model = guidance.autoguidance(SDE, given, model.given({"labels": LABELS}), 2.0)
    by_classifier = guidance.classifier(SDE, given, lambda x, t: -x @ MEANS.T, LABELS, 2.0)
    for guided in (free, by_model, by_classifier):
        score, same = guided.score_and_share(x, t)
        np.testing.assert_allclose(score, guided(x, t), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(same, share, rtol=1e-5, atol=1e-6)
    other = guidance.classifier(SDE, lambda x, t: -x, lambda x, t: -x @ MEANS.T, LABELS)
    assert not hasattr(other, "score_and_share")


def test_the_formula_and_its_one_evaluation(model):
    x, t = states()
    guided = guidance.classifier_free(model, {"labels": LABELS.tolist()}, 3.0)
    given = model.given({"labels": LABELS})
    plain = model.given({"labels": jnp.full(4, -1, jnp.int32)})
    for at in ("__call__", "denoised"):
        expected = plain(x, t) if at == "__call__" else plain.denoised(x, t)
        first = getattr(given, at)(x, t)
        expected = expected + 3.0 * (first - expected)
        # The sums of a product over two columns round differently in another batch.
        np.testing.assert_allclose(getattr(guided, at)(x, t), expected, rtol=1e-5, atol=1e-5)
    shapes = []

    def seen(params, x, noise, condition):
        shapes.append((len(x), len(condition["labels"])))
        return network(params, x, noise, condition)

    guidance.classifier_free(dataclasses.replace(model, apply=seen), LABELS, 3.0)(x, t)
    assert shapes == [(8, 8)]


def test_autoguidance_is_away_from_the_worse_model():
    """Of N(0, 1 / 2) by N(0, 1): both scores are -x / v, and the denoised data alpha c x / v."""
    good, worse = (oracle.gaussian(jnp.zeros(2), c * jnp.eye(2)).score(SDE) for c in (0.5, 1.0))
    x, t = states()
    for weight in (0.0, 3.0):
        guided = guidance.autoguidance(SDE, good, worse, weight)
        alpha, sigma = (np.asarray(of(t), np.float64)[:, None] for of in (SDE.alpha, SDE.sigma))
        v = [c * alpha**2 + sigma**2 for c in (0.5, 1.0)]
        score = -np.asarray(x, np.float64) * (weight / v[0] + (1.0 - weight) / v[1])
        # float32 of numbers up to 20.
        np.testing.assert_allclose(guided(x, t), score, rtol=1e-4, atol=1e-4)
        denoised = (x + sigma**2 * score) / alpha
        np.testing.assert_allclose(guided.denoised(x, t), denoised, rtol=1e-4, atol=1e-4)


def test_an_interval_is_plain_sampling_outside_it(model):
    """nu = sigma / alpha from 0.3 to 1: some of the samples are in it, all, or none."""
    given = model.given({"labels": LABELS})
    low, high = (SDE.inverse_log_snr(-2.0 * jnp.log(jnp.asarray([nu])))[0] for nu in (0.3, 1.0))
    guided = guidance.classifier_free(model, LABELS, 3.0, (0.3, 1.0))
    everywhere = guidance.classifier_free(model, LABELS, 3.0)
    x, _ = states()
    before, inside, after = 0.9 * low, 0.5 * (low + high), 0.5 * (high + 1.0)
    for t, count in (
        (jnp.stack([before, after, before, after]), 1),
        (jnp.stack([inside, before, after, inside]), 2),
    ):
        # Compiled alike, the scores outside are the same to the last bit. Beside a sample that is
        # inside, they come from a batch of another size, whose sums may round differently.
        acts, found = np.asarray(t == inside), np.asarray(compiled(guided, x, t))
        expected = np.where(acts[:, None], everywhere(x, t), compiled(given, x, t))
        np.testing.assert_allclose(found, expected, rtol=0.0 if count == 1 else 1e-5)
        assert int(guided.evaluations(t)) == count


@pytest.mark.parametrize("progress", [None, *thorough(lambda share: None)], ids=["whole", "parts"])
def test_evaluations_of_every_network_are_counted(model, progress):
    def nfe(score, sampler=None):
        sampler = sampler or DDIM(10)
        drawn = sampler.sample(jax.random.key(0), SDE, score, shape=(4, 2), progress=progress)
        return int(drawn.nfe[0])

    assert nfe(guidance.classifier_free(model, LABELS, 2.0)) == 22
    assert nfe(guidance.classifier_free(model, LABELS, 1.0)) == 11
    given = model.given({"labels": LABELS})
    guided = guidance.autoguidance(SDE, given, given, 2.0)
    assert nfe(guided) == 22 and nfe(guided, Heun(5)) == 22
    assert nfe(guidance.classifier(SDE, guided, lambda x, t: x, LABELS % 2)) == 44
    # Of an interval only the steps inside: here those at which nu is at most 1.
    sampler = DDIM(10)
    inside = int(jnp.sum(SDE.log_snr(sampler.times(SDE)) >= 0.0))
    part = guidance.classifier_free(model, LABELS, 2.0, (0.0, 1.0))
    assert 0 < inside < 11 and nfe(part) == 11 + inside


def test_evaluations_of_the_flow(model):
    flow = ProbabilityFlow(solver="euler", num_steps=5)
    for score, each in (
        (guidance.classifier_free(model, LABELS, 2.0), 2),
        (guidance.classifier_free(model, LABELS, 2.0, (0.3, 1.0)), 2),
        (guidance.classifier_free(model, LABELS, 2.0, (1e9, 2e9)), 1),
    ):
        drawn = flow.sample(jax.random.key(0), SDE, score, shape=(4, 2))
        # The last denoising is at nu = 0.03: outside of the two intervals.
        ends = 2 if score.interval is None else 1
        assert drawn.nfe.tolist() == [5 * each + ends] * 4


@pytest.mark.thorough
def test_evaluations_within_a_loop_are_counted(model):
    """RePaint takes each of its steps several times, in a loop of its own."""
    project = inverse.replacement(SDE, None, lambda x: x[:, :1], jnp.zeros((1, 1)))
    sampler = inverse.RePaint(5, resamplings=3)
    nu = np.exp(-0.5 * np.asarray(SDE.log_snr(sampler.times(SDE)[:-1])))
    for low, high in ((0.3, 1.0), (0.0, 1e9), (1e9, 2e9)):
        score = guidance.classifier_free(model, LABELS, 2.0, (low, high))
        drawn = sampler.sample(jax.random.key(0), SDE, score, shape=(4, 2), project=project)
        inside = int(np.sum((nu >= low) & (nu <= high)))
        assert drawn.nfe.tolist() == [3 * (5 + inside) + (2 if low == 0.0 else 1)] * 4


def test_evaluations_of_the_bound(model):
    """Each of the times, and the decoder's."""
    given = model.given({"labels": LABELS})
    classified = guidance.classifier(SDE, given, lambda x, t: x, LABELS % 2)  # a pass and one back
    for score, each in ((given, 1), (classified, 3)):
        found = likelihood_bound(jax.random.key(0), SDE, score, jnp.zeros((4, 2)), num_times=3)
        assert found.nfe.tolist() == [4 * each] * 4
    guided = guidance.classifier_free(model, LABELS, 2.0)
    with pytest.raises(ValueError, match=r"score: guided by a .* belongs to no density"):
        likelihood_bound(jax.random.key(0), SDE, guided, jnp.zeros((4, 2)))


def classes() -> tuple[oracle.GaussianMixture, oracle.GaussianMixture]:
    """Three overlapping classes of unequal weight, and that of label 1 alone."""
    covariances = jnp.stack(
        [0.1 * jnp.eye(2), jnp.diag(jnp.asarray([0.3, 0.05])), 0.2 * jnp.eye(2)]
    )
    mixture = oracle.gaussian_mixture(WEIGHTS, MEANS, covariances)
    return mixture, oracle.gaussian(MEANS[1], covariances[1])


@pytest.mark.parametrize("sde", [SDE, SubVPSDE(), VESDE(0.01, 20.0), Own()])
def test_the_exact_class_posterior_makes_the_class(sde):
    """Classifier guidance is then the class's own score: a sampler cannot tell them apart."""
    mixture, alone = classes()
    labels = jnp.full(4, 1, jnp.int32)
    log_prob = lambda x, t: jnp.log(mixture.posterior(sde, x, t))  # noqa: E731
    guided = guidance.classifier(sde, mixture.score(sde), log_prob, labels)
    x, t = states()
    x = x * sde.sigma(t)[:, None] + sde.alpha(t)[:, None] * MEANS[jnp.asarray([0, 1, 2, 1])]
    exact = alone.score(sde)
    # The class's score is a difference of two that round at 1e-6 of their size 1 / sigma.
    size = np.asarray(1.0 / sde.sigma(t))[:, None]
    np.testing.assert_allclose(guided(x, t) / size, exact(x, t) / size, atol=2e-4)
    np.testing.assert_allclose(guided.denoised(x, t), exact.denoised(x, t), atol=2e-3)


@pytest.mark.parametrize("fast", [True, False])
def test_logits_of_a_network_guide_as_any_function(fast):
    """A network that is the exact posterior, and is given 999 t."""
    mixture, alone = classes()

    def network(params, x, noise, condition, reverse_only=False):
        assert reverse_only == fast
        return params["of_all"] + jnp.log(mixture.posterior(SDE, x, noise / 999.0))

    of_all = jnp.full((), 0.3)  # the same for all classes, which is no evidence
    model = Model({"of_all": of_all}, SDE, network, "epsilon", "time")
    logits = Logits(reverse_only(model) if fast else model)
    guided = guidance.classifier(SDE, mixture.score(SDE), logits.given({}), jnp.full(4, 1))
    x, t = states()
    size = np.asarray(1.0 / SDE.sigma(t))[:, None]  # as above
    np.testing.assert_allclose(guided(x, t) / size, alone.score(SDE)(x, t) / size, atol=2e-4)


LANGEVIN = "none+langevin"  # amplifies rounding until two draws have nothing in common
OTHERS = [name for name in SAMPLER_CASES if name not in ("pc", LANGEVIN)]


def drawn_by_both(name, number):
    """Draws guided by the exact class posterior, and by the class's own score; the same noise."""
    mixture, alone = classes()
    labels = jnp.full(number, 1, jnp.int32)

    def log_prob(x: Array, t: Array) -> Array:
        return mixture._components(SDE, x, t)[0]  # probabilities would be 0 far away

    guided = guidance.classifier(SDE, mixture.score(SDE), log_prob, labels)
    sampler = SAMPLER_CASES[name].make(num_steps=25)
    return [
        np.asarray(sampler.sample(jax.random.key(0), SDE, score, shape=(number, 2)).x)
        for score in (guided, alone.score(SDE))
    ]


@pytest.mark.parametrize("name", ["pc", *thorough(*OTHERS)])
def test_a_guided_sampler_draws_the_class(name):
    # Scores that are the same up to rounding.
    np.testing.assert_allclose(*drawn_by_both(name, 64), atol=5e-3)


@pytest.mark.thorough
def test_guided_langevin_steps_have_the_law_of_the_class():
    """1000 draws each, by the distance of Kolmogorov and Smirnov: above 0.087 in one of 1000 cases
    of one law (independent draws; these share their noise)."""
    guided, alone = drawn_by_both(LANGEVIN, 1000)
    distances = [ks_2samp(*pair).statistic for pair in zip(guided.T, alone.T, strict=True)]
    assert max(distances) < 0.087


def test_densities():
    """Weight 1 and scale 1 have one; other weights are refused with the reason."""
    mixture, alone = classes()
    x = alone.sample(jax.random.key(2), 3)
    labels = jnp.full(3, 1, jnp.int32)

    def log_prob(x: Array, t: Array) -> Array:
        return jnp.log(mixture.posterior(SDE, x, t))

    def density(score):
        return log_likelihood(jax.random.key(0), SDE, score, x, divergence="exact", t_min=1e-3)

    guided = guidance.classifier(SDE, mixture.score(SDE), log_prob, labels)
    exact = alone.log_prob(SDE, x, jnp.full(3, 1e-3))
    # The prior is wrong by alpha(T) |m| = 0.007: some hundredths of a nat.
    np.testing.assert_allclose(density(guided).log_prob, exact, atol=0.05)
    own, worse = alone.score(SDE), mixture.score(SDE)
    plain = density(guidance.autoguidance(SDE, own, worse, 1.0)).log_prob
    np.testing.assert_array_equal(plain, density(own).log_prob)
    for refused in (
        guidance.autoguidance(SDE, own, worse, 2.0),
        guidance.classifier(SDE, worse, log_prob, labels, 2.0),
        guidance.classifier(SDE, guidance.autoguidance(SDE, own, worse, 2.0), log_prob, labels),
    ):
        with pytest.raises(ValueError, match=r"score: guided by a .* belongs to no density"):
            density(refused)


def test_another_weight_and_other_labels_run_the_same_program(model):
    traced = []

    def seen(params, x, noise, condition):
        traced.append(1)
        return network(params, x, noise, condition)

    model = dataclasses.replace(model, apply=seen)
    sampler = ExponentialMultistep(3)
    for weight, labels in ((2.0, LABELS), (3.5, LABELS[::-1])):
        score = guidance.classifier_free(model, labels, weight)
        sampler.sample(jax.random.key(0), SDE, score, shape=(4, 2))
        if weight == 2.0:
            first = len(traced)
    assert len(traced) == first


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda m: guidance.classifier_free(m, LABELS, -1.0),
            r"weight = -1.0: allowed are finite numbers",
        ),
        (
            lambda m: guidance.classifier_free(m, LABELS, np.float32(-1)),
            r"weight = .*-1.0.*: allowed are finite numbers",
        ),
        (lambda m: guidance.classifier_free(m, LABELS, 2.0, (1.0,)), "interval = .*two noise lev"),
        (
            lambda m: guidance.classifier_free(m, LABELS[:3], 2.0)(*states()),
            "condition = 'of 3 samples': allowed are those of the 4 states",
        ),
        (lambda m: guidance.classifier_free(m, {"vector": 0}, 2.0), "condition = .*with labels"),
        (lambda m: guidance.classifier_free(m, 3, 2.0), r"labels.shape = \(\): allowed are \(B,\)"),
        (
            lambda m: guidance.classifier_free(m, [0, 3, -1, -2], 2.0),
            r"labels = \[3, -2\]: allowed are 0 to 2, and -1 for none",
        ),
        (lambda m: guidance.classifier_free(m, LABELS, 2.0, (2.0, 1.0)), "interval = .* rising"),
        (lambda m: guidance.classifier(SDE, m, m, LABELS, -1.0), "scale = -1.0"),
        (lambda m: guidance.classifier(SDE, m, m, LABELS, float("inf")), "scale = inf"),
        (
            lambda m: guidance.classifier(SDE, m, m, [0, -1]),
            r"labels = \[-1\]: allowed are 0 and above",
        ),
        (
            lambda m: guidance.classifier(SDE, m, Logits(m), [0, 3, -1]),
            r"labels = \[3, -1\]: allowed are 0 to 2",
        ),
    ],
)
def test_mistakes(model, make, line):
    with pytest.raises(ValueError, match=line):
        make(dataclasses.replace(model, num_classes=3))


def test_a_label_beyond_a_plain_classifier_is_not_left_unguided():
    """A function tells its number of classes only when it is called."""
    x, t = states()
    score = oracle.gaussian(jnp.zeros(2), jnp.eye(2)).score(SDE)

    @jax.jit
    def guided(labels):
        return guidance.classifier(SDE, score, lambda x, t: x[:, :2], labels)(x, t)

    found = np.isfinite(np.asarray(guided(jnp.asarray([0, 1, 2, -1])))).all(axis=1)
    assert found.tolist() == [True, True, False, False]


def test_labels_are_checked_where_they_are_known(model):
    """Compiled code knows none, and a model of no known number of classes takes all."""
    x, t = states()
    beyond = guidance.classifier_free(model, LABELS + 1, 2.0)(x, t)
    known = dataclasses.replace(model, num_classes=3)
    guided = jax.jit(lambda labels: guidance.classifier_free(known, labels, 2.0)(x, t))
    # Compiled as a whole, sums may round differently.
    np.testing.assert_allclose(guided(LABELS + 1), beyond, rtol=1e-5, atol=1e-5)
