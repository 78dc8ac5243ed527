"""Operators of images: their values by hand, their transposes, and the tasks that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate

from score_sde.inverse import operators
from score_sde.inverse.base import transpose

X = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
KERNEL = jnp.asarray([[0.1, 0.2, 0.0], [0.3, 0.1, 0.1], [0.0, 0.1, 0.1]])
MASK = (jnp.arange(24).reshape(4, 6) % 3 == 0).astype(jnp.float32)
OPERATORS = {
    "inpaint": operators.inpaint(MASK),
    "outpaint": operators.outpaint(2, 3, 1, 2, (4, 6)),
    "colorize": operators.colorize(),
    "super_resolve": operators.super_resolve(2),
    "deblur": operators.deblur(KERNEL),
}


def by_hand(name):
    x = np.asarray(X)
    if name == "outpaint":
        inside = np.zeros_like(x)
        inside[:, 1:3, 2:5] = x[:, 1:3, 2:5]
        return inside
    return {
        "inpaint": x * np.asarray(MASK)[None, :, :, None],
        "colorize": x.sum(-1, keepdims=True) / np.sqrt(3),
        "super_resolve": x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4)),
        "deblur": correlate(x, np.asarray(KERNEL)[None, :, :, None], mode="reflect"),
    }[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_values_and_transposes(name):
    operator = OPERATORS[name]
    found = operator(X)
    np.testing.assert_allclose(found, by_hand(name), atol=1e-6)
    v = jax.random.normal(jax.random.key(1), found.shape)
    # <A x, v> = <x, A^T v>, sums of some hundred numbers of size 1.
    other = jnp.vdot(X, transpose(operator, v, X))
    np.testing.assert_allclose(jnp.vdot(found, v), other, atol=1e-4)


def test_another_mask_runs_the_same_program():
    traced = []

    @jax.jit
    def run(operator, x):
        traced.append(1)
        return operator(x)

    for mask in (MASK, 1.0 - MASK):
        run(operators.inpaint(mask), X)
    run(operators.super_resolve(2), X)
    run(operators.super_resolve(2), X)
    assert len(traced) == 2


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: operators.inpaint(jnp.ones((4, 5)))(X), r"mask.shape = .*\(4, 6, 3\)"),
        (lambda: operators.inpaint(jnp.ones(3)), r"mask.shape = \(3,\): allowed are \(H, W\)"),
        (lambda: operators.colorize()(X[..., :1]), "x.shape = .*several channels"),
        (lambda: operators.super_resolve(4)(X), "factor = 4: allowed are divisors .* 4 and 6"),
        (lambda: operators.super_resolve(0), "factor = 0: allowed are integers of at least 1"),
        (lambda: operators.deblur(jnp.ones((2, 3))), r"kernel.shape = \(2, 3\): .* both odd"),
    ],
)
def test_tasks_that_cannot_be(make, line):
    with pytest.raises(ValueError, match=line):
        make()


@pytest.mark.parametrize("std", [1.0, 4.0])
def test_a_blur_keeps_even_images(std):
    """Up to the edges, with a kernel larger than the image, too."""
    size = 2 * int(np.ceil(3 * std)) + 1
    found = operators.deblur(operators.gaussian_kernel(std, size))(jnp.full((1, 4, 6, 2), 0.7))
    np.testing.assert_allclose(found, 0.7, rtol=1e-5)


def test_a_blurs_kernel_has_sum_1():
    kernel = np.asarray(operators.gaussian_kernel(1.0, 5))
    assert abs(kernel.sum() - 1) < 1e-6 and kernel[2, 2] == kernel.max()
    np.testing.assert_allclose(kernel[2, 3] / kernel[2, 2], np.exp(-0.5), rtol=1e-5)
