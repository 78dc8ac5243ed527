"""The environment of a command: what it lacks or asks for is said in a line, and numbers do not
depend on it."""

import os
import secrets
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from score_sde.cli import main
from score_sde.convert import exported
from score_sde.data.sources import cache_folder
from score_sde.errors import UserError
from score_sde.evaluation import weights
from tests.cases import thorough
from tests.commands import DIGITS, FEW, KINDS, ROOT, begin, command, process, small_files, succeed


@pytest.fixture
def settings():
    """JAX's configuration, put back afterwards."""
    before = dict(jax.config.values)
    yield
    for name in ("jax_compilation_cache_dir", *OTHER):
        jax.config.update(name, before[name])


OTHER = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_transfer_guard": "disallow",
    "jax_default_device": "gpu",
}


@pytest.mark.usefixtures("settings")
def test_settings_of_jax_change_no_numbers(tiny_run, tmp_path):
    """Samples by a method that draws noise at each step, which rbg keys would couple."""
    workdir = tiny_run("digits", tmp_path)
    sample = ("--mode=sample", *FEW, "--config.sampling.method=pc")
    succeed(*sample, cwd=tmp_path)
    before = dict(np.load(workdir / "samples.npz"))
    (workdir / "samples.npz").unlink()
    for name, value in OTHER.items():
        jax.config.update(name, value)
    told = succeed(*sample, cwd=tmp_path)
    for name in OTHER:  # the command's own conditions set the two promotions (tests/commands.py)
        assert f"note: {name.upper()} = " in told or "promotion" in name
    after = dict(np.load(workdir / "samples.npz"))
    np.testing.assert_array_equal(after["images"], before["images"])
    assert after["depends"] == before["depends"]


@pytest.mark.parametrize("folder", ["/dev/null/cache", None])
@pytest.mark.usefixtures("settings")
def test_programs_that_cannot_be_kept_are_compiled_anew(tiny_run, tmp_path, folder, nobody):
    """The folder cannot be made, or there is no home for it."""
    tiny_run("digits", tmp_path)
    if folder:
        nobody.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    told = succeed("--mode=sample", *FEW, cwd=tmp_path)
    assert "note: compiled programs are not kept: " in told
    assert ("Not a directory" if folder else "set HOME") in told
    assert not (tmp_path / "~").exists()


@pytest.fixture
def nobody(monkeypatch):
    """A user whom the system does not know, without HOME."""
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    return monkeypatch


def test_without_a_home_downloads_have_no_place(nobody, tmp_path):
    said = "set HOME, or XDG_CACHE_HOME to a folder from the root on, or config.{} to the"
    with pytest.raises(UserError, match=f"^config.data.dir: .*{said.format('data.dir')}"):
        cache_folder("cifar10")
    key, url = "eval.inception_weights", "https://example.org/the.whl"
    for setting in ("", url):
        with pytest.raises(UserError, match=f"^config.{key}: .*{said.format(key)}"):
            weights.read(setting)
    nobody.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("cifar10") == tmp_path / "score_sde" / "cifar10"
    nobody.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    said = r"weights: /dev/null/.* \(Not a directory\); XDG_CACHE_HOME moves the cache, and "
    with pytest.raises(UserError, match=said):
        weights.read(url)


@pytest.mark.thorough
def test_a_platform_that_is_not_there(tmp_path):
    done = process("--mode=train", DIGITS, cwd=tmp_path, JAX_PLATFORMS="abacus")
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: JAX_PLATFORMS = 'abacus': ") and "such as cpu" in line
    assert "Traceback" not in done.stderr and not any(tmp_path.iterdir())


def test_a_variable_that_jax_refuses(tmp_path):
    done = process("--mode=train", DIGITS, cwd=tmp_path, JAX_ENABLE_X64="maybe")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "JAX_ENABLE_X64" in done.stderr and "'maybe'" in done.stderr


def test_an_export_to_a_full_disk(tmp_path):
    said = r"model\.safetensors: cannot be written \(.*File too large"
    with small_files(100), pytest.raises(UserError, match=said):
        exported.write(tmp_path, {"kernel": np.zeros(100, np.float32)}, 1)


