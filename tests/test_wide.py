"""64-bit JAX, which diffrax's users switch on, and keys of JAX's other generators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde
from score_sde import presets
from score_sde.config import changed
from score_sde.data import load
from score_sde.samplers import ProbabilityFlow
from score_sde.spaces import item_keys
from tests.cases import SAMPLER_CASES, process_of, thorough
from tests.commands import as_users_have_it

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)


class Gaussian:
    """The score of data of standard deviation 1/2; a wide one's numbers are float64."""

    def __init__(self, sde, wide):
        self.sde, self.wide = sde, np.float64(1.0) if wide else 1.0

    def __call__(self, x, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return -x / (0.25 * alpha**2 + sigma**2)[:, None] * self.wide


def both(run):
    """What `run(wide)` returns without and with 64 bits."""
    narrow = run(False)
    with as_users_have_it(), jax.enable_x64(True):
        wide = run(True)
    return narrow, wide


# Steps with a corrector, and the adaptive solve; then one of each other kind of step.
@pytest.mark.parametrize("which", ["ancestral+ald", "ode", *thorough("ald", "ddim, eta 1", "deis")])
def test_float32_states_stay_so_and_get_the_same_noise(which):
    sampler, sde = SAMPLER_CASES[which].make(num_steps=4), process_of("vp")

    def run(wide):
        return sampler.sample(jax.random.key(0), sde, Gaussian(sde, wide), X, trajectory=True)

    narrow, wide = both(run)
    assert wide.x.dtype == wide.trajectory.dtype == jnp.float32
    # The grid is computed in 64 bits, then rounded. The flow's steps have errors of 1e-5 each.
    # Langevin's noise has the root of a difference that is 0 up to a rounding, 1e-7, in each of the
    # four levels' last steps: 4 roots of 1e-7, times noise of up to 2. Other noise would change the
    # states by 0.1.
    atol = 3e-3 if which == "ald" else 1e-4
    np.testing.assert_allclose(wide.x, narrow.x, rtol=1e-5, atol=atol)
    np.testing.assert_array_equal(wide.nfe, narrow.nfe)


@pytest.mark.parametrize("divergence", ["rademacher", "exact"])
def test_the_likelihood_and_the_latents(divergence):
    sde = score_sde.VPSDE()

    def run(wide):
        score = Gaussian(sde, wide)
        found = score_sde.log_likelihood(jax.random.key(0), sde, score, X, divergence=divergence)
        latents = found.latent if divergence == "exact" else ProbabilityFlow().encode(sde, score, X)
        return found.log_prob, latents if divergence == "exact" else latents.x

    for narrow, wide in zip(*both(run), strict=True):
        assert wide.dtype == jnp.float32
        np.testing.assert_allclose(wide, narrow, rtol=1e-4, atol=1e-4)  # solves of 1e-5 a step


@pytest.mark.slow  # a training, and solves, of both widths
def test_a_training_and_its_run():
    """Adam's first steps have the gradient's sign: where that is rounding, they differ by the
    learning rate. So the losses are compared, and one run's latents in both widths."""
    values = {"model.name": "tests.tiny:Tiny", "training.num_steps": 3, "training.log_every": 1}
    values |= {"training.batch_size": 16, "training.warmup_steps": 0, "sampling.batch_size": 4}
    values |= {"model.class_conditional": True, "training.label_dropout": 0.2, "data.flip": True}
    config, images = changed(presets.load("vp_digits"), values), load("digits", "test").x[:4]
    key, runs = jax.random.key(0), []

    def run(wide):
        with as_users_have_it():
            runs.append(score_sde.train(config))
            leaves = jax.tree.leaves(runs[-1].score.params)
            assert all(leaf.dtype == np.float32 for leaf in leaves)
            trained = dataclasses.replace(runs[-1], score=runs[0].score, smooth_score=runs[0].score)
            labels = np.arange(4, dtype=np.int32)
            latents = trained.encode(key, images, labels=labels)
            between = trained.interpolate(key, images[:2], images[2:], 1, labels=labels[:2])
        losses = np.asarray([line["loss"] for line in runs[-1].metrics], np.float32)
        return losses, latents, between.latents

    for narrow, wide in zip(*both(run), strict=True):
        assert wide.dtype == np.float32
        # Sums of some 1000 squares; solves of 1e-5 a step.
        np.testing.assert_allclose(wide, narrow, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_an_items_noise_does_not_depend_on_its_batch(impl):
    """Other generators draw all of a batch's numbers in one stream, whatever its keys."""
    key = jax.random.key(1, impl=impl)
    draw = jax.vmap(lambda key: jax.random.normal(key, (4,)))
    whole = draw(item_keys(key, 5))
    np.testing.assert_array_equal(draw(item_keys(key, 2, first=3)), whole[3:])
    other = draw(item_keys(jax.random.key(2, impl=impl), 5))
    assert len(np.unique(np.concatenate([whole, other]))) == 2 * 5 * 4
