"""Fast solvers in log-SNR time: DDIM and exponential multistep methods (DPM-Solver++, UniPC).

Let lambda = log(alpha / sigma), half the log-SNR. Under any process, the probability flow and a
family of reverse SDEs with the same marginals are linear in x, except for the denoised image
D(x, lambda) = E[x0 | x]. From lambda_t to lambda_s = lambda_t + h they have the solution

    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t  +  alpha_s int_0^h k e^(-k (h - tau)) D dtau
          + sigma_s sqrt(1 - e^(-2 eta^2 h)) z,                   k = 1 + eta^2,

with eta = 0 for the probability flow and 1 for the reverse SDE of the paper (Lu et al. 2022, eq. 9
and 14; Xue et al. 2023, SA-Solver, arXiv:2309.05019, prop. 4.2). A multistep method replaces D in
the integral by the polynomial through its last values. The integral is then a weighted sum of these
values, and the weights depend on the times alone.

References:
    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502 (DDIM).
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095.
    Zhao et al. 2023, UniPC, arXiv:2302.04867.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from score_sde.errors import require
from score_sde.samplers.base import require_fraction
from score_sde.samplers.grids import GridSampler
from score_sde.samplers.stepped import Context
from score_sde.sde import SDE


@dataclass(frozen=True)
class DDIM(GridSampler):
    """Song, Meng, Ermon 2021, eq. 12 and 16: between DDPM's ancestral sampling (eta = 1) and the
    probability flow (eta = 0), of order 1. A step is one evaluation.

    Attributes:
        eta: how much of the posterior's noise is added, 0 to 1.
        clip: the denoised images are cut to [-clip, clip], and the noise stays as it is predicted,
            as diffusers does it (`clip_sample`). 0: they are not cut.
        num_steps and the others: as of every ``GridSampler``.
    """

    num_steps: int = 50
    eta: float = 0.0
    clip: float = 0.0
    denoised_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(eta=self.eta)
        require(self.clip >= 0, "clip", self.clip, "0 and positive numbers")

    def tables(self, sde: SDE, times: Array) -> tuple[Array, Array, Array]:
        posterior_std = sde.reverse_step(times[1:], times[:-1]).posterior_std
        return sde.alpha(times), sde.sigma(times), posterior_std

    def step(self, x: Array, memory: None, i: Array, c: Context) -> tuple[Array, None]:
        alpha, sigma, posterior_std = c.tables
        x0 = c.denoised(x, i)
        epsilon = (x - alpha[i] * x0) / sigma[i]
        std = self.eta * posterior_std[i]
        kept = jnp.sqrt(jnp.maximum(jnp.square(sigma[i + 1]) - jnp.square(std), 0.0))
        x = alpha[i + 1] * self._cut(x0) + kept * epsilon
        return (x + std * c.noise(x, i) if self.eta else x), None

    def end(self, x: Array, memory: None, c: Context) -> Array:
        x = super().end(x, memory, c)
        return self._cut(x) if self.denoise else x

    def _cut(self, x0: Array) -> Array:
        return jnp.clip(x0, -self.clip, self.clip) if self.clip else x0


@dataclass(frozen=True)
class ExponentialMultistep(GridSampler):
    """DPM-Solver++ of order 1 to 3 (multistep), its SDE variant, and UniPC.

    The weights are those of the polynomial's exact integral, except for two values of D: the papers
    take half of the slope's first-order weight instead. So DPM-Solver++ (2M) is algorithm 2 of Lu
    et al. 2022, and SDE-DPM-Solver++ (2M) is eq. 18 there. With order 3, UniP-3 and the 3M solver
    are the same, of third order. (Public code of the 3M solver halves the second-order term, and is
    of second order.)

    The first steps have fewer values to look back on. With order 3 the whole stays of third order:
    the state after the first step is corrected, at no further evaluation. The last steps are the
    longest in log-SNR. D comes to rest there, and a parabola overshoots. So by default these steps
    look back on fewer values (Lu et al. 2022; ``lower_order_final``).

    Attributes:
        order: values of D that a step looks back on, 1 to 3. None is the best: 2 with noise or
            below 8 steps, where a parabola overshoots, and 3 otherwise.
        corrector: UniPC: once D is evaluated at a step's end, take the step again with it (UniC,
            no evaluation more).
        eta: noise (see above): 0 is the probability flow, 1 the reverse SDE. A value above 0 needs
            order 1 or 2 and no corrector.
        lower_order_final: the last step is of order 1 and the one before it of 2 at most; without
            it the order holds to the end.
        num_steps and the others: as of every ``GridSampler``; a step is one evaluation.
    """

    num_steps: int = 20
    order: int | None = None
    corrector: bool = False
    eta: float = 0.0
    lower_order_final: bool = True
    denoised_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(eta=self.eta)
        require(self.order in (None, 1, 2, 3), "order", self.order, "1, 2, 3")
        require(not (self.eta and self.corrector), "eta", self.eta, "0 with corrector = True")
        require(not self.eta or self.order != 3, "order", self.order, "1, 2 with eta above 0")

    @property
    def lookback(self) -> int:
        """Values of D that a step looks back on."""
        return self.order or (2 if self.eta or self.num_steps < 8 else 3)

    def tables(self, sde: SDE, times: Array) -> tuple[Array, ...]:
        """Of the times: alpha. Of the steps: the factor that is kept of x, the standard deviation
        of the noise, and the weights of the values of D, for the predictor and the corrector."""
        eta2, sigma, lambdas = self.eta**2, sde.sigma(times), 0.5 * sde.log_snr(times)
        h = jnp.diff(lambdas)
        kept = sigma[1:] / sigma[:-1] * jnp.exp(-eta2 * h)
        added = sigma[1:] * jnp.sqrt(-jnp.expm1(-2.0 * eta2 * h))
        return sde.alpha(times), kept, added, *self._weights(lambdas)

    def memory(self, x: Array) -> tuple[Array, Array]:
        """The state that x was predicted from, and the last values of D, the newest first."""
        return x, jnp.zeros((self.lookback, *x.shape), x.dtype)

    def step(
        self, x: Array, memory: tuple[Array, Array], i: Array, c: Context
    ) -> tuple[Array, tuple[Array, Array]]:
        before, values = memory
        alpha, kept, added, predictor, corrector = c.tables
        values = jnp.concatenate([c.denoised(x, i)[None], values])  # D at t_i, t_(i-1), ...
        # Not the end of the last step: D is evaluated there to denoise only.
        corrections = len(kept) - 1 if self.corrector else int(self.lookback == 3)
        if corrections:
            again = kept[i - 1] * before + alpha[i] * _sum(corrector[i - 1], values)
            x = jnp.where((i >= 1) & (i <= corrections), again, x)
        values = values[: self.lookback]
        end = kept[i] * x + alpha[i + 1] * _sum(predictor[i], values)
        if self.eta:
            end = end + added[i] * c.noise(x, i)
        return end, (x, values)

    def _weights(self, lambdas: Array) -> tuple[Array, Array]:
        """Weights of the values of D in each step, the newest first: for the predictor (steps,
        order), for the corrector, which has the value at the step's end too, (steps, order + 1)."""
        h = jnp.diff(lambdas)
        step = jnp.arange(len(h))
        back, k = jnp.minimum(step + 1, self.lookback), 1.0 + self.eta**2
        if self.lower_order_final:
            back = jnp.minimum(back, len(h) - step)
        predictor = _by_number(lambdas, k, back, self.lookback, at_end=False)
        return predictor, _by_number(lambdas, k, back, self.lookback, at_end=True)


