"""A network for images that compiles in a moment, for tests of what is around a network."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@dataclass(frozen=True)
class Spec:
    """What `build.network` gives it."""

    channels: int
    num_classes: int = 0
    augmentation: int = 0
    logits: int = 0
    learned_variance: bool = False


class Tiny(nnx.Module):
    """Two pixel-wise layers, shifted by the noise level, the class and the augmentation."""

    Spec = Spec
    rank = 3

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        features = 4
        self.stem = nnx.Linear(spec.channels, features, rngs=rngs)
        self.noise = nnx.Linear(1, features, rngs=rngs)
        if spec.num_classes:
            self.labels = nnx.Embed(spec.num_classes, features, rngs=rngs)
        if spec.augmentation:
            self.changes = nnx.Linear(spec.augmentation, features, use_bias=False, rngs=rngs)
        channels = spec.channels * (2 if spec.learned_variance else 1)
        self.head = nnx.Linear(features, spec.logits or channels, rngs=rngs)
        self.pools = spec.logits > 0
        self.takes = ("labels",) if spec.num_classes else ()

    def __call__(self, x, noise, condition=None, *, dropout_key=None, reverse_only=False):
        given = dict(condition or {})
        shift = self.noise(0.05 * noise[:, None])
        if "augmentation" in given:  # in training alone
            shift = shift + self.changes(given.pop("augmentation"))
        assert tuple(given) == self.takes, condition
        if given:
            # Zeros for -1, a sample without label.
            table = self.labels.embedding[...]
            shift = shift + jax.nn.one_hot(given["labels"], len(table)) @ table
        h = jnp.tanh(self.stem(x) + shift[:, None, None])
        return self.head(h.mean((1, 2)) if self.pools else h)


class Hungry(Tiny):
    """It needs more memory than a process can have: 2 to the power of 52 bytes."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        self.much = nnx.Param(jnp.zeros(2**50))


class HungryHost(Tiny):
    """It needs as much of the host."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        np.zeros(2**50, np.float32)


class HungryKernel(Tiny):
    """XLA's kernels for CPUs find no memory; they say no more than this."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        raise jax.errors.JaxRuntimeError("INTERNAL: YNNPACK operation failed: error")


class Interrupted(Tiny):
    """Ctrl-C while compiled code asks Python code whether two arguments are equal."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        same = jax.jit(lambda argument: jnp.zeros(()), static_argnums=0)
        same(CtrlC()), same(CtrlC())


class CtrlC:
    """A value whose comparison is interrupted."""

    def __hash__(self):
        return 0

    def __eq__(self, other):
        raise KeyboardInterrupt
