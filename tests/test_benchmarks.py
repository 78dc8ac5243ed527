"""What the benchmarks' commands take, and what those of a few minutes make of tiny runs."""

import csv
import importlib
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import score_sde
from score_sde import overrides, presets
from score_sde.augmentation import OPERATIONS
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


@pytest.mark.thorough
@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
def test_every_system_is_a_config_that_trains_samples_and_has_likelihoods(systems, data):
    place = systems.Place(Path(), data, "", 1.0)
    for system in systems.SYSTEMS.values():
        assert sum(stage.share for stage in system.stages) == pytest.approx(1.0)
        for stage in system.stages:
            if (preset := place.preset(stage)) not in presets.names():
                continue
            config = overrides.apply(presets.load(preset), place.flags(stage)[2:])
            checked(config)
            if stage is not system.stages[-1]:  # the last draws
                continue
            settings = [systems.typed(each, "sampling.") for each in system.samplers.values()]
            settings += [[f"--config.likelihood.method={each}"] for each in system.likelihoods]
            for flags in settings:
                checked(overrides.apply(config, flags))


def test_the_table_has_what_was_measured(systems):
    row = {"system": "vp", "steps": "9", "ode": "1.7", "ode_error": "0.1", "sampler": "SDE"}
    [_, _, ours, real] = systems.markdown([row, {"system": systems.REAL}]).splitlines()
    assert ours == "| vp | 9 | – | 1.7 ± 0.1 | – | – | SDE | – | – | – | – | – |"
    assert real.startswith(f"| {systems.REAL} | – |")


