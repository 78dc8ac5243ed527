"""`eval.sweep`: several settings by one command."""

import csv
import json

import pytest

from score_sde import workdirs
from score_sde.locks import writing
from score_sde.modes.sweep import _keep_other, _write, settings_of
from tests.commands import command, refused, succeed

SETTINGS = (
    "--config.eval.features=classifier",
    "--config.eval.num_samples=24",
    "--config.eval.num_reference=30",
)
DISTANCE = "Frechet distance-24 (classifier features)"


pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """The workdir of a run with the steps 2 and 4."""
    return tiny_run("digits", tmp_path_factory.mktemp("swept"))


@pytest.fixture(scope="module")
def swept(run):
    """The workdir after a sweep over steps of the sampler and of the training, and what was
    printed."""
    sweep = "--config.eval.sweep=sampling.num_steps=2,3; step=2,4"
    return run, succeed("--mode=evaluate", *SETTINGS, sweep, cwd=run.parents[1])


@pytest.mark.thorough
def test_a_sweep_is_a_table_a_file_of_each_kind_and_a_picture(swept):
    workdir, told = swept
    rows = json.loads((workdir / "sweep.json").read_text())
    assert [row["settings"] for row in rows] == [
        {"sampling.num_steps": steps, "step": step} for steps in (2, 3) for step in (2, 4)
    ]
    # The preset's sampler evaluates once a step, and once more to denoise the last state.
    assert [row["nfe"] for row in rows] == [3, 3, 4, 4]
    assert len({row["figures"][DISTANCE] for row in rows}) == 4
    with (workdir / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line[DISTANCE]) for line in lines] == [row["figures"][DISTANCE] for row in rows]
    assert "squared MMD (classifier features) standard error" in lines[0]
    assert (workdir / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    lines = told.splitlines()
    head = next(number for number, line in enumerate(lines) if "sampling.num_steps  step" in line)
    table = lines[head : head + 5]
    assert table[0].split()[:3] == ["sampling.num_steps", "step", "NFE"]
    assert [line.split()[:2] for line in table[1:]] == [
        ["2", "2"],
        ["2", "4"],
        ["3", "2"],
        ["3", "4"],
    ]
    each = json.loads((workdir / "sweep" / "num_steps=3_step=2" / "evaluation.json").read_text())
    assert each["figures"] == rows[2]["figures"] and each["samples"]["step"] == 2


@pytest.mark.thorough
def test_settings_that_are_done_are_not_done_again(swept):
    workdir, _ = swept
    before = json.loads((workdir / "sweep.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in workdir.glob("sweep/*/*")}
    again = "--config.eval.sweep=sampling.num_steps=2,3; step=2,4"
    (workdir / "sweep" / "num_steps=2_step=2" / "evaluation.json").unlink()
    told = succeed("--mode=evaluate", *SETTINGS, again, cwd=workdir.parents[1])
    assert told.count("nothing to compute") == 1  # the samples were there
    assert json.loads((workdir / "sweep.json").read_text()) == before
    later = {path: path.stat().st_mtime_ns for path in times}
    assert {path.parent.name for path in times if times[path] != later[path]} == {
        "num_steps=2_step=2"
    }


@pytest.mark.thorough
def test_another_sweep_keeps_the_table_that_is_there(swept):
    workdir, _ = swept
    before = json.loads((workdir / "sweep.json").read_text())
    other = "--config.eval.sweep=sampling.num_steps=2"
    told = succeed("--mode=evaluate", *SETTINGS, other, cwd=workdir.parents[1])
    older = sorted(workdir.glob("sweep.old*.json"))[-1]
    assert f"sweep.json: of another sweep; it is now {older.name}" in told
    assert json.loads(older.read_text()) == before
    assert len(json.loads((workdir / "sweep.json").read_text())) == 1


@pytest.mark.thorough
def test_a_sweep_holds_the_locks_of_all_its_folders(swept, tmp_path):
    """So that its table is of what they have: also of the last one, before any work."""
    workdir, _ = swept
    sweep = ("--config.eval.sweep=sampling.num_steps=2,5", "--output", tmp_path / "out")
    for kind in ("samples", "evaluations"):
        with writing(tmp_path / "out" / "sweep" / "num_steps=5", kind):
            done = command("--mode=evaluate", *SETTINGS, *sweep, cwd=workdir.parents[1])
            assert [path.name for path in (tmp_path / "out" / "sweep").iterdir()] == ["num_steps=5"]
        said = f"num_steps=5: its {kind} are being written by process "
        assert done.returncode == 2 and said in done.stderr.splitlines()[-1]


def test_rows_are_written_and_those_of_another_sweep_kept(tmp_path, capsys):
    rows = [
        {"settings": {"step": step}, "nfe": 3.0, "figures": {DISTANCE: 1.0 / step}}
        for step in (2, 4)
    ]
    _write(tmp_path, rows, DISTANCE, "ddim")
    assert json.loads((tmp_path / "sweep.json").read_text()) == rows
    with (tmp_path / "sweep.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert lines[1] == {"step": "4", "nfe": "3.0", DISTANCE: "0.25"}
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    _keep_other(tmp_path, rows)
    assert capsys.readouterr().out == ""
    _keep_other(tmp_path, rows[:1])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path / 'sweep.json'}: of another sweep; it is now sweep.old.json"
    assert {path.stem for path in tmp_path.iterdir()} == {"sweep.old"} and len(said) == 3


def test_values_that_are_equal_are_one_setting(run):
    config = workdirs.load(run)
    config.eval.sweep = "sampling.eta=0,0.0,1; step=4,4"
    found = [setting.values for setting in settings_of(config, run, None)]
    assert found == [{"sampling.eta": 0.0, "step": 4}, {"sampling.eta": 1.0, "step": 4}]


def test_spaces_in_a_sweep(run):
    config = workdirs.load(run)
    config.eval.sweep = "sampling.guidance_interval = (0, 1), ( 2,3 ) step = 2, 4;"
    found = [setting.values for setting in settings_of(config, run, None)]
    assert found == [
        {"sampling.guidance_interval": interval, "step": step}
        for interval in ((0, 1), (2, 3))
        for step in (2, 4)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "content",
    [b"{}", b"3", b"PK", b'[{"figures": 1}]', pytest.param(b"[" * 9999, id="deep")],
)
def test_damaged_results_are_made_again(swept, content):
    """Those of the table are kept aside; an evaluation of a setting is not taken for done."""
    workdir, _ = swept
    before = {*workdir.glob("sweep.old*.json")}
    (workdir / "sweep.json").write_bytes(content)
    folder = workdir / "sweep" / "num_steps=2_step=2"
    facts = json.loads((folder / "evaluation.json").read_text())
    damaged = {**facts, "figures": None} if content == b"{}" else facts
    (folder / "evaluation.json").write_text(json.dumps(damaged))
    sweep = "--config.eval.sweep=sampling.num_steps=2; step=2"
    told = succeed("--mode=evaluate", *SETTINGS, sweep, cwd=workdir.parents[1])
    assert told.count("nothing to compute") == (content == b"{}")
    [older] = {*workdir.glob("sweep.old*.json")} - before
    assert older.read_bytes() == content
    [row] = json.loads((workdir / "sweep.json").read_text())
    assert row["figures"] == facts["figures"]


MISTAKES = {
    "nothing": (";", "allowed are KEY=VALUE"),
    "no value": ("sampling.num_steps", "allowed are KEY=VALUE"),
    "unknown key": ("sampling.num_step=5", "config.sampling.num_step = '5': no such key; closest"),
    "key of another section": ("model.width=8,16", "allowed are KEY=VALUE"),
    "key that evaluation has of its own": ("sampling.num_samples=5", "allowed are KEY=VALUE"),
    "key twice": ("sampling.eta=0;sampling.eta=1", "allowed are KEY=VALUE"),
    "value of another type": (
        "sampling.num_steps=5,many",
        "config.sampling.num_steps = 'many': allowed are integers",
    ),
    "impossible value": (
        "sampling.num_steps=5,0",
        "config.sampling.num_steps = 0: allowed are integers of at least 1",
    ),
    "unknown sampler": ("sampling.method=hmc", "config.sampling.method = 'hmc': allowed are pc"),
    "step without a checkpoint": (
        "step=3",
        "config.eval.sweep = 'step=3': allowed are step of 2, 4",
    ),
}


@pytest.mark.parametrize(("sweep", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_before_any_work(run, sweep, said):
    line = refused(
        *("--mode=evaluate", "--workdir", run, *SETTINGS, f"--config.eval.sweep={sweep}"),
        cwd=run.parents[1],
    )
    assert said in line
