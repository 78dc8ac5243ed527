"""Noise assigned to data: the least cost, what stays as it was, devices, and runs that have it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import score_sde
from score_sde.config import changed
from score_sde.errors import UserError
from score_sde.losses import LOSSES, denoising_score_matching, sample_times
from score_sde.pairing import PAIRINGS, transported
from score_sde.presets import load
from score_sde.schedules import Flow
from score_sde.score import Model
from tests.commands import DIGITS, TINY, command, refused, succeed

KEY = jax.random.key(5)


def batch(number, shape):
    x0, z = (jax.random.normal(key, (number, *shape)) for key in jax.random.split(KEY))
    return 0.5 * x0 + 1.0, z


def test_of_all_pairings_it_is_the_one_with_the_least_cost():
    x0, z = batch(6, (2, 2, 1))
    cost = np.sum(np.square(np.asarray(x0)[:, None] - np.asarray(z)[None]), axis=(2, 3, 4))
    orders = np.asarray(list(itertools.permutations(range(6))))
    best = orders[np.argmin(cost[np.arange(6), orders].sum(axis=1))]
    np.testing.assert_array_equal(jax.jit(transported)(x0, z), z[best])


def test_it_is_scipy_s_assignment_of_float64_distances():
    """Within jit, of a batch of usual size. Products rounded to float32 may swap two pairs that are
    alike: their costs differ by as little."""
    x0, z = batch(128, (8, 8, 1))
    found = np.asarray(jax.jit(transported)(x0, z), np.float64).reshape(128, -1)
    rows, columns = (np.asarray(each, np.float64).reshape(128, -1) for each in (x0, z))
    cost = cdist(rows, columns, "sqeuclidean")
    least = cost[linear_sum_assignment(cost)].sum()
    np.testing.assert_allclose(np.sum(np.square(rows - found)), least, rtol=1e-6)
    assert least < 0.95 * np.trace(cost)
    # The noise of the batch is what it was, in another order.
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(columns, axis=0))
    np.testing.assert_array_equal(PAIRINGS["independent"](x0, z), z)


def test_the_loss_is_that_of_the_pairs():
    """And its gradient: the pairs have none."""
    x0 = batch(16, (3,))[0]
    sde, key_t, key_z = Flow(), *jax.random.split(KEY)
    settings = {"loss": LOSSES["flow"], "t_min": 1e-3}

    def model(p):
        return Model(p, sde, lambda p, x, *_: p * x, "flow", "time")

    def found(p):
        own = settings | {"error": model(p).error, "pairing": "ot"}
        return jnp.mean(denoising_score_matching(KEY, sde, model(p), x0, **own))

    t, _ = sample_times(key_t, sde, 16, **settings)
    z = jax.jit(transported)(x0, jax.random.normal(key_z, x0.shape))

    def wanted(p):
        return jnp.mean(jnp.square(model(p).error(x0, t, z, "flow")))

    ours, theirs = (jax.jit(jax.value_and_grad(loss))(jnp.float32(0.7)) for loss in (found, wanted))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_many_devices_pair_the_whole_batch(run_python):
    code = """
import jax, numpy as np
from score_sde.pairing import transported
from score_sde.training.mesh import along_data, data_mesh
mesh = data_mesh()
assert mesh.size == 4
x0, z = (jax.random.normal(key, (32, 5)) for key in jax.random.split(jax.random.key(0)))
whole = np.asarray(jax.jit(transported)(x0, z))
spread = jax.jit(transported, in_shardings=(along_data(mesh),) * 2)(x0, z)
assert len(spread.sharding.device_set) == 4
np.testing.assert_array_equal(spread, whole)
"""
    run_python(code, {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"})


FLOW = (
    *("--config.sde.name=flow", "--config.training.loss=flow", "--config.model.condition=time"),
    *("--config.model.embedding=positional", "--config.sampling.eta=0"),
    *("--config.training.pairing=ot", "--config.training.schedule_steps=4"),
    "--config.training.sample_every=4",
)


def test_a_run_that_is_trained_with_it(tmp_path):
    train = ("--mode=train", DIGITS, *TINY, *FLOW, "--config.training.sample_every=0")
    succeed(*train, "--workdir=run", "--config.training.num_steps=2", cwd=tmp_path)
    line = refused("--mode=sample", "--workdir=run", "--config.sampling.eta=1", cwd=tmp_path)
    assert line.startswith("error: config.sampling.eta = 1.0: allowed are 0 with")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    edit = ("--mode=restore", "--workdir=run", "--task=edit", "--input=a.png")
    done = command(*edit, cwd=tmp_path)
    assert done.returncode == 2
    said = "config.training.pairing = 'ot': allowed are independent for --mode restore"
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.thorough
def test_a_run_in_parts_is_the_whole_one_and_not_that_of_independent_pairs(tmp_path):
    train = ("--mode=train", DIGITS, *TINY, *FLOW)
    succeed(*train, "--workdir=whole", cwd=tmp_path)
    assert (tmp_path / "whole" / "samples" / "step_000004.png").exists()
    succeed(*train, "--workdir=parts", "--config.training.num_steps=2", cwd=tmp_path)
    succeed(*train, "--workdir=parts", cwd=tmp_path)
    independent = ("--config.training.pairing=independent", "--workdir=other")
    succeed(*train, *independent, "--config.training.sample_every=0", cwd=tmp_path)
    runs = [score_sde.load(tmp_path / name) for name in ("whole", "parts", "other")]
    whole, parts, other = (jax.tree.leaves(run.score.params) for run in runs)
    for left, right in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(np.any(left != right) for left, right in zip(whole, other, strict=True))
    few = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=3")
    assert "3 images" in succeed("--mode=sample", "--workdir=whole", *few, cwd=tmp_path)


def test_a_condition_of_vectors_refuses_it():
    """Known only with the data."""
    flow = {"sde.name": "flow", "training.loss": "flow", "model.condition": "log_sigma"}
    config = changed(load("vp_moons"), flow | {"training.pairing": "ot"})
    data = np.random.default_rng(0).normal(size=(256, 2))
    with pytest.raises(UserError, match=r"^config\.training\.pairing = 'ot': .* conditions"):
        score_sde.train(config, data=data, vector=data[:, :1])