@pytest.mark.slow  # compiles anew: the cache, too, would be cut short
def test_a_checkpoint_to_a_full_disk(tmp_path):
    """One line, though Orbax logs each of its tasks that fail."""
    with small_files(20_000):  # config.json has 5000 bytes, some of a checkpoint's files 80,000
        running = begin(
            "--mode=train",
            *(DIGITS, *KINDS["unet"]),
            cwd=tmp_path,
            JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
        )
    _, said = running.communicate(timeout=240)
    *progress, line = said.splitlines()
    assert running.returncode == 2 and all(each.startswith("training: ") for each in progress), said
    assert line.startswith("error: ") and "checkpoints: cannot be written (File too large)" in line


@pytest.mark.thorough
def test_who_reads_the_output_may_go(tmp_path):
    running = begin("--mode=config", DIGITS, cwd=tmp_path)
    running.stdout.close()
    said = running.stderr.read()
    assert (running.wait(60), said) == (141, "")


@pytest.mark.thorough
def test_streams_that_are_closed_or_lack_a_character(tiny_run, tmp_path):
    """Progress bars go to stderr."""
    tiny_run("digits", tmp_path)
    program = f"{sys.executable} {ROOT / 'main.py'}"
    sample = f"exec {program} --mode=sample --output=m\u00fcller {' '.join(FEW)} 2>&-"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shell = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(["sh", "-c", sample], **shell)
    assert done.returncode == 0 and "picture: m\\xfcller/samples.png\n" in done.stdout, done.stdout
    assert (tmp_path / "m\u00fcller" / "samples.png").exists()
    done = subprocess.run(["sh", "-c", f"exec {program} --mode=config >&-"], **shell)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_current_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert main(["--mode=sample", "--output=out"]) == 2
    said = "error: the current folder cannot be found (No such file or directory)\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("network", ["Hungry", "HungryHost", "HungryKernel"])
def test_too_little_memory(tmp_path, network):
    network = f"--config.model.name=tests.tiny:{network}"
    done = command("--mode=train", DIGITS, *KINDS["digits"], network, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: --mode train: too little memory (")
    allowed = "a smaller config.training.batch_size or network (in a new workdir, if this one has "
    assert f"; allowed are {allowed}" in line and "or a device with more " in line


@pytest.mark.usefixtures("settings")
def test_a_cache_of_programs_in_the_home(tiny_run, tmp_path, nobody):
    """No shell replaces the ~ of a variable that stands in a file."""
    tiny_run("digits", tmp_path)
    nobody.setenv("HOME", str(tmp_path / "home"))
    nobody.setenv("JAX_COMPILATION_CACHE_DIR", "~/programs")
    assert "are not kept" not in succeed("--mode=sample", *FEW, cwd=tmp_path)
    assert (tmp_path / "home" / "programs").is_dir() and not (tmp_path / "~").exists()


@pytest.mark.slow
def test_damaged_programs_are_told_of_in_one_line(tiny_run, tmp_path):
    """A process of its own, as this one has the programs already."""
    tiny_run("digits", tmp_path)
    programs = tmp_path / "programs"
    sample = ("--mode=sample", *FEW)
    before = process(*sample, cwd=tmp_path, JAX_COMPILATION_CACHE_DIR=str(programs))
    assert before.returncode == 0 and "damaged" not in before.stdout, before.stderr
    (tmp_path / "runs" / "vp_digits" / "samples.npz").unlink()
    kept = list(programs.glob("*-cache"))
    assert len(kept) > 10
    for program in kept[1:]:
        program.write_bytes(program.read_bytes()[:100])
    after = process(*sample, cwd=tmp_path, JAX_COMPILATION_CACHE_DIR=str(programs))
    assert after.returncode == 0 and "persistent" not in after.stderr, after.stderr
    assert after.stdout.count("damaged programs there are compiled anew; delete the folder") == 1


FULL = {
    "config": ("config.json{}", "config.json"),
    "log": ("metrics.jsonl", "metrics.jsonl"),
    "picture": thorough(("samples/step_000004.png{}", "step_000004.png"))[0],
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file whose disk is always full")
@pytest.mark.parametrize(("partial", "file"), FULL.values(), ids=FULL.keys())
def test_a_full_disk_ends_a_training_in_one_line(tmp_path, partial, file, monkeypatch):
    """What a checkpoint does there is in tests/training/test_checkpoints.py."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0000")
    path = tmp_path / "run" / partial.format(f".{os.getpid()}-0000-{socket.gethostname()}.partial")
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")
    done = command("--mode=train", DIGITS, "--workdir=run", *KINDS["digits"], cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: run/")
    assert line.endswith(f"{file}: cannot be written (No space left on device)")
