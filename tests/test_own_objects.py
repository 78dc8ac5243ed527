"""A user's own process, network, data set, sampler, predictor and corrector, from a preset by the
command line, without a change to the package."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import score_sde
from tests.commands import refused, succeed

OBJECTS = """
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

from score_sde.data import Arrays, Dataset, DatasetInfo
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


@dataclass(frozen=True)
class LinearSpec:
    channels: int


class Linear(nnx.Module):
    Spec = LinearSpec
    rank = 3

    def __init__(self, spec, *, rngs: nnx.Rngs):
        self.layer = nnx.Linear(spec.channels, spec.channels, rngs=rngs)

    def __call__(self, x, noise, condition=None, **options):
        return self.layer(x)


@dataclass(frozen=True)
class Short(DDIM):
    num_steps: int = 3


def blots(split, data_dir=None):
    rng = np.random.default_rng(("train", "test").index(split))
    images = rng.integers(256, size=(INFO.splits[split], *INFO.shape), dtype=np.uint8)
    return Arrays(images, {})


INFO = DatasetInfo("blots", (8, 8, 1), 256, 0, {"train": 24, "test": 8})
BLOTS = Dataset(INFO, blots)


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
    config.data.name = "own_objects:BLOTS"
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
    """Run the command line in a folder with the preset; return what it prints."""
    (tmp_path / "own_objects.py").write_text(OBJECTS)
    (tmp_path / "own_preset.py").write_text(PRESET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> str:
        return succeed("--config=own_preset.py", *arguments, cwd=tmp_path)

    return run


def test_times_end_before_the_processs_own_T(command, tmp_path):
    """Cosine ends at T = 0.9."""
    for key in ("sampling.t_min", "likelihood.t_min", "training.t_min"):
        late = f"--config.{key}=0.9"
        line = refused("--mode=train", "--config=own_preset.py", late, cwd=tmp_path)
        assert (
            line.startswith(f"error: config.{key} = 0.9: allowed are times") and "T = 0.9" in line
        )


def test_they_train_sample_and_give_likelihoods(command):
    command("--mode=train")
    assert "sampler: Short(num_steps=3" in command("--mode=sample")
    arrays = np.load("runs/own_preset/samples.npz")
    assert arrays["nfe"].tolist() == [4, 4] and arrays["images"].shape == (2, 8, 8, 1)
    steps = ("--config.sampling.method=pc", "--config.sampling.num_steps=2")
    own = [f"--config.sampling.{name}=own_objects:{name}" for name in ("predictor", "corrector")]
    command("--mode=sample", *steps, *own)
    # The corrector's one evaluation at each time, and the denoising.
    assert np.load("runs/own_preset/samples.npz")["nfe"].tolist() == [5, 5]
    command("--mode=likelihood")
    assert np.isfinite(np.load("runs/own_preset/likelihood.npz")["bits_per_dim"]).all()
    # From Python, where the module can be imported.
    run = score_sde.load("runs/own_preset")
    assert (type(run.sde).__name__, jax.tree.leaves(run.sde)) == ("Cosine", [0.5])
    assert (run.info.name, run.info.splits["test"]) == ("blots", 8)
    # What the objects do not take is not used.
    told = command("--mode=config")
    shown = {line[3:].split(" = ")[0]: line[:2] for line in told.splitlines()}
    for key in ("sde.beta_max", "sde.sigma_min", "model.width", "sampling.order"):
        assert "-" in shown[key], key
    for key in ("sampling.eta", "model.parameterization"):
        assert "-" not in shown[key], key
    # An export and back.
    command("--mode=export", "--workdir=runs/own_preset", "--target=out")
    succeed("--mode=convert", "--source=out", "--workdir=again", cwd=Path())
    assert score_sde.load("again").sde == run.sde
