"""Fast solvers in log-SNR time: DDIM and exponential multistep methods (DPM-Solver++, UniPC).

With lambda = log(alpha / sigma), half the log-SNR, the probability flow and a family of reverse
SDEs with the same marginals are linear in x but for the denoised image D(x, lambda) = E[x0 | x],
under any process. From lambda_t to lambda_s = lambda_t + h they have the solution

    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t  +  alpha_s int_0^h k e^(-k (h - tau)) D dtau
          + sigma_s sqrt(1 - e^(-2 eta^2 h)) z,                   k = 1 + eta^2,

with eta = 0 for the probability flow and 1 for the reverse SDE of the paper (Lu et al. 2022, eq. 9
and 14; Xue et al. 2023, SA-Solver, arXiv:2309.05019, prop. 4.2). A multistep method puts the
polynomial through its last values of D into the integral, which then is a sum over these values
whose weights know only the times.

References:
    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502 (DDIM).
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095.
    Zhao et al. 2023, UniPC, arXiv:2302.04867.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from score_sde.samplers.base import Samples, fixed_steps, require_fraction, scan
from score_sde.samplers.grids import GridSampler
from score_sde.score import denoise
from score_sde.sde import SDE, ScoreFn


@dataclass(frozen=True)
class DDIM(GridSampler):
    """Song, Meng, Ermon 2021, eq. 12 and 16: between DDPM's ancestral sampling (eta = 1) and the
    probability flow (eta = 0), of order 1.

    Attributes:
        num_steps: steps, an evaluation each.
        eta: how much of the posterior's noise is added, 0 to 1.
        grid, rho, num_levels, denoise, t_min: as of every ``GridSampler``.
    """

    num_steps: int = 50
    eta: float = 0.0
    grid: str = "angle"
    rho: float = 7.0
    num_levels: int = 0
    denoise: bool = True
    t_min: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(eta=self.eta)

    @property
    def nfe(self) -> int:
        """Evaluations of the score for each sample."""
        return self.intervals + int(self.denoise)

    def solve(
        self,
        sde: SDE,
        score: ScoreFn,
        x: Array,
        noise: Callable[[Array], Array],
        keep: int = 0,
    ) -> Samples:
        times = self.times(sde)
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        posterior_std = sde.reverse_step(times[1:], times[:-1]).posterior_std

        def step(x: Array, i: Array) -> tuple[Array, Array]:
            x0 = denoise(sde, score, x, jnp.full(len(x), times[i]))
            epsilon = (x - alpha[i] * x0) / sigma[i]
            std = self.eta * posterior_std[i]
            kept = jnp.sqrt(jnp.maximum(jnp.square(sigma[i + 1]) - jnp.square(std), 0.0))
            x = alpha[i + 1] * x0 + kept * epsilon
            if self.eta:
                x = x + std * noise(i)
            return x, x

        end, path = scan(step, x, self.intervals, keep)
        if self.denoise:
            end = denoise(sde, score, end, jnp.full(len(x), times[-1]))
        return fixed_steps(x, end, path, self.nfe)


@dataclass(frozen=True)
class ExponentialMultistep(GridSampler):
    """DPM-Solver++ of order 1 to 3 (multistep), its SDE variant, and UniPC.

    The weights are those of the polynomial's exact integral, but for two values of D, where the
    papers take half of the slope's first-order weight instead. So DPM-Solver++ (2M) is algorithm 2
    of Lu et al. 2022, SDE-DPM-Solver++ (2M) eq. 18 there, and of order 3 UniP-3 and the 3M solver
    are one and the same, of third order. (Public code of the 3M solver halves the second-order
    term, and is of second order.)

    The first steps have less to look back on. Those of order 3 stay of third order in all by
    correcting the state after the first step, which needs no evaluation more. The last steps, which
    are the longest in log-SNR, look back on less by default: there D comes to rest, and a parabola
    overshoots (Lu et al. 2022; ``lower_order_final``).

    Attributes:
        num_steps: steps, an evaluation each.
        order: values of D that a step looks back on, 1 to 3; None is the best: 3, but 2 with noise
            and in fewer than 8 steps, over which a parabola overshoots.
        corrector: UniPC: once D is evaluated at a step's end, take the step again with it (UniC,
            no evaluation more).
        eta: noise, above: 0 for the probability flow, 1 for the reverse SDE. Above 0 for order 1
            and 2 without a corrector.
        lower_order_final: the last step is of order 1 and the one before it of 2 at most; without
            it the order holds to the end.
        grid, rho, num_levels, denoise, t_min: as of every ``GridSampler``.
    """

    num_steps: int = 20
    order: int | None = None
    corrector: bool = False
    eta: float = 0.0
    lower_order_final: bool = True
    grid: str = "angle"
    rho: float = 7.0
    num_levels: int = 0
    denoise: bool = True
    t_min: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(eta=self.eta)
        if self.order not in (None, 1, 2, 3):
            raise ValueError(f"order = {self.order!r}: allowed are 1, 2, 3")
        if self.eta and self.corrector:
            raise ValueError(f"eta = {self.eta!r}: allowed is 0 with corrector = True")
        if self.eta and self.order == 3:
            raise ValueError(
                f"order = 3: allowed are 1, 2 with eta = {self.eta!r} (3 with eta = 0)"
            )

    @property
    def lookback(self) -> int:
        """Values of D that a step looks back on."""
        return self.order or (2 if self.eta or self.num_steps < 8 else 3)

    @property
    def nfe(self) -> int:
        """Evaluations of the score for each sample."""
        return self.intervals + int(self.denoise)

    def solve(
        self,
        sde: SDE,
        score: ScoreFn,
        x: Array,
        noise: Callable[[Array], Array],
        keep: int = 0,
    ) -> Samples:
        times, eta2 = self.times(sde), self.eta**2
        alpha, sigma, lambdas = sde.alpha(times), sde.sigma(times), 0.5 * sde.log_snr(times)
        h = jnp.diff(lambdas)
        kept = sigma[1:] / sigma[:-1] * jnp.exp(-eta2 * h)
        added = sigma[1:] * jnp.sqrt(-jnp.expm1(-2.0 * eta2 * h))
        predictor, corrector = self._weights(lambdas)
        corrections = self.num_corrections(len(h))

        def step(
            carry: tuple[Array, Array, Array], i: Array
        ) -> tuple[tuple[Array, Array, Array], Array]:
            # x was predicted from `before` by the values of D in `memory`, the newest first.
            x, before, memory = carry
            newest = denoise(sde, score, x, jnp.full(len(x), times[i]))
            values = jnp.concatenate([newest[None], memory])  # D at t_i, t_(i-1), ...
            if corrections:
                again = kept[i - 1] * before + alpha[i] * _sum(corrector[i - 1], values)
                x = jnp.where((i >= 1) & (i <= corrections), again, x)
            values = values[: self.lookback]
            end = kept[i] * x + alpha[i + 1] * _sum(predictor[i], values)
            if eta2:
                end = end + added[i] * noise(i)
            return (end, x, values), end

        memory = jnp.zeros((self.lookback, *x.shape), x.dtype)
        (end, _, _), path = scan(step, (x, x, memory), self.intervals, keep)
        if self.denoise:
            end = denoise(sde, score, end, jnp.full(len(x), times[-1]))
        return fixed_steps(x, end, path, self.nfe)

    def num_corrections(self, num_steps: int) -> int:
        """Steps whose end is corrected, from the first on. The last one's is not: D is not
        evaluated there but to denoise."""
        if self.corrector:
            return num_steps - 1
        return 1 if self.lookback == 3 else 0

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
    # Before the first time there is none; these weights are not taken, but must be finite.
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
