"""From a network to the score: every formulation is a few coefficients and a noise condition.

With F the network, every parameterization estimates the noise z of x_t = alpha x0 + sigma z, and
the denoised data E[x0 | x_t], as

    c_skip(t) x + c_out(t) F(c_in(t) x, c_noise(t)),      score = -epsilon / sigma.

Both estimates have their own two coefficients. The score follows from epsilon, which does not
cancel at small t. The denoised data have their own row of the table. It divides by alpha under
`epsilon` and `score` alone. What the network should return, its target, is linear in x0 and z:
its two coefficients are in the table, too.

A network trained on the N levels of a discrete chain (`score_sde.discrete`) gets a level as its
noise condition. Three ways lead from a time to its level:

    smooth    the level is a real number, and sigma is the process's: both are continuous in t.
              Solvers with step control and the likelihood need that. If a score jumps between
              levels, an adaptive solver's steps collapse. The original code also leaves the
              chain's table for them.
    original  the table's sigma at the level that the original code picks, to sample as it did.
    matched   the level whose log-SNR in the chain is the process's at t: between two levels, a real
              number. If the times are those of levels (`samplers.grids`), every sampler evaluates
              the network where it was trained. (DDPM's chain is one step ahead of the process: by
              `smooth` its network gets a level that is too low by one.)

A network with learned variances (Nichol, Dhariwal 2021) returns twice the channels. The first half
is its target, as without them. The second half o says the variance of a step from a level of the
chain to one of less noise, number by number. With beta the variance of the forward step and beta~
that of its posterior q(x_s | x_t, x0),

    log variance = v log beta + (1 - v) log beta~,      v = (o + 1) / 2,

so an output of 0, as at the start of a training, is halfway. v is not cut to [0, 1].

References:
    Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239 (epsilon, levels).
    Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672,
    eq. 15 (learned variances).
    Song et al. 2021, arXiv:2011.13456, section 4 and appendix C (epsilon and score).
    Salimans, Ho 2022, Progressive Distillation, arXiv:2202.00512, section 4 (velocity).
    Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv:2210.02747 (flow).
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, table 1 (the form).
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.discrete import discretization, interpolate
from score_sde.errors import require
from score_sde.functions import DIVIDE
from score_sde.sde import SDE, ScoreFn, expand

Class = TypeVar("Class", bound=type)
Condition = Mapping[str, Array]
"""What a model is given beside x and t: arrays with the batch along their first axis."""


class Preconditioning(NamedTuple):
    """Coefficients, each (B,).

    Attributes:
        c_in: of the network's input.
        epsilon, denoised: (c_skip, c_out) of the estimate.
        target: of x0 and of z in what the network should return.
    """

    c_in: Array
    epsilon: tuple[Array, Array]
    denoised: tuple[Array, Array]
    target: tuple[Array, Array]


def _epsilon(alpha: Array, sigma: Array) -> Preconditioning:
    """DDPM, VP and sub-VP of the paper: the network's output is the noise itself."""
    one, none = jnp.ones_like(sigma), jnp.zeros_like(sigma)
    return Preconditioning(one, (0.0 * one, one), (1.0 / alpha, -sigma / alpha), (none, one))


def _score(alpha: Array, sigma: Array) -> Preconditioning:
    """VE of the paper: the network's output divided by sigma is the score, without a minus sign."""
    one, none = jnp.ones_like(sigma), jnp.zeros_like(sigma)
    return Preconditioning(one, (0.0 * one, -one), (1.0 / alpha, sigma / alpha), (none, -one))


def _velocity(alpha: Array, sigma: Array) -> Preconditioning:
    """v = (alpha z - sigma x0) / r with r^2 = alpha^2 + sigma^2, so that input and target have unit
    size.

    r = 1 under VP (Salimans, Ho 2022). Where alpha = 1 it is the preconditioning of Karras et al.
    2022 with the other sign of F; sigma_data is the model's.
    """
    squared = jnp.square(alpha) + jnp.square(sigma)
    r = jnp.sqrt(squared)
    estimates = (sigma / squared, alpha / r), (alpha / squared, -sigma / r)
    return Preconditioning(1.0 / r, *estimates, (-sigma / r, alpha / r))


