"""`--mode evaluate` by the Inception network's features."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from score_sde.evaluation import statistics, write_statistics
from tests.commands import FEW, ROOT, command, succeed
from tests.evaluation.recorded import packed_weights


@pytest.mark.slow  # the Inception network, compiled for half a minute
def test_a_run_and_its_samples(tiny_run, data_dir, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    weights = tmp_path / "inception.safetensors"
    arrays = {k: np.ascontiguousarray(a) for k, a in packed_weights(data_dir).items()}
    arrays["classifier"] = np.random.default_rng(0).standard_normal((2048, 10), np.float32)
    save_file(arrays, weights)
    settings = (
        f"--config.eval.inception_weights={weights}",
        "--config.eval.num_samples=24",
        "--config.eval.num_reference=30",
        "--config.eval.batch_size=8",
    )
    said = succeed("--mode=evaluate", "--workdir", workdir, *settings, *FEW, cwd=ROOT)
    found = json.loads((workdir / "evaluation.json").read_text())
    figures = found["figures"]
    assert "FID" not in figures and figures["FID-24"] > 0.0
    assert 1.0 <= figures["Inception_Score"]["value"] <= 10.0  # by the definition, of 10 classes
    assert figures["Inception_Score_of"] == 24
    assert figures["FID_at_sizes"].keys() == {"24", "12", "8", "6"}
    assert 0.0 <= figures["precision"] <= 1.0 and figures["of_each_side"] == 24
    assert found["reference"].items() >= {"set": "digits", "split": "train", "n": 30}.items()
    assert found["samples"]["n"] == 24 and found["samples"]["step"] == 4
    assert found["resize"] == "tf1" and len(found["weights"]) == 64
    assert str(figures["FID-24"]) in said and (workdir / "nearest.png").exists()
    # Again: nothing is drawn or computed anew, and the figures are the same.
    again = succeed("--mode=evaluate", "--workdir", workdir, *settings, *FEW, cwd=ROOT)
    assert "nothing to compute" in again
    assert json.loads((workdir / "evaluation.json").read_text())["figures"] == figures
    # The same samples as a file, against the reference's statistics.
    [features] = [
        np.load(path)
        for path in workdir.glob("features/*/000000.npy")
        if json.loads((path.parent / "about.json").read_text()).get("set")
    ]
    kept = statistics([features], {"resize": "tf1", "weights": found["weights"]})
    write_statistics(tmp_path / "stats.npz", kept)
    given = ("--samples", workdir / "samples.npz", "--reference", tmp_path / "stats.npz")
    succeed(
        *("--mode=evaluate", "--workdir", workdir, "--output", tmp_path / "out"),
        *settings,
        *given,
        cwd=ROOT,
    )
    other = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    # The order of sums over the images is another.
    assert other["FID-24"] == pytest.approx(figures["FID-24"], rel=1e-6)
    other_resize = "--config.eval.resize=halfpixel"
    done = command(
        "--mode=evaluate", "--workdir", workdir, *settings, other_resize, *given, cwd=ROOT
    )
    assert done.returncode == 2, done.stderr
    assert "its resize is 'tf1'; allowed is 'halfpixel'" in done.stderr
    write_statistics(tmp_path / "stats.npz", statistics([np.eye(3)]))
    done = command("--mode=evaluate", "--workdir", workdir, *settings, *given, cwd=ROOT)
    assert done.returncode == 2 and "of 3 features; allowed are 2048" in done.stderr
