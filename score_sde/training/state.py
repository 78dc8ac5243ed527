"""The state of a run between two steps. A checkpoint holds all of it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from score_sde.training.mesh import replicated

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree of device arrays.

    Attributes:
        step: int32 scalar, the number of updates made.
        params: the parameters, float32, as the loss takes them.
        opt_state: the optimizer's state.
        ema: the averaged parameters, a tree like ``params``; what sampling and evaluation use.
        history: what the loss keeps of the steps before; None where it keeps nothing.
        powers: two more averages, trees like ``params`` (`powers`); () of a run without them.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    history: PyTree = None
    powers: tuple[PyTree, ...] = ()


def create(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    history: PyTree = None,
    *,
    num_powers: int = 0,
) -> TrainState:
    """The state before the first update, replicated over the mesh; with so many averages more.

    Parameters, averages and history are copies: the train step donates its state, and neither the
    two trees nor the caller's arrays may share memory with it.
    """

    def start(params: PyTree, history: PyTree) -> TrainState:
        copy, ema, *powers = (jax.tree.map(jnp.copy, params) for _ in range(2 + num_powers))
        step, first = jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, history)
        return TrainState(step, copy, optimizer.init(params), ema, first, tuple(powers))

    # One compilation, where eager zeros_like and copies compile once for every shape.
    return jax.jit(start, out_shardings=replicated(mesh))(params, history)
