"""`--mode report`: the page's structure, what it shows and names, and in a browser how it looks."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest

from score_sde import build, pictures, presets, workdirs
from score_sde.config import changed
from score_sde.display import eight_bits
from score_sde.modes import report
from tests.browser import browser
from tests.cases import thorough
from tests.commands import ROOT, command, refused, succeed
from tests.pages import images_of, page_of

DRAW = np.random.default_rng(0)
LINES = [
    {"step": step, "loss": 1.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3}
    for step in (50, 100, 150, 200)
]
LINES += [{"step": step, "FID-1k": 3.0 + abs(step - 150)} for step in (50, 100, 150, 200)]
EVALUATION = {
    "figures": {
        "FID-24": 12.345678,
        "FID_infinity": {"value": 10.1, "standard_error": 0.31},
        "of_each_side": 24,
    },
    "samples": {"n": 24, "made_by": [{"device": "one"}, {"device": "two"}], "labels": []},
    "command": ["main.py", "--mode=evaluate", "--config.x=a b"],
    "loss_by_level": {
        "t": [0.1, 0.5, 0.9],
        "log_snr": [6.0, 0.0, -6.0],
        "loss": [0.1, 0.2, 0.9],
        "standard_error": [0.01, 0.01, 0.02],
        "is": "mean of a square",
    },
}
ACCURACY = {
    **{"step": 40, "n": 99, "split": "test", "is": "share of the items", "log_snr": [6.0, -6.0]},
    **{"accuracy": [0.875, 0.125], "standard_error": [0.01, 0.01]},
}
SWEEP = [
    {
        "settings": {"sampling.method": method, "sampling.num_steps": steps},
        "nfe": steps + 1.0,
        "figures": {"FID-24": 100.0 / steps, "precision": 0.5},
    }
    for method in ("ddim", "unipc")
    for steps in (5, 10)
]


def made(workdir, preset="vp_digits", values=None):
    """A workdir with a config and a log."""
    config = changed(presets.load(preset), {"name": preset, **(values or {})})
    workdirs.save(config, workdir, build.dataset(config))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return config


def sampled(workdir, name, x, **more):
    facts = {"nfe": np.full(len(x), 31), "seed": 7, "step": 200, "sampler": "DDIM(num_steps=5)"}
    np.savez(workdir / "samples.npz", **{name: x}, **facts, **more)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The workdir of digits that has everything, as the modes write it."""
    workdir = tmp_path_factory.mktemp("everything")
    made(workdir, values={"training.batch_size": 32})
    x = DRAW.integers(0, 17, (70, 8, 8, 1), np.uint8)
    sampled(workdir, "images", x)
    pictures.save_png(workdir / "samples.png", x, 17)
    pictures.save_gif(workdir / "samples.gif", DRAW.integers(0, 17, (50, 9, 8, 8, 1), np.uint8), 17)
    for name, columns in (("likelihood", 8), ("interpolation", 5), ("nearest", 6)):
        pictures.save_png(workdir / f"{name}.png", x[: 2 * columns], 17, columns)
    np.savez(workdir / "interpolation.npz", images=x)
    bits = np.linspace(1.0, 3.0, 30, dtype=np.float32)
    rows = {"bits_per_dim": bits, "log_prob": bits[:, None], "log_weight": bits[:, None]}
    np.savez(workdir / "likelihood.npz", nfe=np.full(30, 90), **rows)
    summary = {"num_images": 30, "items": "images", "data": "digits", "split": "test", "step": 200}
    (workdir / "likelihood.json").write_text(json.dumps(summary))
    (workdir / "evaluation.json").write_text(json.dumps(EVALUATION))
    (workdir / "classifier").mkdir()
    (workdir / "classifier" / "accuracy.json").write_text(json.dumps(ACCURACY))
    (workdir / "sweep.json").write_text(json.dumps(SWEEP))
    return workdir


@pytest.fixture
def full(everything, tmp_path):
    """A copy of `everything`, which a test may change."""
    return shutil.copytree(everything, tmp_path / "digits")


