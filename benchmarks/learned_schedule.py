"""What a learned schedule does to the bound on -log p: its variance, and what moves its mean.

    python main.py --config configs/vdm_digits.py --mode train --workdir runs/vdm_small \\
        --config.model.width=8 "--config.model.multipliers=(1,)" \\
        "--config.model.attention_resolutions=(8,)" --config.training.num_steps=600
    python benchmarks/learned_schedule.py runs/vdm_small

One draw of the bound takes an item, a time and a noise (`score_sde/variational.py`). Its variance
is measured by the learned schedule and by others between the same ends, among them the nearly
straight one with which training begins. There are two kinds of data. One is a Gaussian with its
exact score; only the schedule is trained on it. It is measured between other ends, too. The other
is the digits, with the network of a run.

mean, error   of the bound, nats/dim, and the standard error as if all draws were independent; their
              times are evenly spread, so the true error is smaller
exact         the same in closed form
variance      of one draw, (nats/dim)^2
ratio         of that variance to the learned schedule's

Writes `learned_schedule.csv` beside this file, and prints a Markdown table.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lines
import numpy as np
import optax
from jax import Array

import score_sde
from score_sde import data
from score_sde.learned import NUM_BENDS, LearnedVP, constants
from score_sde.modes import start
from score_sde.run import Run
from score_sde.score import Model
from score_sde.variational import ENDS, variational_loss

BATCH = 4096
DIMS = 32
MEAN, STDS = np.linspace(-1.0, 1.0, DIMS), np.geomspace(0.05, 1.0, DIMS)
BEGIN, WIDE, NARROW = (-6.0, 3.0), (-13.0, 5.0), (-3.0, 1.0)  # ends of gamma
OTHERS: dict[str, dict[str, Any]] = {  # schedules between the same ends as the learned one
    "nearly straight": {},  # as a training begins
    "straight": {"heights": jnp.full(NUM_BENDS, -20.0)},
    "rising late": {"heights": jnp.linspace(-5.0, 3.0, NUM_BENDS)},
}
COLUMNS = ("data", "schedule", *ENDS, "mean", "error", "exact", "variance", "ratio")
Draw = Callable[[Array, int], Array]
Row = dict[str, str]


def gaussian(key: Array, number: int) -> Array:
    """Draws of N(MEAN, STDS^2), (number, DIMS)."""
    mean, std = (jnp.asarray(row, jnp.float32)[None] for row in (MEAN, STDS))
    return mean + std * jax.random.normal(key, (number, DIMS))


def exact_noise(params: Any, x: Array, log_snr: Array, condition: Any) -> Array:
    """The expected noise of the Gaussian's points x (B, DIMS), in place of a network's."""
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * log_snr))[:, None] for sign in (1.0, -1.0))
    mean, std = (jnp.asarray(row, x.dtype)[None] for row in (MEAN, STDS))
    return sigma * (x - alpha * mean) / (jnp.square(alpha * std) + jnp.square(sigma))


def model_of(process: LearnedVP) -> Model:
    """The Gaussian's exact score under this schedule."""
    return Model(None, process, exact_noise, "epsilon", "log_snr")


def exact_bound(low: float, high: float) -> float:
    """The Gaussian's bound between these ends of gamma, nats/dim: with s^2 = exp(gamma) and k =
    v / (v + s^2) the mean of |sigma score + z|^2 over the data is the sum of k."""
    gamma = np.linspace(low, high, 20_001)
    k = np.square(STDS) / (np.square(STDS) + np.exp(gamma)[:, None])
    alpha2, sigma2 = 1.0 / (1.0 + np.exp(high)), 1.0 / (1.0 + np.exp(-high))
    prior = alpha2 * np.mean(np.square(MEAN) + np.square(STDS)) + sigma2 - 1.0 - np.log(sigma2)
    decoder = np.log(2.0 * np.pi) + 1.0 + low
    return float(0.5 * (prior + np.trapezoid(k.mean(axis=1), gamma) + decoder))


def trained(process: LearnedVP, steps: int) -> LearnedVP:
    """The schedule after as many updates by Adam, of 1024 draws of the Gaussian each."""
    optimizer = optax.adam(0.05)

    def loss(values: dict[str, Array], key: Array) -> Array:
        key_x, key = jax.random.split(key)
        model = model_of(LearnedVP(**values))
        return jnp.mean(variational_loss(key, model, gaussian(key_x, 1024)))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        values, state = carry
        updates, state = optimizer.update(jax.grad(loss)(values, key), state)
        return (optax.apply_updates(values, updates), state), None

    values = {name: jnp.asarray(each, jnp.float32) for name, each in constants(process).items()}
    keys = jax.random.split(jax.random.key(0), steps)
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])
    return LearnedVP(**scan((values, optimizer.init(values))))


