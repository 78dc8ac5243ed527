"""`--mode likelihood` interrupted, started again, shortened and changed, as a user would."""

import json
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde import workdirs
from score_sde.config import changed
from score_sde.data import load
from score_sde.display import eight_bits
from tests.commands import ROOT, begin, succeed

IMAGES = 21
SETTINGS = (
    f"--config.likelihood.num_images={IMAGES}",
    "--config.likelihood.batch_size=3",  # the last batch is a part of one
    "--config.likelihood.num_probes=2",
    "--config.likelihood.num_importance=2",
    "--config.likelihood.rtol=1e-2",
    "--config.likelihood.atol=1e-2",
)


def likelihood(workdir, *arguments):
    return succeed("--mode=likelihood", "--workdir", workdir, *SETTINGS, *arguments, cwd=ROOT)


def values(workdir):
    with np.load(workdir / "likelihood.npz") as arrays:  # whole at any time
        return dict(arrays)


def kill(workdir, number):
    """Kill a running command as soon as the file holds so many images. One that was done before is
    not interrupted, and is tried again."""
    before = {path: path.read_bytes() for path in workdir.glob("likelihood.*")}
    for _ in range(5):
        _killed(workdir, number)
        if len(values(workdir)["nfe"]) < IMAGES:
            break
        for path in workdir.glob("likelihood.*"):
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
    assert number <= len(values(workdir)["nfe"]) < IMAGES
    assert json.loads((workdir / "likelihood.json").read_text())["complete"] is False


def _killed(workdir, number):
    process = begin("--mode=likelihood", "--workdir", workdir, *SETTINGS, cwd=ROOT)
    deadline = time.monotonic() + 200
    while not (workdir / "likelihood.npz").exists() or len(values(workdir)["nfe"]) < number:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def unbroken(tiny_run, tmp_path_factory):
    """The workdir of a tiny run with its likelihoods, computed in one go."""
    workdir = tiny_run("digits", tmp_path_factory.mktemp("likelihood"))
    told = likelihood(workdir)
    summary = json.loads((workdir / "likelihood.json").read_text())
    assert f"{summary['bits_per_dim']:.4f} +- {summary['standard_error']:.4f} bits/dim" in told
    assert "(digits, test): upper bound by dequantization, up to solver and probes" in told
    assert f"{summary['standard_error_probes']:.4f} over probes" in told
    assert "dequantization: uniform, 17 levels, 2 each" in told
    for said in ("t_min 1e-05", "rademacher, probes 2", "rtol 0.01, atol 0.01", "float32"):
        assert said in told
    arrays = values(workdir)
    assert arrays["log_prob"].shape == arrays["log_weight"].shape == (IMAGES, 2)
    assert arrays["nfe"].shape == arrays["probe_error"].shape == (IMAGES,)
    # The same numbers added up here: equal to float64 rounding.
    bits = arrays["bits_per_dim"].astype(np.float64)
    assert bits.shape == (IMAGES,) and summary["num_images"] == IMAGES and summary["complete"]
    assert summary["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-12)
    error = bits.std(ddof=1) / IMAGES**0.5
    assert summary["standard_error"] == pytest.approx(error, rel=1e-12)
    nats = arrays["log_prob"].astype(np.float64).mean(axis=1)
    error = nats.std(ddof=1) / IMAGES**0.5
    assert summary["log_prob"] == pytest.approx(nats.mean(), rel=1e-12)
    assert summary["log_prob_standard_error"] == pytest.approx(error, rel=1e-12)
    assert f"{nats.mean():.2f} +- {error:.2f} nats" in told
    # Each image's probes are its own: variances of the mean add up.
    error = np.sqrt(np.square(arrays["probe_error"].astype(np.float64)).sum()) / IMAGES
    assert summary["standard_error_probes"] == pytest.approx(error, rel=1e-12)
    # The picture: the fewest bits at its upper left, the most below, of 8 pixels each as large.
    x = eight_bits(load("digits", "test").x[:IMAGES, ..., 0], 17)
    with Image.open(workdir / "likelihood.png") as picture:
        shown = np.asarray(picture.convert("L"))[::8, ::8]
    assert shown.shape == (17, 9 * min(8, IMAGES) - 1)
    np.testing.assert_array_equal(shown[:8, :8], x[bits.argmin()])
    np.testing.assert_array_equal(shown[9:, :8], x[bits.argmax()])
    return workdir


def test_the_command_has_the_numbers_of_a_run(unbroken):
    """Its keys and order; here in other batches."""
    names = {"num_probes": 2, "num_importance": 2, "rtol": 1e-2, "atol": 1e-2, "batch_size": 3}
    settings = {f"likelihood.{name}": value for name, value in names.items()}
    run = score_sde.load(unbroken, changed(workdirs.load(unbroken), settings))
    images = load("digits", "test").x[:5]
    parts = list(run.likelihood_batches(jax.random.key(0), images, first=1))
    assert [len(part.nfe) for part in parts] == [3, 1]
    again = np.concatenate([part.bits_per_dim for part in parts])
    # One solve per image. Its rounding depends on the batch's shape, which an adaptive solver's
    # step sizes pass on at the scale of its tolerance.
    np.testing.assert_allclose(again, values(unbroken)["bits_per_dim"][1:5], atol=1e-2)


# Ctrl-C amid a command is a matter of test_sample_command.py: both save their results by one class.
@pytest.mark.thorough
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir, ignore=shutil.ignore_patterns("likelihood.*"))
    kill(workdir, 6)
    left = f"likelihood.npz.{2**31 - 1}-0000-{socket.gethostname()}.partial"
    (workdir / left).write_bytes(b"as a kill may leave it")
    done = len(values(workdir)["nfe"])
    told = likelihood(workdir)
    assert f"{done} items of these settings; going on after them" in told
    once, again = values(unbroken), values(workdir)
    assert once.keys() == again.keys()
    for name in once:  # the same batches: bit for bit
        np.testing.assert_array_equal(once[name], again[name], err_msg=name)
    summaries = [(folder / "likelihood.json").read_text() for folder in (unbroken, workdir)]
    assert summaries[0] == summaries[1]
    assert not list(workdir.glob("*.partial"))


