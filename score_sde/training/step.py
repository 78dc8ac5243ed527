"""The train step: a pure function of (state, batch, key), and its compiled form over a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from score_sde.training import averages
from score_sde.training.mesh import along_data, replicated
from score_sde.training.state import TrainState

PyTree = Any
Metrics = dict[str, Array]
LossFn = Callable[[PyTree, TrainState, PyTree, Array], Array]
TrainStep = Callable[[TrainState, PyTree, Array], tuple[TrainState, Metrics]]


def update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    state: TrainState,
    batch: PyTree,
    key: Array,
) -> tuple[TrainState, Metrics]:
    """One update of the state on one batch. Pure; whoever calls it compiles it.

    Args:
        loss_fn: ``loss_fn(params, state, batch, key)`` gives one loss for each example, (B,)
            float32. The gradient is that with respect to ``params``. The state before the update
            is there for methods that use the averages or the step. All chance comes from ``key``.
        optimizer: an optax transformation.
        ema_rate: the averages' decay in the long run.
        state: the state before.
        batch: a tree of arrays with the examples along their first axis, as they are stored.
        key: the run's key. The step's own is ``fold_in(key, state.step)``, so that state and key
            say everything about what follows.

    Returns:
        The state after, and float32 scalars: ``loss``, the batch's mean before the update;
        ``grad_norm``, the gradient's global norm before clipping; ``learning_rate`` of this update
        if the optimizer's state has it.
    """
    key = jax.random.fold_in(key, state.step)

    def mean_loss(params: PyTree) -> Array:
        return jnp.mean(loss_fn(params, state, batch, key))

    loss, gradient = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = averages.update(state.ema, params, ema_rate, step)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
    learning_rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
    if learning_rate is not None:
        metrics["learning_rate"] = learning_rate
    return TrainState(step, params, opt_state, ema), metrics


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, ema_rate: float, mesh: Mesh
) -> TrainStep:
    """The compiled step, ``step(state, batch, key) -> (state, metrics)``.

    The batch's arrays are spread over the mesh's data axis, so their length is a multiple of the
    axis'. State, key and metrics are replicated. The state is donated: the one passed in is gone
    after the call. The arithmetic is that of one device on the whole batch, except for the order
    of the sums.
    """
    whole, spread = replicated(mesh), along_data(mesh)
    return jax.jit(
        partial(update, loss_fn, optimizer, ema_rate),
        in_shardings=(whole, spread, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
