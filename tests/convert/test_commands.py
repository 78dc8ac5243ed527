"""`--mode convert` and `--mode export`, by the commands that a user types."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import score_sde
from score_sde import build, convert, networks, presets, workdirs
from score_sde.config import changed
from score_sde.convert import torch_zip
from score_sde.convert.original import arrays
from score_sde.errors import UserError
from score_sde.modes import convert as convert_mode
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.mesh import data_mesh
from score_sde.training.state import create
from tests.commands import ROOT, refused, succeed
from tests.commands import command as run_command
from tests.convert.diffusers_folders import DDPM, DDPM_SHAPES, arrays_of, write
from tests.convert.originals import describe, source, spec_of
from tests.convert.torch_files import save
from tests.test_cifar10_commands import official  # noqa: F401  (a fixture)

SIZE = (
    "--config.model.width=8",
    "--config.model.multipliers=1,2",
    "--config.model.num_blocks=1",
)
# The recorded networks are of 16 pixels.
SIZE_16 = (
    *SIZE,
    "--config.data.name=celeba",
    "--config.data.image_size=16",
    "--config.model.attention_resolutions=8,",
)
PRESETS = ROOT / "configs"
# The recorded networks were never trained, so they predict no noise.
FORCE = "--force"


@pytest.fixture(scope="module")
def pth(reference_dir) -> Path:
    """A checkpoint with Adam's moments."""
    return source(reference_dir, "ve_ncsnpp_continuous")


