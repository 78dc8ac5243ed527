"""Averages whose length is chosen at sampling, through the command line."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import score_sde
from score_sde import convert, workdirs
from score_sde.config import changed
from score_sde.errors import UserError
from tests.commands import DIGITS, FEW, TINY, command, refused, succeed


@pytest.mark.thorough
def test_a_length_is_chosen_after_the_training(tmp_path):
    train = ("--mode=train", DIGITS, *TINY, "--workdir=run", "--config.training.average_every=2")
    succeed(*train, cwd=tmp_path)
    sample = ("--mode=sample", "--workdir=run", *FEW)
    weights = set()
    for more in ((), ("--config.sampling.average=0.08",), ("--config.sampling.average=0.05",)):
        told = succeed(*sample, *more, cwd=tmp_path)
        assert "averaged weights after 4 steps" in told and "not read" not in told
        with np.load(tmp_path / "run" / "samples.npz") as file:
            images, depends = file["images"], json.loads(str(file["depends"]))
        weights.add(depends["weights"])
    assert len(weights) == 3
    saved = workdirs.load(tmp_path / "run")
    run = score_sde.load(
        tmp_path / "run", changed(saved, {"sampling.average": 0.05, "sampling.num_steps": 2})
    )
    np.testing.assert_array_equal(run.sample(jax.random.key(0), 3).images, images)
    assert score_sde.load(tmp_path / "run", run.config, step=2).step == 2
    with pytest.raises(UserError, match=r"^config\.sampling\.average = 0\.1: allowed are 0\.05, "):
        run.changed({"sampling.average": 0.1})
    for mode, length, allowed in (
        (sample, 0.02, "0, 0.04 to 0.12 with the averages of 2 steps, up to 4"),
        (train, 0.1, "0 for --mode train"),
    ):
        done = command(*mode, f"--config.sampling.average={length}", cwd=tmp_path)
        assert done.returncode == 2
        line = f"error: config.sampling.average = {length}: allowed are {allowed}"
        assert done.stderr.splitlines()[-1] == line
    line = refused(*train, "--config.training.average_every=0", cwd=tmp_path)
    assert "average_every = 0 (2 in run)" in line
    succeed(
        *("--mode=export", "--workdir=run", "--target=exported"),
        "--config.sampling.average=0.05",
        cwd=tmp_path,
    )
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    for name, array in convert.flattened(run.score.params).items():
        np.testing.assert_array_equal(exported[name], array)


@pytest.mark.thorough
def test_an_export_has_the_average_that_is_asked_for(tmp_path):
    every = "--config.training.average_every=2"
    succeed("--mode=train", DIGITS, *TINY, "--workdir=run", every, cwd=tmp_path)
    average = "--config.sampling.average=0.05"
    succeed("--mode=export", "--workdir=run", "--target=out", average, cwd=tmp_path)
    succeed("--mode=convert", "--source=out", "--workdir=again", cwd=tmp_path)
    run = score_sde.load(
        tmp_path / "run", changed(workdirs.load(tmp_path / "run"), {"sampling.average": 0.05})
    )
    again = score_sde.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.score.params, run.score.params)
