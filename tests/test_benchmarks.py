"""What the benchmarks' commands take, and what those of a few minutes make of tiny runs."""

import csv
import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest

from score_sde import overrides, presets
from tests.commands import CONFIGS, FAST, ROOT, as_users_have_it, succeed
from tests.refusals import checked

TINY = (*FAST, "--config.model.name=tests.tiny:Tiny")


def module(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


def benchmark(name, *arguments):
    """Run one as `python -m benchmarks NAME`."""
    with pytest.MonkeyPatch.context() as patch, as_users_have_it():
        patch.setattr(sys, "argv", ["benchmarks", name, *map(str, arguments)])
        patch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(ROOT / "benchmarks" / "__main__.py"), run_name="__main__")


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def systems():
    return module("systems")


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
def test_every_system_is_a_config_that_trains_samples_and_has_likelihoods(systems, data):
    place = systems.Place(Path(), data, "", 1.0)
    for system in systems.SYSTEMS.values():
        assert sum(stage.share for stage in system.stages) == pytest.approx(1.0)
        for stage in system.stages:
            if (preset := place.preset(stage)) not in presets.names():
                continue
            config = overrides.apply(presets.load(preset), systems.typed(stage.overrides))
            checked(config)
            settings = [systems.typed(each, "sampling.") for each in system.samplers.values()]
            settings += [[f"--config.likelihood.method={each}"] for each in system.likelihoods]
            for flags in settings:
                checked(overrides.apply(config, flags))


def test_the_table_has_what_was_measured(systems):
    row = {"system": "vp", "steps": "9", "ode": "1.7", "ode_error": "0.1", "sampler": "SDE"}
    [_, _, ours, real] = systems.markdown([row, {"system": systems.REAL}]).splitlines()
    assert ours == "| vp | 9 | – | 1.7 ± 0.1 | – | – | SDE | – | – | – | – |"
    assert real.startswith(f"| {systems.REAL} | – |")


def test_the_seconds_of_a_training_are_those_of_its_log(systems, tmp_path):
    log = [
        {"step": 10, "loss": 1.0, "images_per_second": 100.0},
        {"step": 10, "quality": 3.0},
        {"step": 30, "loss": 1.0, "images_per_second": 50.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    assert systems.trained(tmp_path, 5) == pytest.approx(10 * 5 / 100 + 20 * 5 / 50)


def test_a_benchmark_has_a_name():
    with pytest.raises(SystemExit, match=r"'speed': allowed are .*digits, .*systems"):
        benchmark("speed")


@pytest.mark.slow
def test_few_evaluations_of_tiny_runs(tmp_path, capsys):
    """Its lines, and that a second command measures nothing again."""
    edm, ect = (f"--config={CONFIGS / name}_digits.py" for name in ("edm", "ect"))
    succeed("--mode=train", edm, *TINY, "--workdir=edm", cwd=tmp_path)
    source = f"--config.training.from={tmp_path / 'edm'}"
    succeed("--mode=train", ect, *TINY, source, "--workdir=ect", cwd=tmp_path)
    folders = ("--output", tmp_path, "--rows", tmp_path / "rows")
    (tmp_path / "rows").mkdir()
    arguments = (tmp_path / "edm", tmp_path / "ect", "--number=20", *folders)
    benchmark("few_evaluations", *arguments)
    file = tmp_path / "few_evaluations_digits.csv"
    lines = lines_of(file)
    found = {(line["model"], line["sampler"]): line["nfe"] for line in lines}
    assert found == {
        ("ECT", "1 evaluation"): "1",
        ("ECT", "2 evaluations"): "2",
        **{("teacher", f"UniPC, {nfe}"): f"{nfe}" for nfe in (5, 10, 15)},
        ("teacher", "its own sampler"): "35",  # 17 steps of Heun's method, and the last
        ("", "held-out real images"): "",
    }
    times = [line["training"] for line in lines]
    assert times[0] == times[1] and times[2] == times[5] and float(times[0]) > 0 < float(times[2])
    before = file.read_bytes()
    for path in (file.with_suffix(".png"), tmp_path / "rows" / file.with_suffix(".png").name):
        path.unlink()
    capsys.readouterr()
    benchmark("few_evaluations", *arguments, "--table")
    assert file.read_bytes() == before and file.with_suffix(".png").exists()
    assert "| teacher | UniPC, 10 | 10 | " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        benchmark("few_evaluations", tmp_path / "ect", tmp_path / "edm")
    assert ended.value.code == 2
    assert "training.loss = edm; allowed are digits and consistency" in capsys.readouterr().err