def _flow(alpha: Array, sigma: Array) -> Preconditioning:
    """The velocity of flow matching, z - x0 (Lipman et al. 2023), under any process. With a model's
    sigma_data s it is z - x0 / s."""
    one, total = jnp.ones_like(sigma), alpha + sigma
    estimates = (1.0 / total, alpha / total), (1.0 / total, -sigma / total)
    return Preconditioning(1.0 / total, *estimates, (-one, one))


def _denoised(alpha: Array, sigma: Array) -> Preconditioning:
    """The network's output is the denoised data (Salimans, Ho 2022, section 4)."""
    one, none = jnp.ones_like(sigma), jnp.zeros_like(sigma)
    return Preconditioning(one, (1.0 / sigma, -alpha / sigma), (0.0 * one, one), (one, none))


PARAMETERIZATIONS: dict[str, Callable[[Array, Array], Preconditioning]] = {
    "epsilon": _epsilon,
    "score": _score,
    "velocity": _velocity,
    "denoised": _denoised,
    "flow": _flow,
}
OF_PURE_NOISE = tuple(name for name in PARAMETERIZATIONS if name not in DIVIDE)
"""The parameterizations whose denoised data do not divide by alpha."""


NOISE_CONDITIONS: dict[str, Callable[[SDE, Array], Array]] = {
    "time": lambda sde, t: 999.0 * t,  # 999 for any number of steps, as in the original
    "log_sigma": lambda sde, t: jnp.log(sde.sigma(t)),
    "log_snr": lambda sde, t: sde.log_snr(t),
}


class Noise(NamedTuple):
    """The noise level of each sample, (B,) each: the network's noise condition, alpha and sigma."""

    condition: Array
    alpha: Array
    sigma: Array


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def pytree(cls: Class) -> Class:
    """Class decorator: a frozen dataclass that is a pytree. Fields with ``static`` in their
    metadata are structure, and so is the class itself. (By JAX's own registration of dataclasses
    two classes with as many fields have the same structure, and jit runs the program that was
    compiled for the other: jax 0.10.2.)"""
    dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    static = [field.name for field in fields if field.metadata.get("static")]

    def flatten(tree: Any) -> tuple[tuple[Any, ...], Hashable]:
        fixed = tuple(getattr(tree, name) for name in static)
        return tuple(getattr(tree, name) for name in leaves), (cls, fixed)

    def unflatten(structure: Any, values: Any) -> Any:
        named = zip((*leaves, *static), (*values, *structure[1]), strict=True)
        return cls(**dict(named))

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


