"""The command line as a user types it: the line that each mistake gives."""

from pathlib import Path

import pytest

from score_sde import cli, paths, presets
from tests.cases import thorough
from tests.commands import CONFIGS, DIGITS, command, process, refused, succeed


def test_help_lists_the_modes(tmp_path):
    told = succeed("--help", cwd=tmp_path)
    for mode in cli.MODES:
        assert f"\n  {mode} " in told
    assert succeed("-h", cwd=tmp_path) == told


PRESETS = (
    "cosine_digits, ect_digits, ect_fashion_mnist, edm_cifar10, edm_digits, edm_fashion_mnist, "
    "iddpm_digits, subvp_cifar10, subvp_digits, vdm_digits, ve_1024, ve_256, ve_celeba, "
    "ve_cifar10, ve_digits, vp_256, vp_cifar10, vp_digits, vp_fashion_mnist, vp_moons"
)
MISTAKES = {
    "no mode": (
        [],
        "error: --mode: missing; allowed are train, train_classifier, sample, likelihood, "
        "interpolate, restore, evaluate, report, convert, data, config, export",
    ),
    "unknown mode": (
        ["--mode=trian"],
        "error: --mode = 'trian': allowed are train, train_classifier, sample, likelihood, "
        "interpolate, restore, evaluate, report, convert, data, config, export",
    ),
    "mode without value": (
        ["--mode"],
        "error: --mode: a value is missing",
    ),
    "unknown flag": (
        ["--mode=train", "--work_dir=x"],
        "error: --work_dir: no such flag; closest is --workdir (and --config.section.key=value)",
    ),
    "positional argument": (
        ["--mode=train", "vp_digits"],
        "error: 'vp_digits': not a flag; values follow their key as --config.section.key=value",
    ),
    "config file missing": (
        ["--mode=train", "--config=configs/vp_digit.py"],
        f"error: --config configs/vp_digit.py: no such file; the presets are {PRESETS}",
    ),
    "preset that does not exist": (
        ["--mode=train", "--config=vp_digit:deep"],
        f"error: --config vp_digit:deep: no such preset; allowed are {PRESETS}, FILE.py",
    ),
    "config file that is no Python": (
        ["--mode=train", "--config=/dev/null"],
        f"error: --config /dev/null: no such preset; allowed are {PRESETS}, FILE.py",
    ),
    "unknown variant": (
        ["--mode=train", DIGITS + ":deep"],
        f"error: {DIGITS.replace('=', ' ')}:deep: variant 'deep': allowed are conditional",
    ),
    "unknown variant of many": (
        ["--mode=train", f"--config={CONFIGS / 've_cifar10.py'}:ddpmpp"],
        f"error: --config {CONFIGS / 've_cifar10.py'}:ddpmpp: variant 'ddpmpp': allowed are "
        "ncsnpp, ncsnpp_deep, ncsnpp_discrete, ddpm_discrete, ncsn, ncsnv2",
    ),
    "variant missing": (
        ["--mode=train", f"--config={CONFIGS / 've_256.py'}"],
        f"error: --config {CONFIGS / 've_256.py'}: a variant is missing (FILE:VARIANT): allowed "
        "are bedroom, church, celebahq, ffhq",
    ),
    "image size of a set that has one": (
        ["--mode=train", DIGITS, "--config.data.image_size=16"],
        "error: config.data.image_size = 16: allowed are 0 (its own 8 pixels) for digits",
    ),
    "discrete training of a process without chain": (
        ["--mode=train", DIGITS, "--config.sde.name=subvp", "--config.model.num_levels=1000"],
        "error: config.model.num_levels = 1000: allowed are 0, as SubVPSDE has no discrete chain",
    ),
    "discrete training of Fourier features": (
        ["--mode=train", DIGITS, "--config.model.num_levels=1000"],
        "error: config.model.embedding = 'fourier': allowed are positional, vaswani with "
        "config.model.num_levels = 1000",
    ),
    "unknown key": (
        ["--mode=train", DIGITS, "--config.training.num_step=5"],
        "error: config.training.num_step = '5': no such key; closest is config.training.num_steps",
    ),
    "unknown key in the wrong section": (
        ["--mode=train", "--config.model.batch_size=5"],
        "error: config.model.batch_size = '5': no such key; closest are "
        "config.eval.batch_size, config.likelihood.batch_size, config.sampling.batch_size, "
        "config.training.batch_size",
    ),
    "unknown key that is part of others": (
        ["--mode=train", "--config.sampling.step=5"],
        "error: config.sampling.step = '5': no such key; closest are "
        "config.sampling.corrector_steps, config.sampling.max_steps, config.sampling.num_steps, "
        "config.sampling.step_control, config.sampling.step_size, config.sampling.steps_offset, "
        "config.sampling.steps_per_level",
    ),
    "unknown key like no other": (
        ["--mode=train", "--config.x=5"],
        "error: config.x = '5': no such key; sections are "
        "data, eval, likelihood, model, restore, sampling, sde, training",
    ),
    "section instead of a key": (
        ["--mode=train", "--config.data=5"],
        "error: config.data = '5': a section; its keys are augment, augmentations, bin_width, "
        "channels, condition, dir, flip, image_size, name, num_classes, skip_corrupt, stream, "
        "workers",
    ),
    "text for an integer": (
        ["--mode=train", "--config.training.num_steps=many"],
        "error: config.training.num_steps = 'many': allowed are integers",
    ),
    "fraction for an integer": (
        ["--mode=train", "--config.training.num_steps", "1.5"],
        "error: config.training.num_steps = '1.5': allowed are integers",
    ),
    "text for a number": (
        ["--mode=train", "--config.sampling.t_min=small"],
        "error: config.sampling.t_min = 'small': allowed are numbers",
    ),
    "text for a switch": (
        ["--mode=train", "--config.sampling.gif=maybe"],
        "error: config.sampling.gif = 'maybe': allowed are True, False",
    ),
    "text in a tuple": (
        ["--mode=train", "--config.model.multipliers=1,b"],
        "error: config.model.multipliers = ('1,b',): allowed are tuples of positive integers, one "
        "per resolution",
    ),
    "key without value": (
        ["--mode=train", "--config.seed"],
        "error: --config.seed: a value is missing",
    ),
    "name of the preset": (
        ["--mode=train", "--config.name=mine"],
        "error: config.name = 'mine': cannot be set; it is the name of --config",
    ),
    "sampler that does not exist": (
        ["--mode=sample", "--config.sampling.method=hmc", DIGITS, "--mode=train"],
        "error: config.sampling.method = 'hmc': allowed are pc, ald, ode, ddim, dpmpp, unipc, ",
    ),
    "solver that does not exist": (
        ["--mode=train", DIGITS, "--config.sampling.solver=rk45"],
        "error: config.sampling.solver = 'rk45': allowed are tsit5, dopri5, dopri8, heun, euler",
    ),
    "step control that does not exist": (
        ["--mode=train", DIGITS, "--config.sampling.step_control=pid"],
        "error: config.sampling.step_control = 'pid': allowed are sample, batch",
    ),
    "resolution not divisible": (
        ["--mode=train", DIGITS, "--config.model.multipliers=1,1,1,1,1"],
        "error: config.model.multipliers = (1, 1, 1, 1, 1): allowed are 1 to 4 ",
    ),
    "workdir missing": (
        ["--mode=sample", "--workdir=runs/none"],
        "error: --workdir = 'runs/none': no config.json there; allowed are directories of "
        "--mode train",
    ),
    "default workdir missing": (
        ["--mode=likelihood", f"--config={CONFIGS / 've_digits.py'}"],
        "error: --workdir = 'runs/ve_digits': no config.json there; allowed are directories of "
        "--mode train",
    ),
    "key within a key": (
        ["--mode=train", "--config.data.flip.x=3"],
        "error: config.data.flip.x = '3': no such key; closest is config.data.flip",
    ),
    "workdir that cannot be made": (
        ["--mode=train", "--workdir=/dev/null/run"],
        "error: --workdir = '/dev/null/run': /dev/null is not a directory one may write to",
    ),
    "output of a mode that writes into its workdir": (
        ["--mode=train", "--output=out"],
        "error: --output = 'out': goes with --mode sample, likelihood, interpolate, data, "
        "report, evaluate, restore only",
    ),
    "another run of a mode that shows one": (
        ["--mode=sample", "--against=runs/b"],
        "error: --against = 'runs/b': goes with --mode report only",
    ),
    "output empty": (
        ["--mode=sample", "--output="],
        "error: --output: a value is missing",
    ),
    "workdir empty": (
        ["--mode=train", "--workdir="],
        "error: --workdir = '': not a directory",
    ),
    "workdir in a bucket that Orbax does not know": (
        ["--mode=train", "--workdir=s3://bucket/run"],
        "error: --workdir = 's3://bucket/run': allowed are paths of this machine, and gs://, as "
        "Orbax keeps no checkpoints elsewhere",
    ),
    "output at an address": (
        ["--mode=sample", "--output", "https://example.org/out"],
        "error: --output = 'https://example.org/out': allowed are paths of this machine, and "
        "gs://, s3://",
    ),
    "preset at an address": (
        ["--mode=train", "--config=https://example.org/mine.py:small"],
        "error: --config = 'https://example.org/mine.py': allowed are paths of this machine",
    ),
    "data in a bucket": (
        ["--mode=train", DIGITS, "--config.data.dir=gs://bucket/data"],
        "error: config.data.dir = 'gs://bucket/data': allowed are paths of this machine",
    ),
    "source at an address": (
        ["--mode=convert", "--source=https://example.org/model.pth", DIGITS],
        "error: --source = 'https://example.org/model.pth': allowed are paths of this machine; "
        "mount a bucket, or copy its files",
    ),
    "home of nobody": (
        ["--mode=train", "--workdir=~no.such.user/run"],
        "error: --workdir = '~no.such.user/run': no home folder of ~no.such.user; set HOME, or "
        "write it out",
    ),
    "name that is too long": (
        ["--mode=train", f"--workdir={'a' * 300}"],
        f"error: --workdir = '{'a' * 79}: cannot be read (File name too long)",
    ),
    "step that is no number": (
        ["--mode=sample", "--step=last"],
        "error: --step = 'last': allowed are steps of checkpoints",
    ),
    "step of more digits than Python reads": (
        ["--mode=sample", f"--step={'9' * 5000}"],
        "error: --step = '9999",
    ),
    "step of a training": (
        ["--mode=train", "--step=4"],
        "error: --step = '4': goes with --mode export, sample, likelihood, interpolate, evaluate, "
        "restore only",
    ),
    "step without value": (
        ["--mode=likelihood", "--step="],
        "error: --step: a value is missing",
    ),
    "source of another mode": (
        ["--mode=train", "--source=model.pth"],
        "error: --source = 'model.pth': goes with --mode convert only",
    ),
    "source missing": (
        ["--mode=convert", DIGITS],
        "error: --source: missing; --mode convert needs it",
    ),
    "source that is not there": (
        ["--mode=convert", DIGITS, "--source=model.pth"],
        "error: --source = 'model.pth': no such file or folder",
    ),
    "weights that are none": (
        ["--mode=convert", DIGITS, "--source=model.pth", "--weights=ema"],
        "error: --weights = 'ema': allowed are averaged, raw",
    ),
    "target missing": (
        ["--mode=export"],
        "error: --target: missing; --mode export needs it",
    ),
    "target that is not empty": (
        ["--mode=export", "--target=/dev"],
        "error: --target = '/dev': not empty; allowed are new or empty directories",
    ),
    "checkpoints kept that are never made": (
        ["--mode=train", DIGITS, "--config.training.keep_every=7"],
        "error: config.training.keep_every = 7: allowed are 0, multiples of "
        "config.training.checkpoint_every = ",
    ),
    "no checkpoint kept": (
        ["--mode=train", DIGITS, "--config.training.keep=0"],
        "error: config.training.keep = 0: allowed are integers of at least 1",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line(tmp_path, arguments, said):
    assert refused(*arguments, cwd=tmp_path).startswith(said)


def test_a_tilde_is_the_home_wherever_a_path_is_given(tmp_path, monkeypatch):
    """No shell replaces one within a word."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.pth").touch()
    train = cli.parse(["--mode=train", "--workdir=~/run", DIGITS])
    assert train.workdir == tmp_path / "run"
    convert = cli.parse(["--mode=convert", "--source=~/model.pth", "--workdir=~/other", DIGITS])
    assert convert.workdir == tmp_path / "other"
    assert convert.options["source"] == tmp_path / "model.pth"
    (tmp_path / "mine.py").write_text(MINE)
    assert presets.load("~/mine.py:small").name == "mine-small"


def test_a_folder_may_have_a_colon(tmp_path):
    """One that is named by a time; every absolute path of Windows has one, too."""
    folder = tmp_path / "2026-01-01T10:00"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    assert presets.load(str(folder / "mine.py")).name == "mine"
    assert presets.load(f"{folder / 'mine.py'}:small").name == "mine-small"
    assert paths.local("C:/runs", "--workdir") == Path("C:/runs")  # a drive is no scheme


MINE = """
from score_sde import presets

def get_config(variant=""):
    return presets.load("vp_digits")
"""

PRESETS_OF_USERS = {
    "syntax error": ("def get_config(:\n", "line 1: invalid syntax"),
    "no get_config": ("x = 1\n", "module 'preset_mine' has no attribute 'get_config'"),
    "error inside": ("def get_config():\n    return lr\n", "name 'lr' is not defined"),
    "not a config": (
        "def get_config():\n    return 5\n",
        "get_config() returns 5, not a ConfigDict",
    ),
    "missing import": ("import no_such_package\n", "No module named 'no_such_package'"),
    "takes no variant": (
        "def get_config():\n    pass\n",
        "get_config() takes 0 positional arguments but 1 was given",
    ),
    "unknown key": (
        "from score_sde.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.training.num_step = 5\n"
        "    return config\n",
        "'num_step': no such key; closest is config.training.num_steps",
    ),
    "wrong type": (
        "from score_sde.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.training.num_steps = 'many'\n"
        "    return config\n",
        "num_steps = many: allowed are integers",
    ),
    "a value for a section": (
        "from score_sde.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.sde = 'vp'\n"
        "    return config\n",
        "sde = vp: allowed are its keys",
    ),
    "missing file": ("open('gone.txt')\n", "No such file or directory: 'gone.txt'"),
}


@pytest.mark.parametrize(("text", "said"), PRESETS_OF_USERS.values(), ids=PRESETS_OF_USERS.keys())
def test_a_mistake_in_a_users_preset_is_told_in_one_line(tmp_path, text, said, request):
    (tmp_path / "mine.py").write_text(text)
    variant = ":v" if "takes no variant" in request.node.name else ""
    line = refused("--mode=train", f"--config=mine.py{variant}", cwd=tmp_path)
    assert line.startswith(f"error: --config mine.py{variant}: ")
    assert said in line


def test_a_mistake_is_told_without_jax(run_python):
    code = (
        "import sys; from score_sde import cli; status = cli.main(['--mode=train', '--config.x=1'])"
        "; print(status, {'jax', 'flax', 'numpy.random'} & set(sys.modules))"
    )
    done = run_python(code)
    assert done.stdout.startswith("2 ") and "jax" not in done.stdout, done.stdout + done.stderr


THREE = ("JAX_NUM_CPU_DEVICES", "3"), ("XLA_FLAGS", "--xla_force_host_platform_device_count=3")


@pytest.mark.parametrize(("variable", "value"), thorough(*THREE), ids=["jax", "xla"])
def test_devices_that_do_not_divide_the_batch(tmp_path, variable, value):
    done = process("--mode=train", cwd=tmp_path, JAX_PLATFORMS="cpu", **{variable: value})
    line = "error: config.training.batch_size = 64: allowed are multiples of the 3 devices\n"
    assert (done.returncode, done.stderr) == (2, line)
    assert not any(tmp_path.iterdir())


def test_a_set_that_is_only_described_cannot_be_read(tmp_path):
    """In tests/convert/test_commands.py by a mode that has a checkpoint."""
    done = command(f"--config={CONFIGS / 've_celeba.py'}", "--mode=train", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: config.data.name = 'celeba': ")
    assert "digits, cifar10, fashion_mnist, moons" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_missing_data_set_is_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = (f"--config={CONFIGS / 'vp_cifar10.py'}", "--config.data.dir=empty")
    nowhere = "http://127.0.0.1:9"  # no download
    done = command("--mode=train", *arguments, cwd=tmp_path, https_proxy=nowhere)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "cifar10" in done.stderr
    assert not (tmp_path / "runs").exists()
