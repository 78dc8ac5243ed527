"""What the benchmarks' commands take, without running one."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from score_sde import overrides, presets
from tests.commands import ROOT
from tests.refusals import checked


@pytest.fixture(scope="module")
def systems():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("systems")


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
    assert ours == "| vp | 9 | – | 1.7 ± 0.1 | – | – | SDE | – | – | – | – | – |"
    assert real.startswith(f"| {systems.REAL} | – |")


def test_a_benchmark_has_a_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit, match=r"'speed': allowed are .*digits, .*systems"):
        runpy.run_path(str(ROOT / "benchmarks" / "__main__.py"), run_name="__main__")
