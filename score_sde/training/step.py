"""The train step: a pure function of (state, batch, key), and its compiled form over a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from score_sde.training import powers
from score_sde.training.mesh import along_data, replicated
from score_sde.training.state import TrainState

PyTree = Any
Metrics = dict[str, Array]
LossFn = Callable[[PyTree, TrainState, PyTree, Array], Array | tuple[Array, PyTree]]
TrainStep = Callable[[TrainState, PyTree, Array], tuple[TrainState, Metrics]]


def warmed_up_decay(rate: float, num_updates: Array) -> Array:
    """min(rate, (1 + n) / (10 + n)) for n updates, this one included; float32 scalar.

    With a constant rate the average of a young run is mostly its initial noise: at 0.9999 the
    first parameters still weigh 0.37 after 10,000 updates. This is the paper's PyTorch rule; its
    JAX version keeps the rate constant.
    """
    n = num_updates.astype(jnp.float32)
    return jnp.minimum(rate, (1.0 + n) / (10.0 + n))


def averaged(ema: PyTree, params: PyTree, rate: float, num_updates: Array) -> PyTree:
    """One step of the average, ema + (1 - decay) (params - ema).

    Args:
        ema: the average so far, float32 leaves.
        params: the parameters after the update, a tree of the same shapes.
        rate: the decay in the long run, in [0, 1); 0 gives the parameters themselves.
        num_updates: int32 scalar, updates made so far, this one included.
    """
    weight = 1.0 - warmed_up_decay(rate, num_updates)
    return jax.tree.map(lambda mean, value: mean + weight * (value - mean), ema, params)


def update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    state: TrainState,
    batch: PyTree,
    key: Array,
) -> tuple[TrainState, Metrics]:
    """One update of the state on one batch. Pure; the caller compiles it.

    Args:
        loss_fn: ``loss_fn(params, state, batch, key)`` gives one loss for each example, (B,)
            float32. The gradient is that with respect to ``params``. The state before the update
            is there for methods that use the averages or the step. All chance comes from ``key``.
            A loss that keeps a history gives a pair: these, and the history after this step.
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

    def mean_loss(params: PyTree) -> tuple[Array, PyTree]:
        found = loss_fn(params, state, batch, key)
        losses, history = found if isinstance(found, tuple) else (found, state.history)
        return jnp.mean(losses), history

    (loss, history), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = averaged(state.ema, params, ema_rate, step)
    means = powers.averaged(state.powers, params, step) if state.powers else ()
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
    learning_rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
    if learning_rate is not None:
        metrics["learning_rate"] = learning_rate
    return TrainState(step, params, opt_state, ema, history, means), metrics


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