@pytest.fixture(scope="module")
def converted(pth, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    out = succeed(
        *("--mode", "convert", "--source", pth, "--workdir", "run", FORCE),
        *("--config", PRESETS / "ve_cifar10.py", *SIZE_16),
        cwd=folder,
    )
    assert "averaged weights after 1301 steps, with Adam's moments" in out
    assert "(not within the bounds of trained networks: forced)" in out
    unseen = re.search("taken from the config, as neither arrays nor files show it: (.*)", out)[1]
    for key in ("the process VESDE", "data.image_size = 16", "model.skip_rescale = True"):
        assert key in unseen
    assert "norm_groups" in unseen and "model.fir" not in unseen  # its pyramid's names show it
    assert "parameters: 48,763" in out
    return folder / "run"


@pytest.mark.thorough
def test_a_converted_workdir_is_a_run_like_any_other(converted):
    run = score_sde.load(converted)
    assert run.step == 1301 and run.config.name == "ve_cifar10"
    out = succeed(
        *("--mode", "sample", "--workdir", converted, "--config.sampling.num_steps=2"),
        "--config.sampling.num_samples=3",
        cwd=converted.parent,
    )
    assert "3 images, NFE 4" in out
    out = succeed("--mode", "config", "--workdir", converted, cwd=converted.parent)
    assert re.search(r"\n +1301  \d{4}-\d\d-\d\d \d\d:\d\d\n$", out)  # it has no loss
    with np.load(converted / "samples.npz") as samples:
        assert samples["images"].shape == (3, 16, 16, 3)
    done = run_command("--mode", "likelihood", "--workdir", converted, cwd=converted.parent)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: config.data.name = 'celeba': ")


@pytest.mark.thorough  # test_recorded.py holds this score, without a workdir
def test_the_score_of_a_converted_run_is_the_recorded_one(reference_dir, tmp_path):
    """From Python, of a network trained on discrete levels. (Called without jit, as in
    test_modes.py, its operations would be a program each.)"""
    succeed(
        *("--mode", "convert", "--source", source(reference_dir, "ve_ncsnpp_discrete")),
        *("--config", f"{PRESETS / 've_cifar10.py'}:ncsnpp_discrete", "--workdir", "run"),
        FORCE,
        *(*SIZE_16[:-1], "--config.model.attention_resolutions=16,"),
        cwd=tmp_path,
    )
    run = score_sde.load(tmp_path / "run")
    with np.load(reference_dir / "ve_ncsnpp_discrete.npz") as arrays:
        t, x, expected = (arrays[f"{what}_mixed"] for what in ("t", "x", "score"))
    # The recordings' tolerance.
    score = jax.jit(lambda score, x, t: score(x, t))(run.score, x, t)
    error = np.abs(score - expected).max(axis=(1, 2, 3))
    assert np.all(error < 1e-4 * np.abs(expected).max(axis=(1, 2, 3)))


@pytest.mark.thorough
def test_everything_that_training_goes_on_from_is_in_it(converted, pth):
    """Step, schedule, Adam's count and moments, trained and averaged parameters."""
    config = workdirs.load(converted)
    _, params = networks.init(build.network(config, build.dataset(config)), jax.random.key(0))
    state = create(params, build.optimizer(config), data_mesh())
    state = Checkpoints(converted / "checkpoints").restore(state)
    _, adam, descent = state.opt_state
    assert (int(state.step), int(descent.num_updates), int(adam.count)) == (1301, 1301, 3)
    foreign = torch_zip.load(pth)
    raw = foreign["model"]["module.all_modules.3.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(state.params["stem"]["kernel"], raw)
    # The fourth of the parameters' list that has no place for the frozen features at its head.
    averaged = foreign["ema"]["shadow_params"][4].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(state.ema["stem"]["kernel"], averaged)
    moments = foreign["optimizer"]["state"][5]
    for ours, name in ((adam.mu, "exp_avg"), (adam.nu, "exp_avg_sq")):
        np.testing.assert_array_equal(ours["stem"]["kernel"], moments[name].transpose(2, 3, 1, 0))
        assert not np.any(ours["condition"]["frequencies"])


@pytest.mark.thorough
def test_an_export_and_back(converted, tmp_path):
    out = succeed("--mode", "export", "--workdir", converted, "--target", "out", cwd=tmp_path)
    assert "averaged, after 1301 steps" in out
    params = score_sde.load(converted).score.params
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == convert.flattened(params).keys()
    succeed("--mode", "convert", "--source", "out", "--workdir", "back", cwd=tmp_path)
    back = score_sde.load(tmp_path / "back")
    assert back.step == 1301
    jax.tree.map(np.testing.assert_array_equal, back.score.params, params)
    again = ("--mode", "export", "--workdir", converted, "--target", "out")
    assert "--target = 'out': not empty" in refused(*again, cwd=tmp_path)
    named = ("--mode", "convert", "--source", "out", "--config", PRESETS / "vp_digits.py")
    assert "out has its own config.json" in refused(*named, cwd=tmp_path)


@pytest.mark.thorough
def test_raw_weights_on_request(pth, tmp_path):
    succeed(
        *("--mode", "convert", "--source", pth, "--workdir", "run", "--weights", "raw", FORCE),
        *("--config", PRESETS / "ve_cifar10.py", *SIZE_16),
        cwd=tmp_path,
    )
    raw = torch_zip.load(pth)["model"]["module.all_modules.3.weight"].transpose(2, 3, 1, 0)
    params = score_sde.load(tmp_path / "run").score.params
    np.testing.assert_array_equal(params["stem"]["kernel"], raw)


@pytest.mark.slow
def test_training_goes_on_where_the_original_stopped(pth, official, tmp_path, monkeypatch):  # noqa: F811
    """On CIFAR-10, whose 32 pixels make no difference to the arrays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(official))
    preset = ("--config", PRESETS / "ve_cifar10.py", *SIZE)
    command = ("--mode", "convert", "--source", pth, *preset, "--config.training.batch_size=16")
    command += (FORCE,)
    succeed(*command, cwd=tmp_path)
    run = ("--workdir", "runs/ve_cifar10")
    succeed("--mode", "train", *run, "--config.training.num_steps=1304", cwd=tmp_path)
    assert score_sde.load(tmp_path / "runs" / "ve_cifar10").step == 1304


@pytest.mark.thorough
def test_a_pipeline_of_diffusers_needs_no_config(tmp_path):
    """It says its network, its process and its parameterization."""
    for name in ("unet", "scheduler"):
        (tmp_path / "pipe" / name).mkdir(parents=True)
    write(tmp_path / "pipe" / "unet", DDPM, arrays_of(DDPM_SHAPES))
    chain = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
    chain |= {"prediction_type": "v_prediction", "num_train_timesteps": 50}
    chain |= {"timestep_spacing": "trailing", "variance_type": "fixed_small"}
    (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").write_text(json.dumps(chain))
    command = ("--mode", "convert", "--source", "pipe", "--workdir", "run", FORCE)
    out = succeed(*command, cwd=tmp_path)
    assert "process: DiscreteVPSDE of 50 betas, velocity; from pipe/scheduler" in out
    flags = "--config.sampling.method=ddim --config.sampling.grid=trailing"
    assert f"samples as {flags} --config.sampling.clip=1.0\n" in out
    assert "not taken from it: 'variance_type': 'fixed_small'\n" in out
    assert "taken from the config" not in out
    # Weights drawn at random. The files say every setting, so no other is tried.
    done = run_command(*command[:-2], "again", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "fails the check: its error in predicting the noise that it is given is " in done.stderr
    assert ", or --force (docs/checkpoints.md" in done.stderr and "trying" not in done.stdout
    assert not (tmp_path / "again").exists()
    config = workdirs.load(tmp_path / "run")
    assert (config.data.name, config.data.image_size, config.name) == ("images", 8, "pipe")
    assert (config.sde.name, len(config.sde.betas)) == ("vp_discrete", 50)
    other = ("--mode", "likelihood", "--workdir", "run", "--config.data.name=digits")
    line = run_command(*other, cwd=tmp_path).stderr
    assert "config.data.channels = 3: allowed are 0 (its own 1 channels) for digits" in line
    typed = (*command[:4], "--config.model.parameterization=epsilon")
    line = refused(*typed, cwd=tmp_path)
    assert "config.model.parameterization = 'epsilon': allowed are 'velocity', as pipe says" in line
    # The network's folder alone, with a preset that contradicts it.
    unet = ("--mode", "convert", "--source", "pipe/unet", "--workdir", "other", FORCE)
    done = run_command(*unet, "--config", PRESETS / "ve_celeba.py", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.startswith("note: pipe/unet sets "), done.stderr
    assert "config.sde.name = 'vp_discrete' (not 've')" in done.stderr
    assert re.search(r"config\.model\.parameterization = 'velocity' \(not '", done.stderr)
    assert workdirs.load(tmp_path / "other").sde.name == "vp_discrete"
    says = tmp_path / "pipe" / "unet" / "config.json"
    says.write_text(json.dumps({**json.loads(says.read_text()), "sample_size": 4096}))
    done = run_command(*command[:-2], "large", cwd=tmp_path)
    assert "config.data.image_size = 4096: allowed are sizes of up to 4194304 p" in done.stderr
    alone = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    line = refused("--mode", "convert", "--source", alone, cwd=tmp_path)
    assert "arrays, which do not say their network; allowed is its folder" in line


@pytest.mark.thorough
def test_weights_alone_are_named_by_the_user(pth, tmp_path):
    weights = torch_zip.load(pth)["model"]
    save(tmp_path / "weights.pth", weights)
    command = ("--mode", "convert", "--source", "weights.pth", "--workdir", "run", FORCE)
    command += ("--config", PRESETS / "ve_cifar10.py", *SIZE_16)
    done = run_command(*command, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: --weights: missing; weights.pth has one set of weights")
    out = succeed(*command, "--weights", "raw", cwd=tmp_path)
    assert "raw weights after 0 steps, without Adam's moments" in out
    params = score_sde.load(tmp_path / "run").score.params
    stem = weights["module.all_modules.3.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["stem"]["kernel"], stem)


def as_torch(config, params):
    """A network's parameters by the names and layouts of the original's PyTorch."""
    params, weights = convert.flattened(params), {}
    for array in arrays(spec_of(config)):
        value = params[array.path]
        layout = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        weights[array.torch] = value.T if array.layer == "dense" else layout
    return weights


@pytest.mark.slow  # a U-Net, compiled for sampling and training
def test_a_network_of_one_channel_and_the_data_set_that_is_named_afterwards(tmp_path):
    """Under VE, of 16 pixels: no set that is read here by its name has these."""
    values = {"data.name": "images", "data.image_size": 16, "data.channels": 1, "sde.name": "ve"}
    values |= {"model.width": 8, "model.multipliers": (1, 2), "model.num_blocks": 1}
    values |= {"model.attention_resolutions": (8,), "model.input_frequencies": ()}
    config = changed(presets.load("vp_digits"), values)
    _, params = networks.init(build.network(config, build.dataset(config)), jax.random.key(0))
    save(tmp_path / "weights.pth", as_torch(config, params))
    typed = [f"--config.{key}={value}" for key, value in values.items()]
    source = ("--source", "weights.pth", "--weights", "averaged", FORCE)
    into = ("--config", PRESETS / "vp_digits.py", *typed, "--workdir", "run")
    succeed("--mode", "convert", *source, *into, cwd=tmp_path)
    run = score_sde.load(tmp_path / "run")
    assert run.info.shape == (16, 16, 1) and run.info.name == "images"
    jax.tree.map(np.testing.assert_array_equal, run.score.params, params)
    few = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=3")
    assert "3 images" in succeed("--mode", "sample", "--workdir", "run", *few, cwd=tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "mine.npz", images=images)
    mine = ("--config.data.name=npz", "--config.data.dir=mine.npz")
    train = ("--mode", "train", "--workdir", "run", *mine, "--config.training.num_steps=2")
    succeed(*train, "--config.training.sample_every=0", cwd=tmp_path)
    run = score_sde.load(tmp_path / "run")
    assert run.step == 2 and run.info.name == "npz" and run.info.splits["train"] == 90


@pytest.mark.slow
def test_the_setting_that_a_network_was_trained_with_is_named(tmp_path):
    """Digits by velocity, as a file of the original's names; with other groups it fits."""
    preset = ("--config", PRESETS / "vp_digits.py", "--config.model.input_frequencies=()")
    short = ("--config.training.num_steps=400", "--config.training.sample_every=0")
    succeed("--mode", "train", *preset, *short, "--workdir", "run", cwd=tmp_path)
    run = score_sde.load(tmp_path / "run")
    save(tmp_path / "weights.pth", as_torch(run.config, run.score.params))
    command = ("--mode", "convert", "--source", "weights.pth", "--weights", "averaged", *preset)
    wrong = (*command, "--workdir", "again", "--config.model.norm_groups=32")
    done = run_command(*wrong, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(r", or config\.model\.norm_groups = 0.*, or --force", done.stderr), done.stderr
    out = succeed(*command, "--workdir", "again", cwd=tmp_path)
    assert "(within the bounds of trained networks)" in out


def test_second_moments_are_means_of_squares(pth, reference_dir):
    config = describe(reference_dir, "ve_ncsnpp_continuous")
    foreign = convert.read(pth, spec_of(config))
    convert_mode._check(config, foreign, "", pth)
    wrong = {**foreign.nu, "stem/bias": -foreign.nu["stem/bias"] - 1e-9}
    with pytest.raises(UserError, match="second moment of stem/bias is negative"):
        convert_mode._check(config, foreign._replace(nu=wrong), "", pth)


@pytest.mark.thorough
def test_a_training_goes_on_from_what_a_file_has(pth, reference_dir):
    """As above, without a workdir: steps, moments, and the parameters that are asked for."""
    config = describe(reference_dir, "ve_ncsnpp_continuous")
    foreign = convert.read(pth, spec_of(config))
    network = build.network(config, build.dataset(config))
    states = {
        weights: convert_mode._state(config, network, foreign, weights, pth)
        for weights in ("averaged", "raw")
    }
    _, adam, descent = states["averaged"].opt_state
    steps = states["averaged"].step, descent.num_updates, adam.count
    assert [int(step) for step in steps] == [1301, 1301, 3]
    original = torch_zip.load(pth)
    stem = {
        "trained": original["model"]["module.all_modules.3.weight"],
        "averaged": original["ema"]["shadow_params"][4],
        "moment": original["optimizer"]["state"][5]["exp_avg"],
    }
    stem = {name: each.transpose(2, 3, 1, 0) for name, each in stem.items()}
    np.testing.assert_array_equal(states["averaged"].params["stem"]["kernel"], stem["trained"])
    np.testing.assert_array_equal(adam.mu["stem"]["kernel"], stem["moment"])
    for weights, name in (("averaged", "averaged"), ("raw", "trained")):
        np.testing.assert_array_equal(states[weights].ema["stem"]["kernel"], stem[name])


MISTAKES = {
    "no source": (("--mode", "convert"), "--source: missing; --mode convert needs it"),
    "a source that is not there": (
        ("--mode", "convert", "--source", "no.pth", "--config", PRESETS / "vp_cifar10.py"),
        "--source = 'no.pth': no such file or folder",
    ),
    "no config": (
        ("--mode", "convert", "--source", PRESETS / "vp_cifar10.py"),
        "--config: missing; it says the network that --source is one of",
    ),
    "weights of no kind": (
        ("--mode", "convert", "--source", PRESETS, "--weights", "mean"),
        "--weights = 'mean': allowed are averaged, raw",
    ),
    "a flag of another mode": (
        ("--mode", "train", "--source", "x.pth"),
        "--source = 'x.pth': goes with --mode convert only",
    ),
    "no target": (("--mode", "export", "--workdir", "x"), "--target: missing"),
    "an export of nothing": (
        ("--mode", "export", "--workdir", "x", "--target", "y"),
        "--workdir = 'x': no config.json there",
    ),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line(arguments, says, tmp_path):
    assert says in refused(*arguments, cwd=tmp_path)


@pytest.mark.thorough
def test_what_does_not_fit_is_refused_and_nothing_is_written(pth, converted, tmp_path):
    command = ("--mode", "convert", "--source", pth, "--workdir", "run")

    def says(*arguments, cwd=tmp_path):
        done = run_command(*command, *arguments, cwd=cwd)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    sigma = says("--config", PRESETS / "ve_cifar10.py", *SIZE_16, "--config.sde.sigma_max=90.0")
    assert "config.sde.sigma_max = 90.0: allowed are the checkpoint's 50" in sigma
    other = says("--config", PRESETS / "vp_cifar10.py", *SIZE_16)
    assert "its arrays do not fit the config" in other and "all_modules.0.W" in other
    blocks = says("--config", PRESETS / "ve_cifar10.py", *SIZE_16, "--config.model.num_blocks=2")
    assert "do not fit the config, most likely config.model.num_blocks = 1; " in blocks
    assert not list(tmp_path.iterdir())
    again = says("--config", PRESETS / "ve_cifar10.py", *SIZE_16, cwd=converted.parent)
    assert "--workdir = 'run': not empty; allowed are new or empty directories" in again