def test_training_leaves_a_report_and_it_says_what_to_do_next(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    page = page_of(workdir)
    assert page.headings()[0] == ("h1", "vp_digits")
    assert "Drawn during training, after 4 steps" in page.text
    assert "The log has 2 lines, too few for a curve." in page.text
    assert "4 of 4 steps of 16" in page.text
    commands = {shlex.split(text)[2] for text in page.texts if text.startswith("score-sde")}
    assert commands == {"sample", "evaluate", "likelihood", "interpolate"}
    [look] = images_of(page)
    assert look.size == (4 * 9 - 1, 4 * 9 - 1)
    assert "model.width" in page.text and "8 (preset: 32)" in page.text


def test_everything_that_is_there_is_shown(full, tmp_path):
    said = succeed("--mode=report", f"--workdir={full}", cwd=tmp_path)
    assert said == f"report: {full / 'report.html'}\n"
    page = page_of(full)
    assert [text for tag, text in page.headings() if tag == "h2"] == [
        *("Run", "Samples", "Film of the denoising", "Training", "Loss by noise level"),
        *("Classifier by noise level", "Quality", "Quality against evaluations", "Likelihood"),
        *("Interpolation", "Nearest images", "Config"),
    ]
    for words in (
        "70 samples by DDIM, NFE 31, seed 7, after 200 steps of training, of which 64 are shown",
        "0.005 at step 200",  # the loss, 1 / 200
        "FID-1k of samples on the way; least 3 at step 150",
        "mean of a square",
        "after 40 steps: share of the items, 99 in the test split",
        "12.35",
        "10.1 ± 0.31",
        "main.py --mode=evaluate '--config.x=a b'",
        "2 ± 0.11 bits/dim",  # of 1 ... 3, evenly: deviation 0.607 over the root of 30
        "Above the fewest bits/dim, 1 to 1.483; below the most, 3 to 2.517",
        "32 (preset: 64)",
        "unipc",
        "samples, made by 2, device",
        "then the nearest training images by pixels",
    ):
        assert words in page.text, words
    assert "score-sde --mode" not in page.text  # nothing is missing
    samples, film, best, between, nearest = images_of(page)
    assert [each.size for each in (best, between, nearest)] == [(71, 17), (44, 17), (53, 17)]
    # The pixels themselves, with the lines of one between the images, and no more than 8 x 8.
    assert samples.size == (71, 71)
    with np.load(full / "samples.npz") as file:
        x = eight_bits(file["images"], 17)
    np.testing.assert_array_equal(np.asarray(samples)[9:17, 18:26], x[9 + 2, ..., 0])
    assert film.size == (26, 26) and film.n_frames == 50 and film.info["loop"] == 0
    [still] = page.all("source")
    assert still["media"] == "(prefers-reduced-motion: reduce)"
    assert len(page.all("svg")) == 7
    text = (full / "report.html").read_text()
    assert "currentColor" in text and "#000000" not in text and "xmlns" not in text
    assert len(text) < 5e5
    assert [*full.glob("*.partial")] == []


def test_results_are_taken_from_the_output_first(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    made(run)
    x = DRAW.integers(0, 17, (70, 8, 8, 1), np.uint8)
    sampled(run, "images", x)
    pictures.save_png(run / "samples.png", x, 17)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    out.mkdir()
    theirs = {**EVALUATION, "figures": {"FID-99": 77.0}}
    (out / "evaluation.json").write_text(json.dumps(theirs))
    succeed("--mode=report", f"--workdir={run}", f"--output={out}", cwd=tmp_path)
    page = page_of(out)
    assert "FID-99" in page.text and "70 samples" in page.text
    assert not (run / "report.html").exists()


HOSTILE = """"'><img src=x onerror=f()>&lt;"""


def test_no_text_becomes_html(full, tmp_path):
    """Config, file names, results and columns: the page has their characters and no element."""
    folder = tmp_path / HOSTILE
    full.rename(folder)
    made(folder, values={"name": HOSTILE, "data.dir": HOSTILE})
    evil = {**EVALUATION, "figures": {HOSTILE: 1.5}, HOSTILE: HOSTILE}
    (folder / "evaluation.json").write_text(json.dumps(evil))
    entries = [{**entry, "settings": {HOSTILE: HOSTILE}} for entry in SWEEP]
    (folder / "sweep.json").write_text(json.dumps(entries))
    (folder / "likelihood.json").unlink()
    with np.load(folder / "samples.npz") as file:
        np.savez(folder / "samples.npz", **{**file, "sampler": f"{HOSTILE}(x)"})
    succeed("--mode=report", f"--workdir={folder}", cwd=tmp_path)
    page = page_of(folder)  # with its checks
    assert page.headings()[0] == ("h1", HOSTILE)
    assert page.text.count(HOSTILE) > 8
    vectors = tmp_path / "vectors"
    config = made(vectors, "vp_moons")
    info = workdirs.load_info(vectors)
    kept = json.loads((vectors / "config.json").read_text())
    kept["data"] = {**info.facts(), "columns": [HOSTILE, "y"], "name": HOSTILE}
    (vectors / "config.json").write_text(json.dumps(kept))
    sampled(vectors, "x", np.zeros((5, 2)))
    report.run(config, vectors, vectors, "")
    assert HOSTILE in page_of(vectors).text  # the label of an axis


DAMAGE = [b"", b"null", b"[1]", b'{"figures": 1, "loss_by_level": []}', b'[{"figures": null}]']
DAMAGE += [b"[" * 9999, b"PK\x03\x04 no archive", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(9)]
# Of each kind of file: JSON that nests too deep, archives, pictures that break off.
MIXED = {".json": b"[" * 9999, ".npz": DAMAGE[6], ".gif": DAMAGE[-1], ".png": DAMAGE[-1]}
QUICK = (b"", DAMAGE[3])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(MIXED, id="mixed"),
        *(
            pytest.param(
                each, marks=() if each in QUICK else pytest.mark.thorough, id=f"{each[:9]}"
            )
            for each in DAMAGE
        ),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(full, content, tmp_path):
    """In one line for each, and not in Python's words."""
    names = ("samples.npz", "samples.gif", "evaluation.json", "likelihood.json", "sweep.json")
    names += ("classifier/accuracy.json",)
    for path in (full / name for name in (*names, "nearest.png")):
        path.write_bytes(content[path.suffix] if content is MIXED else content)
    done = command("--mode=report", f"--workdir={full}", cwd=tmp_path)
    assert done.returncode == 0
    page, lines = page_of(full), done.stderr.splitlines()
    for name in (*names, "nearest.png"):
        said = [line for line in lines if f"{full / name}: " in line or f"{full / name} or" in line]
        assert len(said) in (1, 2), (name, lines)  # the evaluation has two sections
        for line in said:
            assert line.startswith("note: ") and ": left out: " in line and len(line) < 400
            assert not re.search("Error|object|NoneType|attribute|subscript", line), line
            assert line.endswith("; move it away and run the mode that wrote it again")
    assert page.text.count(": left out: ") == len(lines)
    assert "Held-out images at both ends of a row" in page.text and len(page.all("svg")) >= 2


def test_damaged_lines_of_the_log_are_left_out(tmp_path):
    run = tmp_path / "run"
    made(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "loss": "low"}\n[1]\n{"step"\n')
    done = command("--mode=report", f"--workdir={run}", cwd=tmp_path)
    said = f"note: {run / 'metrics.jsonl'}: 3 damaged lines are left out\n"
    assert (done.returncode, done.stderr) == (0, said)
    assert "0.005 at step 200" in page_of(run).text


@pytest.mark.parametrize(
    "data", [[], {"shape": [8]}, *thorough({"name": 3}, {"splits": {"train": 9}}, {"x": 1})]
)
def test_facts_of_the_data_that_are_damaged(full, data, tmp_path):
    path = full / "config.json"
    kept = json.loads(path.read_text())
    kept["data"] = kept["data"] | data if data else data
    path.write_text(json.dumps(kept))
    line = refused("--mode=report", f"--workdir={full}", cwd=tmp_path)
    assert line.startswith(f"error: {path}: data: not as a run writes it (")
    assert not re.search("object|argument|attribute", line.removeprefix(f"error: {path}"))


def test_a_report_that_fails_loses_nothing(tmp_path, capsys):
    config = made(tmp_path)
    sampled(tmp_path, "images", DRAW.integers(0, 17, (70, 8, 8, 1), np.uint8))
    pictures.save_png(tmp_path / "samples.png", DRAW.integers(0, 17, (4, 8, 8, 1), np.uint8), 17)
    (tmp_path / "report.html").mkdir()
    (tmp_path / "checkpoints").mkdir()  # without them it is no run
    report.after(config, tmp_path, tmp_path)
    said = capsys.readouterr()
    assert said.err.startswith("note: no report.html: ") and "Traceback" not in said.err
    assert said.out == "" and (tmp_path / "samples.npz").exists()


@pytest.mark.thorough
def test_two_runs_side_by_side(full, tmp_path):
    other = tmp_path / "other"
    made(other, "ve_digits", {"model.width": 16})
    arguments = ("--mode=report", f"--workdir={full}", "--against")
    succeed(*arguments, other, cwd=tmp_path)
    page = page_of(full)
    assert page.headings()[0] == ("h1", "vp_digits and ve_digits")
    names = [text for tag, text in page.headings() if tag == "h3"]
    assert names == [f"{full}", f"{other}"] * (len(names) // 2) and len(names) == 22
    assert len(page.all("svg")) == 10
    assert "16 (preset: 32)" in page.text
    for words in ("None", "sde.name", f"score-sde --mode sample --workdir {other}"):
        assert words in page.text
    said = refused(*arguments, "nowhere", cwd=tmp_path)
    assert said.startswith("error: --against = 'nowhere': no config.json there; allowed are ")


@pytest.mark.parametrize("density", [False, *thorough(True)])
def test_vectors_of_the_plane(density, tmp_path):
    made(tmp_path, "vp_moons")
    x = DRAW.standard_normal((500, 2))
    more = {}
    if density:
        points = np.stack(np.meshgrid(*[np.linspace(-3, 3, 64)] * 2), axis=-1)
        more["density"] = np.concatenate([points, -0.5 * (points**2).sum(-1, keepdims=True)], -1)
    sampled(tmp_path, "x", x, **more)
    np.savez(tmp_path / "interpolation.npz", x=x[:20].reshape(4, 5, 2), real=x[:8].reshape(4, 2, 2))
    succeed("--mode=report", f"--workdir={tmp_path}", cwd=tmp_path)
    page = page_of(tmp_path)
    headings = {text for _, text in page.headings()}
    assert "Samples" in headings and not headings & {"Quality", "Film of the denoising"}
    assert "2000 points of the test split" in page.text and "500 samples by DDIM" in page.text
    held = "contours hold 50%, 80%, 95% of the learned density"
    assert page.text.count(held) == (2 if density else 0)
    assert len(page.all("svg")) == 6 and len(page.all("image")) == 2  # so many are pixels


@pytest.mark.thorough
def test_pages_are_valid_html(full, tmp_path):
    """By the parser of the standard: an error for each mistake that browsers would correct."""
    html5lib = pytest.importorskip("html5lib", reason="no html5lib: pip install '.[test]'")
    other = tmp_path / "moons"
    made(other, "vp_moons", {"name": HOSTILE})
    sampled(other, "x", DRAW.standard_normal((50, 2)))
    succeed("--mode=report", f"--workdir={full}", cwd=tmp_path)
    succeed("--mode=report", f"--workdir={other}", f"--against={full}", cwd=tmp_path)
    for folder in (full, other):
        parser = html5lib.HTMLParser()
        parser.parse((folder / "report.html").read_text())
        assert not parser.errors


def test_vectors_whose_data_are_gone(tmp_path):
    x = DRAW.standard_normal((40, 3))
    np.savez(tmp_path / "mine.npz", x=x)
    run = tmp_path / "run"
    config = changed(presets.load("vp_moons"), {"data.name": "npz"})
    config.data.dir = f"{tmp_path / 'mine.npz'}"
    workdirs.save(config, run, build.dataset(config))
    (tmp_path / "mine.npz").unlink()
    sampled(run, "x", x)
    succeed("--mode=report", f"--workdir={run}", cwd=tmp_path)
    page = page_of(run)
    assert "without the data: " in page.text and len(page.all("svg")) == 1


def test_a_run_of_an_earlier_version(tmp_path):
    shutil.unpack_archive(ROOT / "tests" / "fixtures" / "old_run.tar.xz", tmp_path, filter="data")
    succeed("--mode=report", f"--workdir={tmp_path / 'old_run'}", cwd=tmp_path)
    text = page_of(tmp_path / "old_run").text
    assert "3 samples by " in text and "cannot be read" not in text


# --- In a browser ---------------------------------------------------------------------------------


@pytest.mark.slow  # it needs a browser, which the default tests do without
def test_in_a_browser(full, tmp_path):
    other = tmp_path / "moons"
    made(other, "vp_moons", {"data.dir": "a-name-without-a-place-to-break" * 9})
    sampled(other, "x", DRAW.standard_normal((500, 2)))
    succeed("--mode=report", f"--workdir={full}", cwd=tmp_path)
    succeed("--mode=report", f"--workdir={other}", f"--against={full}", cwd=tmp_path)
    colours = {"light": set(), "dark": set()}
    with browser() as shown:
        for page in (full, other):
            for width in (390, 1280):
                for scheme in ("light", "dark"):
                    seen = shown.open(page / "report.html", width, scheme)
                    assert seen["images"] and min(seen["images"]) > 0
                    assert min(seen["plots"]) > 200 and seen["details"]
                    assert seen["wide"] <= seen["room"] <= width and not seen["beyond"], seen
                    assert not seen["loaded"] and not shown.complaints()
                    colours[scheme].add((seen["paper"], seen["ink"]))
    [(paper, ink)], [(dark_paper, dark_ink)] = colours["light"], colours["dark"]
    assert len({paper, ink, dark_paper, dark_ink}) == 4
