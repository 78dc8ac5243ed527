"""The commands of docs/data.md, typed on a folder of photographs."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.commands import ROOT, SMALL, succeed
from tests.evaluation.recorded import packed_weights
from tests.pages import images_of, page_of

SMALLER = (
    *SMALL,
    "--config.model.multipliers=(1, 1)",
    "--config.model.attention_resolutions=(16,)",
    "--config.training.batch_size=4",
    "--config.training.num_steps=200",
    "--config.training.log_every=10",
    "--config.training.checkpoint_every=200",
    "--config.training.sample_every=0",
)
FEWER = ("--config.sampling.num_steps=5", "--config.sampling.num_samples=9")
MORE = {"train": SMALLER, "sample": FEWER, "evaluate": FEWER}


def photograph(index):
    """A sky that darkens upwards, a hill and a sun, 48 wide and 32 high."""
    y, x = np.mgrid[:32, :48] / 32
    sky = np.stack([0.5 + 0.4 * y, 0.6 + 0.3 * y, 1.0 - 0.2 * y + 0 * x], axis=-1)
    hill = y > 0.7 + 0.15 * np.sin(4 * x + index)
    sun = (x - 0.3 - 0.9 * (index % 7) / 7) ** 2 + (y - 0.25) ** 2 < 0.02
    sky[sun], sky[hill] = (1.0, 0.9, 0.4), (0.2, 0.4 + 0.02 * (index % 10), 0.2)
    return Image.fromarray((255 * sky).astype(np.uint8))


@pytest.fixture(scope="module")
def photographed(tmp_path_factory):
    """The folder where the commands of docs/data.md were typed, and `run`, which types one of them
    with a tiny network's flags."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "photos").mkdir()
    for index in range(60):
        photograph(index).save(folder / "photos" / f"{index:02}.jpg", quality=95)
    block = (ROOT / "docs" / "data.md").read_text().split("```")[1].replace("\\\n", "")
    lines = [shlex.split(line)[2:] for line in block.strip().splitlines()]
    typed = {line[1]: line for line in lines}
    assert [*typed] == ["data", "train", "sample", "evaluate", "report"]

    def run(mode, *more):
        return succeed(*typed[mode], *MORE.get(mode, ()), *more, cwd=folder)

    told = run("data")
    assert "--config.data.image_size=(32, 48)" in told or "60 images of 1 size" in told
    run("train")
    run("sample")
    return folder / "runs" / "photos", run


@pytest.mark.slow  # a U-Net, compiled for training and sampling
def test_a_users_photographs(photographed):
    workdir, run = photographed
    assert "Curve over 200 training steps" in (workdir / "report.html").read_text()
    (workdir / "report.html").unlink()
    run("report")
    page = page_of(workdir)
    assert "folder: images 32 × 48 × 3 of 256 levels" in page.text
    assert "9 samples by " in page.text and "(preset: " in page.text
    [samples] = images_of(page)
    assert samples.size == (3 * 49 - 1, 3 * 33 - 1) and samples.mode == "RGB"
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.slow  # the Inception network, compiled for half a minute
def test_a_users_photographs_evaluated(photographed, data_dir, tmp_path):
    workdir, run = photographed
    weights = tmp_path / "inception.safetensors"
    save_file({k: np.ascontiguousarray(a) for k, a in packed_weights(data_dir).items()}, weights)
    names = {"inception_weights": weights, "num_samples": 20, "num_reference": 20, "batch_size": 10}
    said = run("evaluate", *(f"--config.eval.{name}={value}" for name, value in names.items()))
    assert said.endswith(f"report: {workdir.relative_to(workdir.parents[1]) / 'report.html'}\n")
    page = page_of(workdir)
    assert "FID-20" in page.text and "20 samples by " in page.text
    figures = json.loads((workdir / "evaluation.json").read_text())["figures"]
    assert f"{figures['FID-20']:.4g}" in page.text
    _, nearest = images_of(page)
    assert nearest.size == (6 * 49 - 1, 10 * 33 - 1)
