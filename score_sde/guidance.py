"""Guidance: from scores and a weight to a score that follows its condition more closely.

With s the score of a model, s' that of a guide, and w the weight, guided samples follow

    s' + w (s - s')  =  s + (w - 1) (s - s').

Classifier-free guidance takes for s the conditional score and for s' the unconditional one of the
same network; autoguidance takes for s' that of a worse network. Weight 1 is s, weight 0 is s'. The
same holds for the denoised data, which are linear in the score. With any other weight the guided
scores at different times belong to no common density of data. So the density is refused.

Guidance may be limited to an interval of noise levels (Kynkäänniemi et al. 2024). A level is the
noise over the data, nu = sigma / alpha, the sigma of Karras et al. 2022, for every process.

References:
    Ho, Salimans 2022, Classifier-Free Diffusion Guidance, arXiv:2207.12598 (their w is w - 1).
    Kynkäänniemi et al. 2024, Applying Guidance in a Limited Interval, arXiv:2404.07724.
    Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself, arXiv:2406.02507.
    Dhariwal, Nichol 2021, Diffusion Models Beat GANs on Image Synthesis, arXiv:2105.05233.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from score_sde.errors import require
from score_sde.functions import as_pytree
from score_sde.score import Condition, denoise, evaluations, pytree
from score_sde.sde import SDE, ScoreFn, expand

NO_LABEL = -1  # of samples without a label: networks embed it as zeros

Interval = tuple[float, float]
"""The lowest and the highest noise level nu at which guidance acts."""


def classifier_free(
    model: Any, condition: Condition | ArrayLike, weight: float, interval: Interval | None = None
) -> ScoreFn:
    """Classifier-free guidance (Ho, Salimans 2022, eq. 6), one evaluation of 2 B states.

    Args:
        model: a score function with ``given``, such as `score.Model`. It was trained with label
            dropout (`training.label_dropout`).
        condition: of B samples, with `labels` int32 (B,); or the labels alone.
        weight: 1 is the conditional score itself, 0 the unconditional one.
        interval: where guidance acts; None is everywhere. Outside of it the score is the
            conditional one, at one evaluation. It needs ``model.sde``.

    Returns:
        a score function of these B samples, a pytree.

    Raises:
        ValueError: a condition without labels, labels of another shape or out of the model's range,
            a weight or an interval that is not allowed.
    """
    known: dict[str, Any] = (
        dict(condition) if isinstance(condition, Mapping) else {"labels": condition}
    )
    require("labels" in known, "condition", (*known,), "conditions with labels")
    labels, number = _each_sample(known["labels"]), getattr(model, "num_classes", 0)
    # A network takes others for samples without label.
    if number and not isinstance(labels, jax.core.Tracer):
        wrong = labels[(labels < NO_LABEL) | (labels >= number)].tolist()
        require(not wrong, "labels", wrong, f"0 to {number - 1}, and {NO_LABEL} for none")
    known["labels"] = labels
    without = {**known, "labels": jnp.full_like(labels, NO_LABEL)}
    pair = _OneBatch(as_pytree(model), (known, without))
    return _guided(pair, weight, interval, getattr(model, "sde", None))


def autoguidance(
    sde: SDE, score: ScoreFn, guide: ScoreFn, weight: float, interval: Interval | None = None
) -> ScoreFn:
    """Autoguidance (Karras et al. 2024, eq. 1): away from a worse model of the same data, such as
    an earlier checkpoint or a smaller network.

    Args:
        sde: the process of both.
        score: of the model. If it is conditional, both are given the same condition.
        guide: the score of the worse model.
        weight: 1 is the model's score itself, 0 the guide's.
        interval: where guidance acts; None is everywhere.

    Raises:
        ValueError: a weight or an interval that is not allowed.
    """
    return _guided(_Two(as_pytree(score), as_pytree(guide), sde), weight, interval, sde)


def classifier(
    sde: SDE,
    score: ScoreFn,
    log_prob: Callable[[Array, Array], Array],
    labels: ArrayLike,
    scale: float = 1.0,
) -> ScoreFn:
    """Classifier guidance (Dhariwal, Nichol 2021, section 4): score + scale grad log p(label | x).

    Args:
        sde: the process.
        score: an unconditional or conditional score.
        log_prob: (x (B, *shape), t (B,)) -> (B, K), log probabilities of the K classes up to a
            constant for each sample, such as a classifier's logits. A sample's row depends on its
            own x alone.
        labels: int32 (B,).
        scale: of the gradient. 1 is the score given the label.

    Raises:
        ValueError: a scale that is negative or infinite, labels of another shape, below 0 or beyond
            a network's classes, or a process with alpha(T) = 0. Where these are only known within
            a compiled program, another label gives NaN.
    """
    ok = not _is_number(scale) or 0 <= scale < float("inf")
    require(ok, "scale", scale, "finite numbers of at least 0")
    require(sde.keeps_data(), "sde", sde, "processes with alpha(T) above 0")
    labels = _each_sample(labels)
    if not isinstance(labels, jax.core.Tracer):
        number = getattr(getattr(log_prob, "model", None), "num_classes", 0)
        wrong = [each for each in labels.tolist() if each < 0 or (number and each >= number)]
        require(not wrong, "labels", wrong, f"0 to {number - 1}" if number else "0 and above")
    return _ByClassifier(sde, as_pytree(score), as_pytree(log_prob), labels, scale)


def _each_sample(labels: ArrayLike) -> Array:
    """Labels (B,); ValueError for those of another shape."""
    found = jnp.asarray(labels)
    require(found.ndim == 1, "labels.shape", found.shape, "(B,), a label for each sample")
    return found


def _guided(pair: Any, weight: float, interval: Interval | None, sde: SDE | None) -> ScoreFn:
    ok = not _is_number(weight) or 0 <= weight < float("inf")
    require(ok, "weight", weight, "finite numbers of at least 0")
    if interval is not None:
        numbers = all(map(_is_number, interval))
        ok = len(interval) == 2 and (not numbers or 0 <= interval[0] < interval[1])
        require(ok, "interval", interval, "two noise levels sigma / alpha from 0 on, rising")
        require(sde is not None, "interval", interval, "None for a model without a process")
    if _is_number(weight) and weight == 1:
        return pair.first
    if _is_number(weight) and weight == 0 and interval is None:
        return pair.second
    return _Guided(pair, weight, interval, sde)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)  # known before compilation


SHARED = "score_and_share"  # the method of a score whose model has learned variances


@pytree
class _Guided:
    """first + (weight - 1) (first - second), of scores and of denoised data. Learned variances are
    those of the first."""

    pair: Any
    weight: Any
    interval: Any
    sde: Any

    not_a_density = "guided by a weight other than 0 and 1, it belongs to no density of data"

    def __call__(self, x: Array, t: Array) -> Array:
        return self._mixed("score", x, t)

    def __getattr__(self, name: str) -> Any:
        if name in ("parameterization", "num_levels"):
            return getattr(self.pair.first, name)
        if name not in ("denoised", SHARED) or not hasattr(self.pair.first, name):
            raise AttributeError(name)
        return partial(self._mixed, name)

    def evaluations(self, t: Array) -> int | Array:
        """Those of both scores; where no sample is in the interval, of the first alone."""
        both = self.pair.evaluations(t)
        if self.interval is None:
            return both
        return jnp.where(jnp.any(self._acts(t)), both, evaluations(self.pair.first, t))

    def _acts(self, t: Array) -> Array:
        """Whether guidance acts, (B,)."""
        low, high = self.interval
        nu = jnp.exp(-0.5 * self.sde.log_snr(t))
        return (nu >= low) & (nu <= high)

    def _mixed(self, what: str, x: Array, t: Array) -> Any:
        def both(x: Array, t: Array) -> Any:
            first, second = self.pair.both(what, x, t)
            share: tuple[Array, ...] = ()
            if what == SHARED:
                share, first, second = (first[1],), first[0], second[0]
            extra = jnp.full(t.shape, self.weight, first.dtype) - 1.0
            if self.interval is not None:
                extra = jnp.where(self._acts(t), extra, 0.0)
            mixed = first + expand(extra, first) * (first - second)
            return (mixed, *share) if share else mixed

        def alone(x: Array, t: Array) -> Any:
            return _call(self.pair.first, what, x, t)

        if self.interval is None:
            return both(x, t)
        return jax.lax.cond(jnp.any(self._acts(t)), both, alone, x, t)


def _call(score: Any, what: str, x: Array, t: Array) -> Any:
    return score(x, t) if what == "score" else getattr(score, what)(x, t)


@pytree
class _OneBatch:
    """A model under two conditions, evaluated on one batch of 2 B states."""

    model: Any
    conditions: tuple[Condition, Condition]

    @property
    def first(self) -> Any:
        return self.model.given(self.conditions[0])

    @property
    def second(self) -> Any:
        return self.model.given(self.conditions[1])

    def evaluations(self, t: Array) -> int | Array:
        return 2

    def both(self, what: str, x: Array, t: Array) -> tuple[Any, Any]:
        # A sample's two states lie side by side: spread over devices, they stay on one.
        def pairs(a: Array, b: Array) -> Array:
            return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

        others = {len(leaf) for leaf in jax.tree.leaves(self.conditions)} - {len(x)}
        allowed = f"those of the {len(x)} states"
        require(not others, "condition", f"of {min(others, default=0)} samples", allowed)
        model = self.model.given(jax.tree.map(pairs, *self.conditions))
        found = _call(model, what, pairs(x, x), pairs(t, t))
        first, second = (jax.tree.map(lambda both, n=n: both[n::2], found) for n in (0, 1))
        return first, second


@pytree
class _Two:
    """Two scores."""

    first: Any
    second: Any
    sde: SDE

    def evaluations(self, t: Array) -> int | Array:
        return evaluations(self.first, t) + evaluations(self.second, t)

    def both(self, what: str, x: Array, t: Array) -> tuple[Any, Any]:
        def value(score: Any) -> Array:
            return score(x, t) if what == "score" else denoise(self.sde, score, x, t)

        if what == SHARED:
            return _call(self.first, what, x, t), (self.second(x, t),)
        return value(self.first), value(self.second)


@pytree
class _ByClassifier:
    """score + scale grad log p(label | x)."""

    sde: SDE
    score: Any
    log_prob: Any
    labels: Array
    scale: Any

    @property
    def not_a_density(self) -> str:
        """Why the score is that of no density; empty where it is one."""
        scaled = "guided by a scale other than 1, it belongs to no density of data"
        own = "" if _is_number(self.scale) and self.scale == 1 else scaled
        return getattr(self.score, "not_a_density", "") or own

    def __call__(self, x: Array, t: Array) -> Array:
        return self.score(x, t) + self._gradient(x, t)

    def denoised(self, x: Array, t: Array) -> Array:
        """E[x0 | x_t, label] by the classifier, (B, *shape)."""
        lift = jnp.square(self.sde.sigma(t)) / self.sde.alpha(t)
        return denoise(self.sde, self.score, x, t) + expand(lift, x) * self._gradient(x, t)

    def __getattr__(self, name: str) -> Any:
        if name != SHARED or not hasattr(self.score, name):
            raise AttributeError(name)
        return self._score_and_share

    def _score_and_share(self, x: Array, t: Array) -> tuple[Array, Array]:
        score, share = self.score.score_and_share(x, t)
        return score + self._gradient(x, t), share

    def evaluations(self, t: Array) -> int | Array:
        """Those of the score, and the classifier's pass with the one back."""
        return evaluations(self.score, t) + 2

    def _gradient(self, x: Array, t: Array) -> Array:
        def log_prob(x: Array) -> tuple[Array, Array]:
            rows = jax.nn.log_softmax(self.log_prob(x, t), axis=-1)
            return jnp.sum(jnp.take_along_axis(rows, self.labels[:, None], axis=1)), rows

        gradient, rows = jax.grad(log_prob, has_aux=True)(x)
        # Another label would leave the sample unguided, or take it to the last class.
        known = expand((self.labels >= 0) & (self.labels < rows.shape[1]), x)
        return jnp.where(known, jnp.asarray(self.scale, gradient.dtype) * gradient, jnp.nan)
