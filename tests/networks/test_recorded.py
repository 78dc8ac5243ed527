"""The networks against numbers that the original code bases computed with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.reference import load

NAMES = [
    "flax_subvp_ddpmpp_continuous",
    "subvp_ddpmpp_continuous",
    "ve_ncsnpp_continuous",
    "ve_ncsnpp_discrete",
    "vp_ddpmpp_continuous",
]


def condition_and_std(config, t, labels):
    """What the network is given, and what divides its output, in float64."""
    model, sde = config["model"], config["training"]["sde"]
    sigma_min, sigma_max = model["sigma_min"], model["sigma_max"]
    if sde == "vesde":
        if model["embedding_type"] == "fourier":
            sigma = sigma_min * (sigma_max / sigma_min) ** t
            return np.log(sigma), -sigma  # the score is + output / sigma
        table = np.geomspace(sigma_max, sigma_min, model["num_scales"])
        return labels, -table[labels.astype(int)]
    integral = model["beta_min"] * t + (model["beta_max"] - model["beta_min"]) * t**2 / 2
    variance = -np.expm1(-integral)
    return 999 * t, variance if sde == "subvpsde" else np.sqrt(variance)


@pytest.fixture(scope="module", params=NAMES)
def reference(request, reference_dir):
    return load(reference_dir, request.param)


def test_scores(reference):
    arrays = reference.arrays
    times, batch = arrays["labels"].shape
    t = np.repeat(arrays["t"].astype(np.float64), batch)
    condition, std = condition_and_std(reference.config, t, arrays["labels"].reshape(-1))
    x = arrays["x"].reshape(times * batch, *arrays["x"].shape[2:])
    output = jax.jit(reference.apply)(
        reference.params, jnp.asarray(x), jnp.asarray(condition, jnp.float32)
    )
    score = -np.asarray(output, np.float64) / std.reshape(-1, 1, 1, 1)
    # Against the same code in float64, so that its own cancelling std at small t does not count.
    # Float32 leaves 2e-6 of the largest value, at every time; 2e-5 is for other machines.
    for time in range(times):
        expected = arrays["score_f64"][time]
        error = np.abs(score.reshape(arrays["x"].shape)[time] - expected).max()
        assert error < 2e-5 * np.abs(expected).max(), (time, error)


def test_scores_of_mixed_times_and_raw_weights(reference):
    arrays = reference.arrays
    t = arrays["t_mixed"].astype(np.float64)
    count = reference.config["model"]["num_scales"]
    condition, std = condition_and_std(reference.config, t, np.round((1 - t) * (count - 1)))
    for params, name in ((reference.params, "score_mixed"), (reference.raw_params, None)):
        output = jax.jit(reference.apply)(
            params, jnp.asarray(arrays["x_mixed"]), jnp.asarray(condition, jnp.float32)
        )
        score = -np.asarray(output, np.float64) / std.reshape(-1, 1, 1, 1)
        # The tolerance of the recordings: 1e-4 of the largest value, which at t = 1e-3 and in
        # float32 the original's own std (1 - exp) does not keep for every image.
        for index in range(len(t)):
            expected = arrays[f"{name}_f64" if name else "score_mixed_rawweights"][index]
            tolerance = 1e-4 if name or t[index] > 1e-2 else 1e-3
            assert np.abs(score[index] - expected).max() < tolerance * np.abs(expected).max()