def _by_number(lambdas: Array, k: float, back: Array, order: int, at_end: bool) -> Array:
    """Weights (steps, order + at_end) of steps that look back on ``back`` (steps,) values."""
    weights = jnp.zeros((len(back), order + at_end), lambdas.dtype)
    for number in range(1, order + 1):
        of_number = _integrals(lambdas, k, number, at_end)
        of_number = jnp.pad(of_number, ((0, 0), (0, order - number)))
        weights = jnp.where((back == number)[:, None], of_number, weights)
    return weights


def _integrals(lambdas: Array, k: float, number: int, at_end: bool) -> Array:
    """Integrals of the Lagrange polynomials of each step's nodes, (steps, nodes).

    Nodes are r = (lambda - lambda_t) / h of the values at t and before, ``number`` of them, and of
    the step's end. The integral of r^j is the moment m_j, so the weights solve sum_i w_i r_i^j =
    m_j.
    """
    h, steps = jnp.diff(lambdas), jnp.arange(len(lambdas) - 1)
    offsets = jnp.arange(1 if at_end else 0, -number, -1)
    index = steps[:, None] + offsets[None]
    # There are no times before the first. These weights are never used, yet must be finite.
    nodes = jnp.where(index >= 0, lambdas[index], lambdas[0] + index.astype(lambdas.dtype))
    r = (nodes - lambdas[:-1, None]) / h[:, None]
    powers = jnp.stack([r**j for j in range(len(offsets))], axis=1)
    moments = _moments(k * h, len(offsets))
    if len(offsets) == 2:
        moments = moments.at[:, 1].set(0.5 * moments[:, 0])  # the papers' a_1 = 1/2
    return jnp.linalg.solve(powers, moments[..., None])[..., 0]


def _moments(u: Array, number: int) -> Array:
    """m_j = int_0^1 u e^(-u (1 - r)) r^j dr for j below number, (steps, number).

    By parts m_j = 1 - (j / u) m_(j-1), which cancels at small u; there by the series u sum_n (-u)^n
    j! / (n + j + 1)!.
    """
    small = jnp.minimum(u, 1.0)
    columns = [-jnp.expm1(-u)]
    for j in range(1, number):
        series = jnp.ones_like(u)
        for n in range(17, 0, -1):  # 1 / 18! is below float64's precision
            series = 1.0 - small / (j + 1 + n) * series
        columns.append(jnp.where(u > 1.0, 1.0 - j / u * columns[-1], small / (j + 1) * series))
    return jnp.stack(columns, axis=1)


def _sum(weights: Array, values: Array) -> Array:
    return jnp.tensordot(weights, values, axes=1, precision="highest")  # of states: never TF32