def between(ends: tuple[float, float], **more: Any) -> LearnedVP:
    """The schedule of a training's beginning between these ends, or with other constants."""
    return LearnedVP(*(jnp.float32(end) for end in ends), **more)


@partial(jax.jit, static_argnums=(1, 2))
def estimates(model: Model, draw: Draw, batches: int) -> Array:
    """Draws of the bound, nats/dim, (batches, BATCH)."""

    def batch(key: Array) -> Array:
        key_x, key = jax.random.split(key)
        return variational_loss(key, model, draw(key_x, BATCH))

    return jax.lax.map(batch, jax.random.split(jax.random.key(1), batches))


def row(name: str, schedule: str, model: Model, draw: Draw, batches: int) -> Row:
    """A line of the table, without the ratio."""
    found = np.asarray(estimates(model, draw, batches), np.float64).ravel()
    process: Any = model.sde
    ends = float(process.gamma_min), float(process.gamma_max)
    error = found.std(ddof=1) / np.sqrt(found.size)
    exact = f"{exact_bound(*ends):.4f}" if draw is gaussian else ""
    numbers = (f"{found.mean():.4f}", f"{error:.4f}", exact, f"{found.var(ddof=1):.3f}", "")
    first = (name, schedule, *(f"{end:.2f}" for end in ends))
    return dict(zip(COLUMNS, (*first, *numbers), strict=True))


def with_ratios(table: list[Row]) -> list[Row]:
    """Lines between the same ends, the learned schedule's first."""
    least = float(table[0]["variance"])
    return [line | {"ratio": f"{float(line['variance']) / least:.2f}"} for line in table]


def of_the_gaussian(steps: int, batches: int) -> list[Row]:
    """The lines of the exact score."""
    name = f"Gaussian, {DIMS} dimensions"

    def of(schedule: str, process: LearnedVP) -> Row:
        return row(name, schedule, model_of(process), gaussian, batches)

    process = trained(between(BEGIN), steps)
    ends = process.gamma_min, process.gamma_max
    same = [of("learned", process)]
    same += [of(schedule, between(ends, **more)) for schedule, more in OTHERS.items()]
    others = [of("nearly straight", between(ends)) for ends in (NARROW, BEGIN, WIDE)]
    entropy = 0.5 * (np.log(2.0 * np.pi) + 1.0) + np.log(STDS).mean()
    last = {"data": name, "schedule": "the data's entropy", "exact": f"{entropy:.4f}"}
    return [*with_ratios(same), *others, dict.fromkeys(COLUMNS, "") | last]


def of_the_digits(run: Run, batches: int) -> list[Row]:
    """The lines of a run's network: dequantized digits of its training."""
    images, space = jnp.asarray(data.load("digits", "train", "").x), run.space

    def draw(key: Array, number: int) -> Array:
        key_image, key_noise = jax.random.split(key)
        chosen = images[jax.random.randint(key_image, (number,), 0, len(images))]
        return space.to_model(chosen, jax.random.uniform(key_noise, chosen.shape))

    def of(schedule: str, process: Any) -> Row:
        model = replace(run.score, sde=process)
        return row(f"digits, {run.step} steps", schedule, model, draw, batches)

    learned: Any = run.sde
    straight = between((learned.gamma_min, learned.gamma_max))
    return with_ratios([of("learned", learned), of("nearly straight", straight)])


def main() -> None:
    """Measure, write, print."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("workdir", type=Path, help="of a run of vdm_digits")
    parser.add_argument("--steps", default=400, type=int, help="of the Gaussian's training")
    parser.add_argument("--batches", default=32, type=int, help=f"of {BATCH} draws each")
    parser.add_argument("--output", default=Path(__file__).parent, type=lines.folder)
    chosen = parser.parse_args()
    start(1)
    run = score_sde.load(chosen.workdir)
    if not constants(run.sde) or run.info.name != "digits":
        parser.error(f"{chosen.workdir}: allowed are runs of digits with sde.name = vp_learned")
    path = chosen.output / "learned_schedule.csv"
    table = of_the_gaussian(chosen.steps, chosen.batches) + of_the_digits(run, chosen.batches)
    path.unlink(missing_ok=True)
    for line in table:
        lines.append(path, line)
    print(f"\n{lines.markdown(table)}")


if __name__ == "__main__":
    main()
