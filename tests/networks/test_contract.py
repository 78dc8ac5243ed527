"""What every network must be, a user's own too; see `score_sde.networks`."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.networks import NETWORKS, abstract, init


class Line(nnx.Module):
    """A user's own: w x + b noise."""

    @dataclasses.dataclass(frozen=True)
    class Spec:
        channels: int
        num_classes: int = 0

    def __init__(self, spec, *, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (spec.channels,)))
        self.b = nnx.Param(jnp.zeros(()))

    def __call__(self, x, noise, condition=None, *, dropout_key=None, reverse_only=False):
        if condition:
            raise ValueError(f"condition {', '.join(condition)}: allowed are none")
        return self.w[...].reshape(1, -1) * x + self.b[...] * noise.reshape(-1, 1)


# The settings of a small one and the shape of its data.
SMALL = {
    "unet": (
        {"image_size": 4, "channels": 2, "width": 8, "multipliers": (1,), "num_blocks": 1}
        | {"attention_resolutions": ()},
        (4, 4, 2),
    ),
    "mlp": ({"features": 3, "width": 16, "depth": 1}, (3,)),
    "own": ({"channels": 3}, (3,)),
}


@pytest.mark.parametrize(("name", "network"), [*NETWORKS.items(), ("own", Line)])
def test_a_network_keeps_the_contract(name, network):
    settings, shape = SMALL[name]
    spec = network.Spec(**settings)
    assert spec == network.Spec(**settings) and hash(spec) == hash(network.Spec(**settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.num_classes = 3
    (apply, params), (again, same) = (init(partial(network, spec), jax.random.key(0)) for _ in "ab")
    assert apply == again and hash(apply) == hash(again)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x, noise = jnp.ones((2, *shape)), jnp.asarray([0.3, 2.0])
    for condition in (None, {}):
        for options in ({}, {"dropout_key": jax.random.key(1), "reverse_only": True}):
            call = partial(apply, **options)
            out = jax.eval_shape(call, params, x, noise, condition)
            assert (out.shape, out.dtype) == (x.shape, jnp.float32)
    with pytest.raises(ValueError, match="tokens"):
        jax.eval_shape(apply, params, x, noise, {"tokens": noise})
    if hasattr(spec, "logits"):  # it can be a classifier
        apply, classifier = abstract(partial(network, dataclasses.replace(spec, logits=5)))
        out = jax.eval_shape(apply, classifier, x, noise)
        assert (out.shape, out.dtype) == ((2, 5), jnp.float32)
