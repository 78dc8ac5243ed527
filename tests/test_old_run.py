"""A workdir of an earlier version: it loads, draws, scores and trains on.

`tests/fixtures/old_run.tar.xz` was made by the code before one table served all modes, and before
conditions had names: four steps of `configs/vp_digits.py` with `model.width=8`,
`model.multipliers=(1,)` and batches of 16, then `--mode sample` (two steps, three images) and
`--mode likelihood` (three images at tolerances of 1e-3).
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import score_sde
from tests.commands import ROOT, succeed

SAVED = Path(__file__).parent / "fixtures" / "old_run.tar.xz"
SCORED = tuple(f"--config.likelihood.{key}" for key in ("num_images=3", "rtol=1e-3", "atol=1e-3"))
DRAWN = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=3")


def values(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(SAVED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def test_it_loads_and_draws_and_its_samples_are_kept(workdir):
    run = score_sde.load(workdir)
    assert run.step == 4 and run.config.model.width == 8 and run.info.shape == (8, 8, 1)
    assert len(jax.tree.leaves(run.score)) > 10
    recorded = values(workdir / "samples.npz")
    told = succeed("--mode=sample", "--workdir", workdir, *DRAWN, cwd=ROOT)
    assert "it is now samples.old.npz" in told
    old, new = values(workdir / "samples.old.npz"), values(workdir / "samples.npz")
    assert (workdir / "samples.old.png").exists()
    for name, array in recorded.items():
        np.testing.assert_array_equal(old[name], array)
    # The same noise, network and sampler; rounding crosses the edge of a pixel's bin.
    assert new["images"].shape == old["images"].shape == (3, 8, 8, 1)
    assert np.abs(new["images"].astype(int) - old["images"]).max() <= 1
    assert (new["images"] == old["images"]).mean() > 0.95


@pytest.mark.thorough
def test_it_gives_the_likelihoods_of_then_and_keeps_them(workdir):
    recorded = values(workdir / "likelihood.npz")
    summary = (workdir / "likelihood.json").read_text()
    told = succeed("--mode=likelihood", "--workdir", workdir, *SCORED, cwd=ROOT)
    assert "it is now likelihood.old.npz" in told
    old, new = values(workdir / "likelihood.old.npz"), values(workdir / "likelihood.npz")
    np.testing.assert_array_equal(old["bits_per_dim"], recorded["bits_per_dim"])
    assert (workdir / "likelihood.old.json").read_text() == summary
    assert json.loads((workdir / "likelihood.json").read_text())["complete"]
    # The same points and probes. Each solve has some twenty steps of 1e-3 of the state's size, and
    # of some 100 nats' change; over 64 log 2.
    np.testing.assert_allclose(new["bits_per_dim"], recorded["bits_per_dim"], atol=2e-2)


@pytest.mark.thorough
def test_it_trains_on(workdir):
    more = ("--config.training.num_steps=6", "--config.training.sample_every=0")
    succeed("--mode=train", "--workdir", workdir, *more, cwd=ROOT)
    assert score_sde.load(workdir).step == 6
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [2, 4, 6]
