"""The processes, the samplers and the distributions that tests run over. Each list stands here
once."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from score_sde import oracle
from score_sde.discrete import DiscreteVPSDE
from score_sde.learned import LearnedVP
from score_sde.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    SAMPLERS,
    AnnealedLangevin,
    Consistency,
    ExponentialMultistep,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    SteppedSampler,
)
from score_sde.samplers.stepped import Context
from score_sde.schedules import EDM, Cosine, Flow, Shifted, Sigmoid
from score_sde.score import PARAMETERIZATIONS
from score_sde.sde import SDE, VESDE, VPSDE, ScoreFn, SubVPSDE, expand


class Own(SDE):
    """A user's own process: everything but the pair is derived (Nichol, Dhariwal 2021, without the
    offset)."""

    T = 0.99

    def alpha(self, t: Array) -> Array:
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t: Array) -> Array:
        return jnp.sin(0.5 * jnp.pi * t)


PUBLISHED = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
FIRST: dict[str, SDE] = {**PUBLISHED, "own": Own()}
# At T = 1 the first three have no data left: tests/test_schedules.py.
LATER: dict[str, SDE] = {
    "cosine": Cosine(0.99),
    "sigmoid": Sigmoid(0.99),
    "flow": Flow(0.99),
    "edm": EDM(),
    "shifted": Shifted(VPSDE(), 1.5),
    "discrete": DiscreteVPSDE(np.linspace(0.1 / 1000, 20 / 1000, 1000).tolist()),
    "learned": LearnedVP(-9.0, 5.0, 0.0, (0.5, -1.0, 1.0), (6.0, 12.0, 20.0), (1.0, 4.0, 6.0)),
}
PROCESSES = {**FIRST, **LATER}


def thorough(*cases: Any) -> list[Any]:
    """Cases of a parametrized test that `make test` leaves to `make test-thorough`. A tuple is one
    case of several arguments."""
    several = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*case, marks=pytest.mark.thorough) for case in several]


def only(quick, names):
    """The names, those that are not quick as thorough cases."""
    return [name if name in quick else thorough(name)[0] for name in names]


EVERY = [*FIRST, *thorough(*LATER)]
"""The names of all, where a test takes seconds for each: the later ones are thorough."""
VP_FIRST = only(("vp",), PROCESSES)
"""The names of all, where a test takes so long that VP alone stays."""


class AnyProcess(SDE):
    """One of ``FIRST`` by its index. All of them are evaluated and one is taken, so that a program
    is compiled once for all of them."""

    family: ClassVar[dict[str, SDE]] = FIRST
    index: Array

    def chosen(self, of: Callable[[SDE], Any]) -> Any:
        """What a function returns for the process."""
        values = [of(sde) for sde in self.family.values()]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[self.index], *values)


def _of_the_process(method: str) -> Callable[..., Any]:
    def call(self: AnyProcess, *arguments: Array) -> Any:
        return self.chosen(lambda sde: getattr(sde, method)(*arguments))

    return call


def _at_the_process(name: str) -> Callable[[AnyProcess], Array]:
    return lambda self: self.chosen(lambda sde: jnp.asarray(getattr(sde, name)))


for _method in (
    *("alpha", "sigma", "log_alpha", "log_snr", "inverse_log_snr", "drift_rate", "diffusion"),
    *("transition", "prior_std", "time_steps"),
):
    setattr(AnyProcess, _method, _of_the_process(_method))
for _time in ("T", "t_min"):
    setattr(AnyProcess, _time, property(_at_the_process(_time)))


class AnyLater(AnyProcess):
    """One of ``LATER``."""

    family: ClassVar[dict[str, SDE]] = LATER


def process_of(name: str, sampler: Sampler | None = None) -> SDE:
    """The process of a name as one of its family, except for the original's steps, which go by the
    process's class."""
    if getattr(sampler, "faithful", False):
        return PROCESSES[name]
    any_of = AnyProcess if name in FIRST else AnyLater
    return any_of(jnp.asarray(list(any_of.family).index(name)))


