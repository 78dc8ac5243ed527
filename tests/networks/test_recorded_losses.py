"""The loss against those that the original code recorded, through the original's own networks."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.losses import weighted_error
from score_sde.score import network_score
from score_sde.sde import VESDE, VPSDE, SubVPSDE
from tests.networks import reference

CASES = {
    "vp_ddpmpp_continuous": (VPSDE(), "epsilon", "time"),
    "subvp_ddpmpp_continuous": (SubVPSDE(), "epsilon", "time"),
    "ve_ncsnpp_continuous": (VESDE(), "score", "log_sigma"),
    "flax_subvp_ddpmpp_continuous": (SubVPSDE(), "epsilon", "time"),
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_losses(name, reference_dir):
    """All four forms of the continuous loss: mean or half the sum, paper's or likelihood weight."""
    loaded = reference.load(reference_dir, name)
    sde, parameterization, condition = CASES[name]
    score = network_score(loaded.apply, sde, parameterization, condition)
    x0, t, z = (jnp.asarray(loaded.arrays[f"loss_{what}"]) for what in ("batch", "t", "z"))
    one = jnp.ones_like(t)
    weights = {0: one, 1: jnp.square(sde.diffusion(t) / sde.sigma(t))}
    for likelihood, weight in weights.items():
        for mean in (0, 1):
            ours = jnp.mean(
                weighted_error(
                    sde,
                    lambda x, t: score(loaded.params, x, t),
                    x0,
                    t,
                    z,
                    weight,
                    reduce_mean=bool(mean),
                )
            )
            # The references' own tolerance for losses in float32.
            recorded = loaded.arrays[f"loss_sde_mean{mean}_lw{likelihood}"]
            np.testing.assert_allclose(ours, recorded, rtol=1e-4)
