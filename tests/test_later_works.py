"""Processes and settings of later works by the commands of docs/configuration.md."""

import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde import build, cli
from score_sde.augmentation import PARAMETERS
from score_sde.samplers import Heun
from score_sde.schedules import EDM, Sigmoid
from score_sde.sde import VPSDE
from tests.cases import thorough
from tests.commands import CONFIGS, DIGITS, FAST, FEW, ROOT, TINY, command, succeed
from tests.refusals import checked


def documented(flag):
    """The arguments of the page's command that has this flag."""
    page = (ROOT / "docs" / "configuration.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python main.py (.*)$", page, re.M)
    [found] = [words for words in map(shlex.split, commands) if flag in words]
    return [word.replace("configs/", f"{CONFIGS}/") for word in found]


@pytest.mark.parametrize("flag", thorough("--config.sde.shift=4", "--config.sde.name=sigmoid"))
def test_a_run_by_another_process_trains_and_samples(tmp_path, flag):
    succeed(*documented(flag), *TINY, "--workdir=run", cwd=tmp_path)
    run, t = score_sde.load(tmp_path / "run"), jnp.linspace(0.01, 0.99, 9)
    if "sigmoid" in flag:
        assert run.sde == Sigmoid(0.999)
    else:
        # Noise levels are 4 times as large; float32.
        wanted = VPSDE().log_snr(t) - 2 * np.log(4.0)
        np.testing.assert_allclose(run.sde.log_snr(t), wanted, rtol=1e-4, atol=1e-4)
    succeed("--mode=sample", "--workdir=run", *FEW, cwd=tmp_path)
    drawn = np.load(tmp_path / "run" / "samples.npz")
    assert drawn["images"].shape == (3, 8, 8, 1) and drawn["nfe"].tolist() == [3] * 3


CHAIN = (
    "--config.sde.name=cosine",
    *(f"--config.model.{key}" for key in ("num_levels=40", "parameterization=epsilon")),
    *(f"--config.model.{key}" for key in ("condition=time", "embedding=positional")),
    *("--config.training.loss=paper", "--config.training.dequantize=False"),
)


@pytest.mark.thorough
def test_a_chain_of_epsilon_ends_before_pure_noise(tmp_path):
    """As improved DDPM was published. Its levels have a denoised image, time T has none."""
    train = ("--mode=train", DIGITS, *TINY, *CHAIN, "--config.training.sample_every=4")
    succeed(*train, "--workdir=run", cwd=tmp_path)
    drawn = np.asarray(Image.open(tmp_path / "run" / "samples" / "step_000004.png"))
    assert drawn.std() > 10  # of a NaN all pixels are black
    for mode in ("likelihood", "interpolate"):
        done = command(f"--mode={mode}", "--workdir=run", cwd=tmp_path)
        assert done.returncode == 2 and "Cosine: alpha(T) = 0" in done.stderr.splitlines()[-1]
    by_level = ("--config.likelihood.method=vlb", "--config.likelihood.num_images=3")
    assert "all 40 levels" in succeed("--mode=likelihood", "--workdir=run", *by_level, cwd=tmp_path)


EDM_ON = "--config.sde.name=edm"


@pytest.mark.parametrize("variant", ["ncsnpp", "ddpm", "ddpmpp"])
def test_edm_is_accepted_on_the_papers_networks(tmp_path, monkeypatch, variant):
    """With the process, loss, sampler and augmentation of `edm_cifar10`. The network is the
    variant's, and is told of the augmentation."""
    monkeypatch.chdir(tmp_path)
    typed = [word.replace(":ncsnpp", f":{variant}") for word in documented(EDM_ON)]
    config, edm = cli.parse(typed).config, score_sde.presets.load("edm_cifar10")
    checked(config)
    assert build.sde(config) == EDM() and build.sampler(config) == Heun(num_steps=17)
    for key in ("data.flip", "data.augment", "data.augmentations", "likelihood.t_min",
                *(f"model.{key}" for key in ("parameterization", "sigma_data", "condition",
                                             "level_scale")),
                *(f"training.{key}" for key in ("loss", "t_min"))):  # fmt: skip
        section, name = key.split(".")
        assert config[section][name] == edm[section][name], key
    plain = score_sde.presets.load(f"vp_cifar10:{variant}")
    specs = [build.network(each, build.dataset(each)).args[0] for each in (config, plain)]
    assert [spec.augmentation for spec in specs] == [PARAMETERS, 0]
    assert [spec.fir for spec in specs] == [variant == "ncsnpp"] * 2


@pytest.mark.slow  # its network compiles for 15 s
def test_ncsnpp_learns_by_edm(tmp_path):
    """A small one of digits. It began with outputs of 0, whatever it is given. After four long
    steps it heeds what it is told of the augmentation: by more than float32 rounds scores of about
    1, some 1e-6."""
    few = ("--config.data.name=digits", "--config.model.multipliers=(1,2)", "--workdir=run")
    long = "--config.training.learning_rate=6e-3"
    succeed(*documented(EDM_ON), *FAST, *few, long, cwd=tmp_path)
    run = score_sde.load(tmp_path / "run")
    assert run.step == 4 and np.isfinite(run.metrics[-1]["loss"])
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.ones(2)
    score = jax.jit(lambda labels: run.score.given({"augmentation": labels})(x, t))
    plain, moved = (score(jnp.full((2, PARAMETERS), value)) for value in (0.0, 1.0))
    assert np.isfinite(plain).all() and np.abs(plain - moved).max() > 1e-4