def recorded_score(sde: SDE, mean: Array, std: float) -> ScoreFn:
    """The analytic score of the recorded steps: data N(mean, std^2 I)."""

    def score(x: Array, t: Array) -> Array:
        alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
        return -(x - alpha * mean[None]) / (jnp.square(alpha * std) + jnp.square(sigma))

    return score


def overlapping_mixture(dims: int) -> oracle.GaussianMixture:
    """Two Gaussians of unequal weight whose modes overlap, with correlated components."""
    rng = np.random.default_rng(dims)
    factors = rng.normal(size=(2, dims, dims)) / np.sqrt(dims)
    covariances = 0.1 * np.eye(dims) + 0.1 * factors @ np.swapaxes(factors, 1, 2)
    direction = rng.normal(size=dims) / np.sqrt(dims)
    means = np.stack([0.8 * direction, -0.5 * direction])
    weights = np.asarray([0.35, 0.65])
    return oracle.gaussian_mixture(
        *(jnp.asarray(a, jnp.float32) for a in (weights, means, covariances))
    )


class SamplerCase(NamedTuple):
    """A sampler with what is known of its error.

    Attributes:
        make: from ``num_steps`` and ``denoise``.
        order: of the error of the flow's states; 0 where it is not measured.
        weak_order: of the error of a Gaussian's variance; 0 where it is not measured.
        steps: with which it is compared with the exact distribution; 0 where it is not.
        bias: that is granted there: of the mean relative to the standard deviation, of the variance
            relative to itself, of the modes' weights. None is annealed Langevin's, which its
            recursion gives.
        inflation: by which the variance may be too large.
    """

    make: Callable[..., Sampler]
    order: int = 0
    weak_order: int = 0
    steps: int = 40
    bias: float | None = 0.02
    inflation: float = 0.0


# Bias: first order in 1 / steps for the predictors (test_against_oracle.py). The corrector's snr
# rule leaves a variance between v and (1 + 2 / D) (1 + snr^2) v, in D = 16 dimensions. The others
# by what test_convergence.py finds at 40 steps: the stochastic ones' variance is off by 0.28 for
# DDIM with eta = 1 and by 0.04 for the SDE variant (sub-VP, the largest), the flow's states by
# 0.06 for DDIM and by less than 0.01 for the others; all of it shrinks with their order.
SNR_BIAS = (1 + 2 / 16) * (1 + 0.16**2) - 1
_PC, _MULTISTEP = PredictorCorrector, ExponentialMultistep
# Of full order to the last step.
_FULL = partial(ExponentialMultistep, lower_order_final=False)


def _predictor(name: str, **settings: Any) -> SamplerCase:
    make = partial(_PC, predictor=name)
    return SamplerCase(make, steps=400, bias=20 / 400, **settings)


def _corrected(name: str, corrector: str, inflation: float, steps: int = 400) -> SamplerCase:
    make = partial(_PC, predictor=name, corrector=corrector)
    return SamplerCase(make, steps=steps, bias=20 / 400, inflation=inflation)


