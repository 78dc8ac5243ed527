"""A user's own process, network, sampler, predictor and corrector, from a preset by the command
line, without a change to the package."""

import sys

import jax
import numpy as np
import pytest

import main
import score_sde

OBJECTS = """
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from score_sde.samplers import DDIM
from score_sde.samplers.predictor_corrector import CORRECTORS, PREDICTORS
from score_sde.sde import SDE


class Cosine(SDE):
    T = 0.9
    rate: float = 0.5

    def alpha(self, t):
        return jnp.cos(self.rate * jnp.pi * t)

    def sigma(self, t):
        return jnp.sin(self.rate * jnp.pi * t)


class Linear(nnx.Module):
    def __init__(self, *, channels: int, rngs: nnx.Rngs):
        self.layer = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, x, noise, condition=None, **options):
        return self.layer(x)


@dataclass(frozen=True)
class Short(DDIM):
    num_steps: int = 3


def predictor(*arguments):
    return PREDICTORS["reverse_diffusion"](*arguments)


def corrector(*arguments):
    return CORRECTORS["ald"](*arguments)
"""

PRESET = """
from score_sde.config import default


def get_config():
    config = default()
    config.sde.name = "own_objects:Cosine"
    config.model.name = "own_objects:Linear"
    config.sampling.method = "own_objects:Short"
    config.training.num_steps = 2
    config.training.batch_size = 8
    config.training.warmup_steps = 0
    config.training.sample_every = 0
    config.sampling.num_samples = 2
    config.likelihood.num_images = 2
    config.likelihood.batch_size = 2
    config.likelihood.rtol = config.likelihood.atol = 1e-2
    return config
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command line in a folder with the preset."""
    (tmp_path / "own_objects.py").write_text(OBJECTS)
    (tmp_path / "own_preset.py").write_text(PRESET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # One device, as this process may have begun with.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")

    def run(*arguments: str) -> None:
        assert main.main(["--config=own_preset.py", *arguments]) == 0

    return run


def test_they_train_sample_and_give_likelihoods(command, capsys):
    command("--mode=train")
    command("--mode=sample")
    assert "sampler: Short(num_steps=3" in capsys.readouterr().out
    arrays = np.load("runs/own_preset/samples.npz")
    assert arrays["nfe"].tolist() == [4, 4] and arrays["images"].shape == (2, 8, 8, 1)
    steps = ("--config.sampling.method=pc", "--config.sampling.num_steps=2")
    own = [f"--config.sampling.{name}=own_objects:{name}" for name in ("predictor", "corrector")]
    command("--mode=sample", *steps, *own)
    assert np.load("runs/own_preset/samples.npz")["nfe"].tolist() == [5, 5]
    command("--mode=likelihood")
    assert np.isfinite(np.load("runs/own_preset/likelihood.npz")["bits_per_dim"]).all()
    # From Python, where the module can be imported.
    run = score_sde.load("runs/own_preset")
    assert (type(run.sde).__name__, jax.tree.leaves(run.sde)) == ("Cosine", [0.5])
    # What the objects do not take is not used.
    capsys.readouterr()
    command("--mode=config")
    shown = {line[3:].split(" = ")[0]: line[:2] for line in capsys.readouterr().out.splitlines()}
    for key in ("sde.beta_max", "sde.sigma_min", "model.width", "sampling.order"):
        assert "-" in shown[key], key
    for key in ("sampling.eta", "model.parameterization"):
        assert "-" not in shown[key], key
