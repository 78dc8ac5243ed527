"""`--mode convert`: make a workdir of another code base's checkpoint, or of an export of ours."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from score_sde import build, convert, networks, workdirs
from score_sde.config import refuse
from score_sde.errors import UserError
from score_sde.modes import start
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.mesh import data_mesh
from score_sde.training.state import TrainState, create


def run(config: ConfigDict, workdir: Path, source: Path, weights: str) -> None:
    """Convert; nothing is written before everything has been read and fits.

    Args:
        config: says the network that the source must be one of.
        workdir: new or empty.
        source: a file or folder, see `score_sde.convert`.
        weights: "averaged" or "raw", what sampling and likelihood will take.
    """
    start(1)
    info = build.dataset(config)
    make = build.network(config, info)
    foreign = convert.read(source, *make.args)
    for steps in (foreign.step, foreign.adam_steps):
        if not 0 <= steps < 2**31 - 1:
            raise UserError(f"--source {source}: its steps are {steps}; allowed are 0 to 2**31 - 2")
    if weights == "raw" and foreign.params is None:
        raise UserError(f"--weights = 'raw': {source} has one set of weights, the averaged")
    _check_levels(config, foreign.sigmas)
    state = _state(config, make, foreign, weights, source)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state, foreign.step)
    path = workdirs.save(config, workdir, info)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    trained = "with" if foreign.mu else "without"
    print(f"{source}: {weights} weights after {foreign.step} steps, {trained} Adam's moments")
    print(f"parameters: {size:,}")
    if source.is_dir() and not (source / convert.exported.FILE).is_file():
        _print_scheduler(config, source)
    print(f"taken from the config, as arrays do not show: {_unseen(config)}")
    print(f"config: {path}")
    print(f"next: --mode sample --workdir {workdir}")


def _state(
    config: ConfigDict,
    make: partial[Any],
    foreign: convert.Foreign,
    weights: str,
    source: Path,
) -> TrainState:
    """The state that training goes on from."""
    _, expected = networks.abstract(make)

    def fitted(flat: Mapping[str, np.ndarray], what: str = "arrays") -> Any:
        return jax.tree.map(jnp.asarray, convert.fit(flat, expected, source, what))

    ema = fitted(foreign.ema)
    params = ema if foreign.params is None else fitted(foreign.params)
    optimizer = build.optimizer(config)
    state = create(params, optimizer, data_mesh())
    place = state.step.sharding
    # The schedule goes by all steps; Adam's bias correction by those that its moments are of.
    known = {"num_updates": jnp.int32(foreign.step)}
    if foreign.mu is not None and foreign.nu is not None:
        # What is not trained has no moments there: they stay 0.
        zeros = {name: 0 * leaf for name, leaf in convert.flattened(params).items()}
        frozen = {name: zero for name, zero in zeros.items() if name.endswith("/frequencies")}
        known["count"] = jnp.int32(foreign.adam_steps)
        known["mu"], known["nu"] = (
            fitted({**frozen, **moments}, "Adam's moments") for moments in (foreign.mu, foreign.nu)
        )
    return dataclasses.replace(
        state,
        step=jax.device_put(jnp.int32(foreign.step), place),
        opt_state=jax.device_put(optax.tree_utils.tree_set(state.opt_state, **known), place),
        ema=jax.device_put(params if weights == "raw" else ema, place),
    )


def _print_scheduler(config: ConfigDict, source: Path) -> None:
    """Print where the process of a diffusers network comes from."""
    path = convert.diffusers.scheduler_file(source)
    if path is None:
        print(f"process: the config's, as no {convert.scheduler.FILE} lies beside the network")
        return
    print(f"process: that of {path}, with its {config.model.parameterization}")
    grid = convert.scheduler.spacing(path)
    if grid:
        flags = f"--config.sampling.method=ddim --config.sampling.grid={grid}"
        print(f"times as its scheduler takes them: {flags}")


def _unseen(config: ConfigDict) -> str:
    """Settings of the training that follow from the config alone, not from the arrays, in words."""
    keys = ("num_levels", "parameterization", "condition", "centered", "activation")
    settings = ", ".join(f"model.{key} = {config.model[key]}" for key in keys)
    return f"the process {build.sde(config)}, {settings}"


def _check_levels(config: ConfigDict, sigmas: np.ndarray | None) -> None:
    """Raise UserError where a VE checkpoint was trained on other noise levels than the config's."""
    if sigmas is None or not hasattr(build.sde(config), "sigma_min") or not len(sigmas):
        return
    for key, level in (("sigma_min", sigmas[0]), ("sigma_max", sigmas[-1])):
        if not math.isclose(config.sde[key], level, rel_tol=1e-5):
            raise refuse(f"sde.{key}", config.sde[key], f"the checkpoint's {float(level):.6g}")
    if config.model.num_levels not in (0, len(sigmas)):
        raise refuse("model.num_levels", config.model.num_levels, f"the checkpoint's {len(sigmas)}")