SAMPLER_CASES = {
    # Those of the package, by their defaults, and what is known of them.
    **{name: SamplerCase(make) for name, make in SAMPLERS.items()},
    "pc": _predictor("euler_maruyama", weak_order=1),
    "ald": SamplerCase(partial(AnnealedLangevin, step_size=0.05), steps=400, bias=None),
    "ode": SamplerCase(partial(ProbabilityFlow), bias=1e-3),
    "ddim": SamplerCase(DDIM, order=1, steps=400, bias=0.06 / 10),
    "ipndm": SamplerCase(IPNDM, order=2, bias=0.01),
    # tAB-3: the error of its first steps, of lower order, is small where nothing is left but noise.
    "deis": SamplerCase(DEIS, order=3, bias=0.01),
    "heun": SamplerCase(Heun, order=2, bias=0.01),
    # Of a model that is no consistency model it has no samples of the data: test_consistency.py.
    "consistency": SamplerCase(Consistency, steps=0),
    # Their other settings.
    "reverse_diffusion": _predictor("reverse_diffusion", weak_order=1),
    # What a network learns lies between these two: test_against_oracle.py, test_variances.py.
    "ancestral": _predictor("ancestral", weak_order=1),
    "ancestral_large": _predictor("ancestral_large", weak_order=1),
    "probability flow by euler_maruyama": SamplerCase(
        partial(_PC, probability_flow=True), order=1, steps=0
    ),
    "reverse_diffusion+langevin": _corrected("reverse_diffusion", "langevin", SNR_BIAS),
    "ancestral+ald": _corrected("ancestral", "ald", 0.0),
    "none+langevin": SamplerCase(
        partial(_PC, predictor="none", corrector="langevin", corrector_steps=3),
        *(0, 0, 800, 20 / 400, SNR_BIAS),
    ),
    "faithful": SamplerCase(
        partial(_PC, predictor="reverse_diffusion", corrector="langevin", faithful=True),
        *(0, 0, 400, 20 / 400, 0.03),
    ),
    "ald, the paper's": SamplerCase(
        partial(AnnealedLangevin, steps_per_level=5, consistent=False), steps=400, bias=None
    ),
    "ddim, eta 1/2": SamplerCase(partial(DDIM, eta=0.5), weak_order=1, steps=400, bias=0.28 / 10),
    "ddim, eta 1": SamplerCase(partial(DDIM, eta=1.0), weak_order=1, steps=400, bias=0.28 / 10),
    "dpmpp 2": SamplerCase(partial(_FULL, order=2), order=2, bias=0.01),
    "dpmpp 3": SamplerCase(partial(_FULL, order=3), order=3, bias=0.01),  # which is UniP-3
    # The corrector adds an order (Zhao et al. 2023, theorem 3.1).
    "unipc 2": SamplerCase(partial(_FULL, order=2, corrector=True), order=3, bias=0.01),
    "unipc 3": SamplerCase(partial(_FULL, order=3, corrector=True), order=4, bias=0.01),
    "dpmpp, SDE": SamplerCase(partial(_MULTISTEP, order=2, eta=1.0), steps=80),
    **{
        f"dpmpp {order}, SDE, eta {eta:g}": SamplerCase(
            partial(_FULL, order=order, eta=eta), weak_order=order, steps=0
        )
        for order, eta in ((1, 0.5), (2, 0.5), (2, 1.0))  # of order 1 with eta 1 is DDIM with eta 1
    },
    "heun, churn": SamplerCase(partial(Heun, churn=10.0), steps=80),
    "heun, churn 4": SamplerCase(partial(Heun, churn=4.0), weak_order=2, steps=0),
}
EACH = (*SAMPLERS, "ancestral+ald", "ddim, eta 1", "dpmpp, SDE", "heun, churn")
"""Each kind of sampler once, by its name in ``SAMPLER_CASES``."""


class _Given(Context):
    """A context whose noise is given in place of the keys, (B, draws, *shape)."""

    def noise(self, x: Array, index: Array | int) -> Array:
        return self.keys[:, index]


@partial(jax.jit, static_argnums=0)
def run_with(sampler: SteppedSampler, sde: SDE, score: ScoreFn, x: Array, noises: Array) -> Array:
    """The states of a run with given noises (B, draws, *shape), (num_steps, B, *shape)."""
    times = sampler.times(sde)
    context = _Given(sde, score, times, sampler.tables(sde, times), noises)

    def body(carry: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], Array]:
        carry = sampler.step(*carry, i, context)
        return carry, carry[0]

    return jax.lax.scan(body, (x, sampler.memory(x)), jnp.arange(len(times) - 1))[1]


def converted(
    output: Array, x: Array, alpha: Array, sigma: Array, source: str, target: str
) -> Array:
    """The output of one parameterization as that of another, (B, *shape), by the table's rows, at
    the noise levels alpha and sigma, (B,)."""
    of, to = (PARAMETERIZATIONS[name](alpha, sigma) for name in (source, target))
    z, x0 = (
        expand(skip, x) * x + expand(out, x) * output for skip, out in (of.epsilon, of.denoised)
    )
    return expand(to.target[0], x) * x0 + expand(to.target[1], x) * z