@pytest.mark.thorough
def test_what_is_known_of_a_system_is_not_measured_again(systems, tmp_path, capsys):
    """Its number of updates, and its rows. (A training goes on as every other does.)"""
    place = systems.Place(tmp_path, "digits", "", 5.0)
    (tmp_path / "steps.json").write_text('{"vp": [40]}')
    assert systems.steps(place, "vp", systems.SYSTEMS["vp"].stages) == [40]
    row = {"system": "vp", "steps": "40", "ode": "1.7", "ode_error": "0.1", "sampler": "SDE"}
    with (tmp_path / "systems.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, systems.FIELDS, restval="")
        writer.writeheader()
        writer.writerow(row)
    kept, real = systems.compare(place, ["vp"])
    assert {name: kept[name] for name in row} == row and real["system"] == systems.REAL
    assert capsys.readouterr().out == f"vp: in {tmp_path / 'systems.csv'}\n"  # and no command


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ROOT / "tests", "run"), "tests is no checkout: it has no score_sde/__init__.py"),
        ((ROOT, "run", "--rounds=0"), "--num, --rounds and --devices are numbers from 1 on"),
        ((ROOT, "run", "--sampler=pc"), "--sampler 'pc': allowed are UniPC; DPM-Solver++; "),
        pytest.param(
            (ROOT, "none", "--sampler=DDIM"), "no config.json there", marks=pytest.mark.thorough
        ),
    ],
)
def test_what_two_checkouts_cannot_compare(arguments, message, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        benchmark("two_checkouts", *arguments)
    assert ended.value.code == 2 and message in capfd.readouterr().err


@pytest.mark.slow
def test_few_evaluations_of_tiny_runs(tmp_path, capsys):
    """Its lines, and that a second command measures nothing again."""
    edm, ect = (f"--config={CONFIGS / name}_digits.py" for name in ("edm", "ect"))
    succeed("--mode=train", edm, *TINY, "--workdir=edm", cwd=tmp_path)
    source = f"--config.training.from={tmp_path / 'edm'}"
    succeed("--mode=train", ect, *TINY, source, "--workdir=ect", cwd=tmp_path)
    folders = ("--output", tmp_path, "--rows", tmp_path / "rows")
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


@pytest.mark.thorough
def test_turned_and_mirrored_digits_are_told():
    """Real ones, which are changed as numpy changes them."""
    augmentation = module("augmentation")
    judge, (x, labels) = augmentation.Judge(), augmentation.real("test")
    by_numpy = {
        "as they are": x,
        "half turns": x[:, ::-1, ::-1],
        "mirrored": x[:, :, ::-1],
        "upside down": x[:, ::-1],
    }
    for name, (values, kind, digits) in augmentation.CHANGES.items():
        images = augmentation.changed(x, values)
        if name in by_numpy:
            np.testing.assert_array_equal(images, by_numpy[name])
        said = judge.says(images)
        # Chance is a third.
        assert np.mean((said == kind)[np.isin(labels, digits)]) > 0.8, name
    quarter = augmentation.changed(x, augmentation.CHANGES["quarter turns"].values)
    np.testing.assert_array_equal(quarter[::2], np.rot90(x[::2], -1, (1, 2)))
    np.testing.assert_array_equal(quarter[1::2], np.rot90(x[1::2], 1, (1, 2)))


def test_every_operation_is_in_the_picture_of_augmentation():
    labels = module("augmentation").STRENGTHS
    assert tuple(label.partition(":")[0] for label in labels) == OPERATIONS


@pytest.mark.slow
def test_augmentation_of_tiny_runs(tmp_path, capsys):
    preset = f"--config={CONFIGS / 'edm_digits.py'}"
    every = "--config.data.augmentations=('flip_x','flip_y','scale','rotate','stretch','move')"
    for name, more in {"all": (every,), "some": ()}.items():
        succeed("--mode=train", preset, *TINY, *more, f"--workdir={name}", cwd=tmp_path)
    arguments = ("--number=20", "--output", tmp_path)
    benchmark("augmentation", tmp_path / "all", tmp_path / "some", *arguments)
    lines = lines_of(tmp_path / "augmentation.csv")
    assert [line["number"] for line in lines] == ["297"] * 5 + ["20"] * 6
    assert all(
        sum(float(line[kind]) for kind in ("upright", "turned", "mirrored"))
        == pytest.approx(1.0, abs=2e-3)  # three numbers of three digits
        for line in lines
    )
    assert [bool(line["told"]) for line in lines] == [True] * 5 + [False] * 6
    assert (tmp_path / "augmentation.png").exists()
    # The control without a change is the run's own sample. Another program rounds otherwise, which
    # moves a number that lies within some 1e-5 of half a level: one in 1e4 of 1280.
    run, augmentation = score_sde.load(tmp_path / "all"), module("augmentation")
    own = run.changed({"sampling.batch_size": 20}).sample(jax.random.key(0), 20).images
    with as_users_have_it():
        same, turned = (augmentation.of_run(run, [each], 20) for each in ({}, {"angle": 1.0}))
    assert (same != own).mean() < 0.01 < (turned != own).mean()
    for wrong, said in {
        (tmp_path / "some",): "allowed are two",
        (tmp_path / "some", tmp_path / "all"): "allowed are runs with data.augment and all",
    }.items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            benchmark("augmentation", *wrong, *arguments)
        assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.thorough  # a training and six samplings
def test_respaced_sampling_of_a_tiny_run(tmp_path):
    preset, levels = f"--config={CONFIGS / 'iddpm_digits.py'}", "--config.model.num_levels=20"
    few = "--config.sampling.num_steps=5"
    succeed("--mode=train", preset, *TINY, levels, few, "--workdir=run", cwd=tmp_path)
    new = tmp_path / "a" / "new"
    benchmark("respaced", tmp_path / "run", "--number=20", "--output", new, "--steps", 5, 20)
    lines = lines_of(new / "respaced_digits.csv")
    found = [(line["variance"], line["steps"], line["nfe"]) for line in lines]
    assert found == [
        *((name, n, n) for name in ("learned", "large", "small") for n in ("5", "20")),
        ("held-out real digits", "", "0"),
    ]
    assert (new / "respaced_digits.png").exists()


@pytest.mark.slow  # two schedules, four programs each
def test_learned_schedule_of_a_tiny_run(tmp_path, capsys):
    """The ratios are those of its variances, and a run without a learned schedule is refused."""
    for name in ("vdm", "vp"):
        preset = f"--config={CONFIGS / f'{name}_digits.py'}"
        succeed("--mode=train", preset, *TINY, f"--workdir={name}", cwd=tmp_path)
    few = ("--steps=2", "--batches=1", "--output", tmp_path)
    benchmark("learned_schedule", tmp_path / "vdm", *few)
    lines = lines_of(tmp_path / "learned_schedule.csv")
    same = ["learned", "nearly straight", "straight", "rising late"]
    others = ["nearly straight"] * 3 + ["the data's entropy"]
    assert [line["schedule"] for line in lines] == [*same, *others, *same[:2]]
    for first, *rest in (lines[:4], lines[8:]):
        assert first["ratio"] == "1.00"
        for line in rest:
            assert line["gamma_max"] == first["gamma_max"]
            ratio = float(line["variance"]) / float(first["variance"])
            assert float(line["ratio"]) == pytest.approx(ratio, abs=0.01)  # two digits
    # The Gaussian's means: within 4 errors, which are too large, as times are evenly spread.
    for line in lines[:7]:
        error = float(line["mean"]) - float(line["exact"])
        assert abs(error) < 4 * float(line["error"]) and len(line["exact"]) > 4
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        benchmark("learned_schedule", tmp_path / "vp", *few)
    assert ended.value.code == 2
    assert "allowed are runs of digits with sde.name = vp_learned" in capsys.readouterr().err