@pytree
class Model:
    """A network with its parameters under a process: a score function, and a pytree.

    Its leaves are the parameters, the process's constants and the condition's arrays. The rest is
    structure. It is equal for equal networks, so a run that is loaded twice compiles once.

    Attributes:
        params: the network's parameters.
        sde: the process that the network is trained under.
        apply: ``apply(params, x (B, *shape), noise (B,), condition, **options) -> (B, *shape)``;
            with ``learned_variance`` its last axis is twice as long. The options are those of a
            network's call: ``reverse_only`` here, ``dropout_key`` in training.
        parameterization: a key of ``PARAMETERIZATIONS``.
        noise_condition: a key of ``NOISE_CONDITIONS``: the number that tells the network the noise
            level. If ``num_levels`` is not 0, the network gets the level instead.
        num_levels: 0 for a network trained in continuous time, else N of its discrete chain.
        levels: ``smooth``, ``original`` or ``matched``: which level such a network gets at a time
            (see above). Without effect if ``num_levels`` is 0.
        sigma_data: the data's standard deviation, by which `velocity` and `flow` scale them.
        learned_variance: the second half of the network's output says the variances of reverse
            steps (see above).
        num_classes: of the network's labels; 0 where it has none or they are not known.
        condition: what the network is given beside x and t.
        reverse_only: by the fast gradients of convolutions, which have no forward mode (`jax.jvp`).

    Raises:
        ValueError: a process without a discrete chain, where ``num_levels`` is not 0.
    """

    params: Any = field(repr=False)  # they would flood a notebook
    sde: SDE
    apply: Callable[..., Array] = field(repr=False, metadata={"static": True})
    parameterization: str = field(metadata={"static": True})
    noise_condition: str = field(metadata={"static": True})
    num_levels: int = field(default=0, metadata={"static": True})
    levels: str = field(default="smooth", metadata={"static": True})
    sigma_data: float = field(default=1.0, metadata={"static": True})
    learned_variance: bool = field(default=False, metadata={"static": True})
    num_classes: int = field(default=0, metadata={"static": True})
    condition: Condition = field(default_factory=dict, repr=False)
    reverse_only: bool = field(default=False, metadata={"static": True})

    def given(self, condition: Condition) -> "Model":
        """The model of samples with this condition: arrays with the batch along their first axis,
        in the samples' order."""
        return dataclasses.replace(self, condition=dict(condition))

    def __call__(self, x: Array, t: Array, **options: Any) -> Array:
        """The score at x (B, *shape), t (B,); options go to the network."""
        return self.score_at(x, self.noise(t), **options)

    def denoised(self, x: Array, t: Array, **options: Any) -> Array:
        """E[x0 | x_t], (B, *shape). It divides by alpha under `epsilon` and `score` alone. Options
        go to the network."""
        return self.denoised_at(x, self.noise(t), **options)

    def denoised_at(self, x: Array, noise: Noise, **options: Any) -> Array:
        """As `denoised`, at given noise levels."""
        return self._estimate(self._target(x, noise, **options), "denoised", x, noise)

    def score_at(self, x: Array, noise: Noise, **options: Any) -> Array:
        """The score at given noise levels."""
        epsilon = self._estimate(self._target(x, noise, **options), "epsilon", x, noise)
        return -epsilon / expand(noise.sigma, x)

    def score_and_share(self, x: Array, t: Array, **options: Any) -> tuple[Array, Array]:
        """The score, and the share v of log beta in the log variances of a reverse step from t,
        each (B, *shape), by one evaluation.

        Raises:
            ValueError: a model without ``learned_variance``.
        """
        return self.score_and_share_at(x, self.noise(t), **options)

    def score_and_share_at(self, x: Array, noise: Noise, **options: Any) -> tuple[Array, Array]:
        """As `score_and_share`, at given noise levels."""
        require(self.learned_variance, "learned_variance", False, "True for learned variances")
        target, said = jnp.split(self.output(x, noise, **options), 2, axis=-1)
        epsilon = self._estimate(target, "epsilon", x, noise)
        return -epsilon / expand(noise.sigma, x), 0.5 * (said + 1.0)

    def _estimate(self, target: Array, what: str, x: Array, noise: Noise) -> Array:
        skip, out = getattr(self._coefficients(noise), what)
        return expand(skip, x) * x + expand(out, x) * target

    def _target(self, x: Array, noise: Noise, **options: Any) -> Array:
        """The output without what it says of variances."""
        found = self.output(x, noise, **options)
        return found[..., : x.shape[-1]] if self.learned_variance else found

    def error(self, x0: Array, t: Array, z: Array, target: str, **options: Any) -> Array:
        """The error of the prediction of a target at x_t = alpha x0 + sigma z, (B, *shape).

        Errors of all targets are proportional. So it is the error of the network's own output times
        a ratio of c_out, which is 1 for its own target: nothing is divided where alpha is 0.

        Args:
            x0: data (B, *shape); t: times (B,); z: standard normal noise (B, *shape).
            target: a name of ``PARAMETERIZATIONS``, for data in units of ``sigma_data``.
        """
        noise = self.noise(t)
        own, other = self._coefficients(noise), self._coefficients(noise, target)
        x = expand(noise.alpha, x0) * x0 + expand(noise.sigma, x0) * z
        wanted = expand(own.target[0], x) * x0 + expand(own.target[1], x) * z
        error = self._target(x, noise, **options) - wanted
        if target == self.parameterization:
            return error
        return expand(own.denoised[1] / other.denoised[1], x) * error

    def _coefficients(self, noise: Noise, target: str = "") -> Preconditioning:
        """Those of the model's parameterization or another, for x0 / sigma_data of unit size."""
        table, size = PARAMETERIZATIONS[target or self.parameterization], self.sigma_data
        found = table(size * noise.alpha, noise.sigma)
        skip, out = found.denoised
        of_x0, of_z = found.target
        return found._replace(denoised=(size * skip, size * out), target=(of_x0 / size, of_z))

    def output(self, x: Array, noise: Noise, **options: Any) -> Array:
        """What the network returns at given noise levels, with its input scaled by c_in."""
        scaled = expand(self._coefficients(noise).c_in, x) * x
        if self.reverse_only:
            options = {"reverse_only": True, **options}
        return self.apply(self.params, scaled, noise.condition, self.condition, **options)

    def noise(self, t: Array) -> Noise:
        """The noise level at t (B,)."""
        sde, alpha, sigma = self.sde, self.sde.alpha(t), self.sde.sigma(t)
        if not self.num_levels:
            return Noise(NOISE_CONDITIONS[self.noise_condition](sde, t), alpha, sigma)
        discrete = discretization(sde)
        if self.levels == "matched":
            log_snr = discrete.chain(self.num_levels).log_snr()
            rising = jnp.argsort(log_snr)
            level = interpolate(sde.log_snr(t), log_snr[rising], rising.astype(t.dtype))
            return Noise(level, alpha, sigma)
        level = discrete.level(t, self.num_levels)
        if self.levels == "smooth":
            return Noise(level, alpha, sigma)
        level, row = discrete.snap(level)
        return self.at_level(row.astype(jnp.int32))._replace(condition=level)

    def at_level(self, level: Array) -> Noise:
        """The noise at levels of the chain, int32 (B,)."""
        alpha, sigma = discretization(self.sde).chain(self.num_levels)
        return Noise(level.astype(alpha.dtype), alpha[level], sigma[level])


