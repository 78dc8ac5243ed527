"""`--mode config`: what it prints of presets and workdirs."""

from dataclasses import dataclass

import pytest

from score_sde import build, presets, workdirs
from score_sde.cli import main
from score_sde.config import changed, default
from score_sde.networks import MLP, NETWORKS, MLPSpec
from score_sde.schema import SCHEMA
from score_sde.unread import unused
from tests.commands import CONFIGS, DIGITS

MOONS = f"--config={CONFIGS / 'vp_moons.py'}"


def shown(capsys, *arguments):
    """The marks and values of all keys."""
    assert main(["--mode=config", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    entries = [line for line in lines if line[3:].split(" = ")[0] in SCHEMA]
    keys = {line[3:].split(" = ")[0]: (line[:2].strip(), line[3:48].strip()) for line in entries}
    assert keys.keys() == SCHEMA.keys() - {"name"}
    return keys


def test_a_preset_with_overrides(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_preset = shown(capsys, DIGITS)
    assert of_preset["model.width"] == ("*", "model.width = 32")
    assert of_preset["training.beta2"] == ("", "training.beta2 = 0.999")
    assert of_preset["sampling.grid"] == ("", "sampling.grid = unset")
    assert of_preset["sampling.snr"][0] == of_preset["sde.sigma_max"][0] == "-"
    assert of_preset["sampling.eta"][0] == "*"
    of_pc = shown(capsys, DIGITS, "--config.sampling.method=pc", "--config.sampling.snr=0.2")
    assert of_pc["sampling.snr"][0] == "*-"  # there is no corrector
    assert of_pc["sampling.eta"][0] == "-"
    assert not any(tmp_path.iterdir())


def test_what_has_no_effect_beside_the_others(capsys):
    """Of the network, the features of an evaluation, and the likelihood of vectors."""
    of_digits = shown(capsys, DIGITS)
    keys = ("combine", "resample_with_conv", "symmetric_padding", "num_heads", "fourier_scale")
    marks = [of_digits[f"model.{key}"][0] for key in keys]
    assert marks == ["-", "-", "-", "", "*"] and of_digits["eval.resize"][0] == ""
    of_positional = shown(
        capsys,
        DIGITS,
        *("--config.model.embedding=positional", "--config.model.head_width=8"),
        "--config.eval.features=classifier",
    )
    changes = "model.fourier_scale", "model.num_heads", "eval.resize", "eval.inception_weights"
    assert [of_positional[key][0] for key in changes] == ["*-", "-", "-", "-"]
    of_moons = shown(capsys, MOONS, "--config.likelihood.method=bound")
    keys = ("likelihood.rtol", "likelihood.num_times", "model.fourier_scale", "model.fir")
    assert [of_moons[key][0] for key in keys] == ["-", "", "*", "-"]


@dataclass(frozen=True)
class WideSpec(MLPSpec):
    def __post_init__(self):
        if self.features < 2:
            raise ValueError(f"features = {self.features}: allowed are from 2")


class Wide(MLP):
    Spec = WideSpec


def test_a_network_that_does_not_take_any_vectors(monkeypatch):
    """Two moons are known; of a file of vectors nothing is, before it is read."""
    monkeypatch.setitem(NETWORKS, "wide", Wide)
    moons = changed(presets.load("vp_moons"), {"model.name": "wide"})
    positional = changed(moons, {"model.embedding": "positional"})
    assert "model.fourier_scale" in unused(positional) - unused(moons)
    assert "model.fourier_scale" not in unused(changed(positional, {"data.name": "npz"}))


def test_a_workdir(capsys, tmp_path):
    small = {"model.multipliers": (1, 2), "model.attention_resolutions": (4,), "name": "mine"}
    config = changed(default(), {**small, "sde.name": "ve"})
    workdirs.save(config, tmp_path, build.dataset(config))
    of_run = shown(capsys, f"--workdir={tmp_path}")
    assert of_run["sde.name"] == ("*", "sde.name = 've'")
    assert of_run["sde.beta_min"][0] == "-" and of_run["sde.sigma_min"][0] == ""
    betas = {"sde.name": "vp_discrete", "sde.betas": (1 / 128,) * 1000}
    workdirs.save(changed(config, betas), tmp_path, build.dataset(config))
    assert shown(capsys, f"--workdir={tmp_path}")["sde.betas"][0] == "*"  # in one line


@pytest.mark.thorough
def test_no_device_is_started(run_python):
    code = (
        "from score_sde import cli; cli.main(['--mode=config'])\n"
        "from jax._src import xla_bridge; assert not xla_bridge._backends"
    )
    assert "sampling.method" in run_python(code).stdout