def test_what_is_computed_is_read_again_or_kept(unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    before, summary = values(workdir), (workdir / "likelihood.json").read_text()

    told = likelihood(workdir, "--config.likelihood.num_images=5")
    assert (
        f"{IMAGES} items of these settings; the first 5 of them follow, and the file stays" in told
    )
    bits = before["bits_per_dim"][:5].astype(np.float64)
    assert f"{bits.mean():.4f} +- " in told and "over 5 images" in told
    assert f"likelihood.json, of all {IMAGES}\n" in told
    assert values(workdir).keys() == before.keys() and len(values(workdir)["nfe"]) == IMAGES
    assert (workdir / "likelihood.json").read_text() == summary
    # What is paid for counts in whatever batches the command was going on, and keys that the schema
    # did not have then are at their defaults.
    settings = json.loads(str(before["depends"]))
    del settings["data.condition"], settings["data.bin_width"]
    older = before | {"depends": np.asarray(json.dumps(settings))}
    np.savez(workdir / "likelihood.npz", **older)
    told = likelihood(workdir, "--config.likelihood.batch_size=5")
    assert f"{IMAGES} items of these settings; nothing to compute" in told

    other = ("--config.likelihood.rtol=2e-2", "--config.likelihood.divergence=exact")
    other = (*other, "--config.sampling.atol=1e-3")
    told = likelihood(workdir, "--config.likelihood.num_images=3", *other)
    keys = "likelihood.divergence, likelihood.rtol, likelihood.num_probes"
    said = f"of another {keys}; it is now likelihood.old.npz"
    assert "settings: config.likelihood.num_probes, config.sampling.atol\n" in told
    assert said in told and "up to the solver\n" in told and "over probes" not in told
    assert len(values(workdir)["nfe"]) == 3 and "probe_error" not in values(workdir)
    new = json.loads((workdir / "likelihood.json").read_text())
    assert new["num_probes"] is None and new["standard_error_probes"] is None
    assert new["complete"] and new["num_images"] == 3
    with np.load(workdir / "likelihood.old.npz") as old:
        np.testing.assert_array_equal(old["bits_per_dim"], before["bits_per_dim"])
    assert (workdir / "likelihood.old.json").read_text() == summary
    # Neither are these overwritten by the next change.
    told = likelihood(workdir, "--config.likelihood.num_images=3", "--config.likelihood.rtol=5e-2")
    assert "it is now likelihood.old2.npz" in told
    assert (workdir / "likelihood.old.json").read_text() == summary
    assert (workdir / "likelihood.old2.json").exists()


@pytest.mark.thorough
def test_what_is_there_stays_until_there_is_something_new(unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    before = sorted(path.name for path in workdir.iterdir())
    other = (*SETTINGS, "--config.likelihood.seed=1")
    process = begin("--mode=likelihood", "--workdir", workdir, *other, cwd=ROOT)
    while "averaged weights" not in process.stdout.readline():  # then it compiles
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert sorted(path.name for path in workdir.iterdir()) == before
    for name, array in values(unbroken).items():
        np.testing.assert_array_equal(values(workdir)[name], array)