@pytree
class Logits:
    """A classifier of noisy data (Dhariwal, Nichol 2021): (x (B, *shape), t (B,)) -> (B, K).

    Attributes:
        model: the network, which returns logits, with what it is given as a score's network is.
    """

    model: Model

    def given(self, condition: Condition) -> "Logits":
        """The classifier of samples with this condition, as `Model.given`."""
        return dataclasses.replace(self, model=self.model.given(condition))

    def __call__(self, x: Array, t: Array, **options: Any) -> Array:
        return self.model.output(x, self.model.noise(t), **options)


def reverse_only(score: Any) -> Any:
    """The score, a pytree, whose models take the fast gradients of convolutions. They have no
    forward mode (`jax.jvp`). Models that a function closes over stay as they are."""

    def marked(node: Any) -> Any:
        return dataclasses.replace(node, reverse_only=True) if isinstance(node, Model) else node

    return jax.tree.map(marked, score, is_leaf=lambda node: isinstance(node, Model))


def denoise(sde: SDE, score: ScoreFn, x: Array, t: Array) -> Array:
    """E[x0 | x_t], of shape (B, *shape): by the score's method ``denoised`` if it has one, else by
    Tweedie's formula (x_t + sigma^2 score) / alpha."""
    denoised = getattr(score, "denoised", None)
    if denoised is not None:
        found: Array = denoised(x, t)
    else:
        sigma2 = expand(jnp.square(sde.sigma(t)), x)
        found = (x + sigma2 * score(x, t)) / expand(sde.alpha(t), x)
    return found.astype(x.dtype)


def evaluations(score: ScoreFn, t: Array) -> int | Array:
    """How many passes through networks a call of the score at t (B,) is: 1, except where the score
    has a method ``evaluations``, as guided ones have. A pass back, for a gradient, counts too."""
    count = getattr(score, "evaluations", None)
    return 1 if count is None else count(t)


def require_time(t_min: float, sde: SDE) -> None:
    """Raise ValueError for a last time that the process has not. T may be a tracer: then it does
    nothing."""
    end: Any = sde.T
    if not isinstance(end, jax.core.Tracer):
        require(0 <= t_min < end, "t_min", t_min, f"times from 0 to below T = {end:g}")


def full_precision() -> Any:
    """The context in which likelihoods, solvers and comparisons run. Without it, float32 products
    are TF32 on recent GPUs."""
    return jax.default_matmul_precision("highest")
