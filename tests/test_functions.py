"""What a score reads: where an object that it reads was replaced, its program is traced anew."""

import functools

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.tree_util import Partial

from score_sde import guidance
from score_sde.samplers import SAMPLERS
from score_sde.score import denoise
from tests.test_contract import LABELS, MEANS, SDE, Labelled, conditional

PARTIAL = Partial(lambda x, t: conditional(x, t, LABELS_READ))


class Network(nnx.Module):
    """One whose module within is trained on, in place."""

    class Inner(nnx.Module):
        def __init__(self) -> None:
            self.labels = nnx.Param(LABELS)

        def move(self, labels: Array) -> None:
            self.labels[...] = labels

        def __call__(self, x: Array, t: Array) -> Array:
            return conditional(x, t, self.labels[...])

    def __init__(self) -> None:
        self.inner = self.Inner()


class Denoising:
    """A score that has its denoised data by another way."""

    def __call__(self, x, t):
        return conditional(x, t, LABELS)

    def denoised(self, x, t):
        return denoise(SDE, lambda x, t: conditional(x, t, LABELS_READ), x, t)


def swapped(score, change):
    """Samples of a score before and after a change of what it reads."""
    sampler, shape = SAMPLERS["ddim"](num_steps=20), (4, 2)
    found = []
    for step in (lambda: None, change):
        step()
        found.append(sampler.sample(jax.random.key(0), SDE, score(), shape=shape).x)
    return found


LABELS_READ = LABELS


def test_what_a_function_reads_may_be_replaced(monkeypatch):
    """jit knows a function by itself. What it reads counts, too: a stale result has no sign."""
    other, labels, owner = LABELS[::-1], LABELS, Labelled(LABELS)

    def by_closure(x, t):
        return conditional(x, t, labels)

    def rebind():
        nonlocal labels
        labels = other

    def by_global(x, t):
        return conditional(x, t, LABELS_READ)

    def by_a_function_within(x, t):
        def within():
            return LABELS_READ

        return conditional(x, t, within())

    def by_a_function_called(x, t):
        return by_global(x, t)

    def by_its_attribute(x, t):
        return conditional(x, t, by_its_attribute.labels)

    by_its_attribute.labels = LABELS

    def by_an_object(x, t):
        return owner.score(x, t)

    def to_global():
        monkeypatch.setitem(globals(), "LABELS_READ", other)

    def by_a_network(x, t):
        return network.inner(x, t)

    network, denoising = Network(), Denoising()
    # Twice the score less the same.
    guided = guidance.autoguidance(SDE, by_an_object, by_an_object, 2.0)
    by_partial = functools.partial(lambda unused, x, t: by_global(x, t), 0.0)

    for score, change in (
        (lambda: owner.score, lambda: setattr(owner, "labels", other)),
        (lambda: by_closure, rebind),
        (lambda: by_global, to_global),
        (lambda: by_a_function_within, to_global),
        (lambda: by_a_function_called, to_global),
        (lambda: by_partial, to_global),
        (lambda: denoising, to_global),
        (lambda: PARTIAL, to_global),
        (lambda: by_its_attribute, lambda: setattr(by_its_attribute, "labels", other)),
        (lambda: guided, lambda: setattr(owner, "labels", other)),
        (lambda: by_an_object, lambda: setattr(owner, "labels", other)),
        (lambda: by_a_network, lambda: network.inner.move(other)),
    ):
        monkeypatch.setitem(globals(), "LABELS_READ", LABELS)
        owner.labels = LABELS
        before, after = swapped(score, change)
        assert np.abs(before - MEANS).max() < 1.0 and np.abs(after - MEANS[::-1]).max() < 1.0


def test_what_a_function_reads_may_be_anything():
    """Objects in circles, without a module, and such as refuse to be looked at."""

    class Refusing:
        @property
        def __dict__(self):
            raise RuntimeError

    circle = [Refusing(), {1: 0, "a": 1}]
    circle.append(circle)
    found = {"conditional": conditional, "LABELS": LABELS, "circle": circle}
    exec("def score(x, t):\n    circle\n    return conditional(x, t, LABELS)", found)
    before, after = swapped(lambda: found["score"], lambda: found.update(LABELS=LABELS[::-1]))
    assert np.abs(before - MEANS).max() < 1.0 and np.abs(after - MEANS[::-1]).max() < 1.0


def test_a_function_that_reads_the_same_is_compiled_once():
    traces = []

    def score(x, t):
        traces.append(x.shape)
        return conditional(x, t, LABELS)

    swapped(lambda: score, lambda: traces.append("again"))
    assert traces[-1] == "again" and len(traces) > 1
