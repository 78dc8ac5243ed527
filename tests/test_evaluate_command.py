"""`--mode evaluate`: figures of a run and of anybody's images, and what they depend on."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from score_sde import pictures
from score_sde.evaluation import Rows, classifier, read_statistics, statistics, write_statistics
from score_sde.locks import SUFFIX, writing
from score_sde.modes import judge
from score_sde.scoring import Extractor
from tests.commands import FEW, ROOT, command, refused, succeed
from tests.pages import page_of


def test_few_samples_are_in_the_name():
    made_by = Extractor(np.asarray, 3, {"features": "inception-2015"}, {})
    names = [made_by.distance_of(n) for n in (24, 5000, 49_999, 50_000, 60_000)]
    assert names == ["FID-24", "FID-5k", "FID-49999", "FID", "FID"]
    made_by = Extractor(np.asarray, 3, {"features": "classifier"}, {})
    assert made_by.distance_of(5000) == "Frechet distance-5k (classifier features)"
    assert made_by.named("FID_infinity") == "Frechet distance infinity (classifier features)"
    assert made_by.named("KID") == "squared MMD (classifier features)"


def images(n=20, channels=3, levels=256):
    return np.random.default_rng(0).integers(0, levels, (n, 6, 4, channels), np.uint8)


def test_without_weights_nothing_is_drawn(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    before = sorted(workdir.rglob("*"))
    done = command("--mode=evaluate", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 2 and "make inception" in done.stderr
    assert sorted(workdir.rglob("*")) == before


SETTINGS = (
    "--config.eval.features=classifier",
    "--config.eval.num_samples=24",
    "--config.eval.num_reference=30",
    "--config.eval.batch_size=8",
)


LIKELIHOOD = (
    "--config.eval.likelihood",
    *("--config.likelihood.num_images=2", "--config.likelihood.divergence=rademacher"),
    *("--config.likelihood.rtol=1e-2", "--config.likelihood.atol=1e-2"),
)


STEPS = classifier.STEPS


pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture(scope="module")
def judged(tiny_run, tmp_path_factory):
    """A run that was evaluated by the classifier's features, and what the command printed."""
    folder = tmp_path_factory.mktemp("judged")
    workdir = tiny_run("digits", folder)
    return workdir, succeed("--mode=evaluate", *SETTINGS, *LIKELIHOOD, *FEW, cwd=folder)


def test_features_of_a_classifier_have_their_own_names(judged, tmp_path):
    workdir, said = judged
    found = json.loads((workdir / "evaluation.json").read_text())
    figures = found["figures"]
    name = "Frechet distance-24 (classifier features)"
    assert figures[name] > 0.0 and str(figures[name]) in said
    assert not any(each.startswith(("FID", "KID")) for each in figures)
    assert found["features"] == "classifier" and len(found["weights"]) == 64
    assert 0.0 <= found["classifier"]["held_out_accuracy"] <= 1.0
    assert found["classifier"]["held_out_images"] == 297
    assert "held-out images of digits are right" in said
    assert len(found["reference"].pop("sha256")) == 64
    assert found["reference"] == {"set": "digits", "split": "train", "n": 30}
    assert found["samples"]["n"] == 24 and found["samples"]["averages"] == "ema"
    assert len(found["statistics"]) == 64 and found["network_precision"] == "float32"
    assert (workdir / "nearest.png").exists()


@pytest.mark.thorough
def test_a_classifier_that_learned_as_long_as_it_should_is_right(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", STEPS)
    workdir = tiny_run("digits", tmp_path)
    succeed("--mode=evaluate", *SETTINGS, *FEW, cwd=tmp_path)
    found = json.loads((workdir / "evaluation.json").read_text())
    # 98.7 % in a trial; the draw of 297 images has a standard error of 0.7 %.
    assert found["classifier"]["held_out_accuracy"] > 0.95


def test_an_evaluation_has_all_that_its_figures_depend_on(judged):
    """What `--mode sample` compares, the machine that drew, the images' bytes, the versions."""
    workdir, _ = judged
    found = json.loads((workdir / "evaluation.json").read_text())
    with np.load(workdir / "samples.npz") as file:
        depends, made_by = (json.loads(str(file[key])) for key in ("depends", "made_by"))
        drawn = np.rint(file["images"] * (255 / 16)).astype(np.uint8)
    assert {"guidance", "guidance_interval", "labels", "condition", "weights"} <= depends.keys()
    assert found["samples"].items() >= {**depends, "made_by": made_by}.items()
    assert found["samples"]["sha256"] == Rows.of(drawn).digest
    here = {"device": found["device"], "num_devices": found["num_devices"]}
    assert made_by == [{**here, "versions": found["versions"]}]
    assert {"jax", "jaxlib", "numpy", "pillow", "score_sde"} <= found["versions"].keys()


@pytest.mark.parametrize(
    "key",
    [
        *("samples.guidance", "samples.classifier_scale", "samples.batch_size", "samples.sha256"),
        *("samples.made_by", "reference.sha256", "weights", "num_manifold", "rounding"),
    ],
)
def test_an_evaluation_of_anything_else_is_kept(judged, tmp_path, key, capsys):
    workdir, _ = judged
    before = (workdir / "evaluation.json").read_bytes()
    (tmp_path / "evaluation.json").write_bytes(before)
    facts = json.loads(before)
    section, _, name = key.rpartition(".")
    (facts[section] if section else facts)[name] = "another"
    assert judge._kept(tmp_path, facts) == {}
    assert (tmp_path / "evaluation.old.json").read_bytes() == before
    assert "of another evaluation" in capsys.readouterr().out


def test_an_evaluation_elsewhere_is_the_same(judged, tmp_path):
    """The last digits of statistics differ between machines, as figures may."""
    workdir, _ = judged
    before = (workdir / "evaluation.json").read_bytes()
    (tmp_path / "evaluation.json").write_bytes(before)
    facts = json.loads(before)
    facts |= {"device": "another", "num_devices": 9, "versions": {}, "statistics": "another"}
    assert judge._kept(tmp_path, facts) == {"likelihood": facts["likelihood"]}


def test_the_loss_by_level_and_the_likelihood_stand_beside_the_figures(judged):
    workdir, _ = judged
    found = json.loads((workdir / "evaluation.json").read_text())
    by_level = found["loss_by_level"]
    t, log_snr, loss, error = (
        np.array(by_level[key]) for key in ("t", "log_snr", "loss", "standard_error")
    )
    assert t.shape == log_snr.shape == loss.shape == error.shape == (16,)
    assert np.all(np.diff(t) > 0) and t[0] == pytest.approx(1e-5, rel=1e-3)
    assert t[-1] == pytest.approx(1.0, abs=1e-6)  # by bisection in float32
    np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr)[0], rtol=1e-4)
    # A network that predicts nothing has the loss of noise alone, 1; this one is hardly trained.
    assert np.all((loss > 0.0) & (loss < 3.0) & (error > 0.0) & (error < loss))
    assert (by_level["n"], by_level["split"]) == (24, "test")
    kept = json.loads((workdir / "likelihood.json").read_text())
    assert found["likelihood"] == kept and kept["num_images"] == 2 and kept["bits_per_dim"] > 0.0


def test_the_same_command_again_computes_nothing(judged):
    workdir, _ = judged
    before = (workdir / "evaluation.json").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (workdir / "features").rglob("*.npy")}
    assert len(times) == 2  # a chunk of each side
    others = ("--config.eval.resize=halfpixel", "--config.eval.training_samples=30")
    settings = (*SETTINGS, *LIKELIHOOD, *FEW)
    again = succeed("--mode=evaluate", *settings, *others, cwd=workdir.parents[1])
    unread = "config.eval.resize, config.eval.training_samples, config.sampling.num_samples"
    assert re.findall("not read with these settings: (.*)", again) == [unread]
    assert again.count("nothing to compute") == 2 and "classifier:" not in again
    assert times == {path: path.stat().st_mtime_ns for path in times}
    ours, theirs = json.loads(before), json.loads((workdir / "evaluation.json").read_bytes())
    assert {**ours, "command": theirs["command"]} == theirs and not (
        workdir / "evaluation.old.json"
    ).exists()


def test_a_folder_of_features_is_used_again(judged, tmp_path):
    """On both sides, and for statistics; the figures are the same."""
    workdir, _ = judged
    figures = json.loads((workdir / "evaluation.json").read_text())["figures"]
    folders = {}
    for folder in (workdir / "features").iterdir():
        folders[json.loads((folder / "about.json").read_text())["n"]] = folder
    out = ("--output", tmp_path / "out")
    given = ("--samples", folders[24], "--reference", folders[30])
    at = ("--mode=evaluate", "--workdir", workdir, *SETTINGS)
    told = succeed(*at, *out, *given, cwd=tmp_path)
    assert "note: no sliced_wasserstein and no nearest.png: the samples are without images" in told
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert found == {key: figures[key] for key in figures if key != "sliced_wasserstein"}
    (folders[30] / "000000.npy").rename(tmp_path / "elsewhere.npy")
    done = command(*at, *out, *given, cwd=tmp_path)
    (tmp_path / "elsewhere.npy").rename(folders[30] / "000000.npy")
    assert done.returncode == 2 and "1 of its 1 files are missing" in done.stderr


def test_samples_that_are_being_written_are_refused_before_any_work(tiny_run, tmp_path):
    """They are read until the end, so the lock is held until then."""
    workdir = tiny_run("digits", tmp_path)
    with writing(workdir, "samples"):
        before = sorted(workdir.rglob("*"))
        done = command("--mode=evaluate", *SETTINGS, cwd=tmp_path)
        after = {path for path in workdir.rglob("*") if path not in before}
    assert done.returncode == 2 and "its samples are being written by" in done.stderr
    assert all(path.name.startswith(".") or path.suffix == SUFFIX for path in after)


@pytest.mark.thorough
def test_other_numbers_keep_the_evaluation_that_is_there(judged, tmp_path):
    workdir, _ = judged
    at = ("--mode=evaluate", "--workdir", workdir, "--output", tmp_path / "out", *SETTINGS, *FEW)
    (tmp_path / "out").mkdir()
    for name in ("classifier.npz", "evaluation.json", "samples.npz"):
        (tmp_path / "out" / name).write_bytes((workdir / name).read_bytes())
    before = json.loads((workdir / "evaluation.json").read_text())
    succeed(*at, cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["likelihood"] == before["likelihood"]  # of the same weights
    told = succeed(*at, "--config.eval.num_manifold=22", cwd=tmp_path)
    assert "evaluation.json: of another evaluation; it is now evaluation.old.json" in told
    assert json.loads((tmp_path / "out" / "evaluation.old.json").read_text()) == found
    (tmp_path / "out" / "evaluation.json").write_text("[1]")
    told = succeed(*at, cwd=tmp_path)
    assert "evaluation.json: damaged; it is now evaluation.old2.json" in told


@pytest.mark.thorough
def test_damaged_features_are_made_again(judged):
    workdir, _ = judged
    path = next((workdir / "features").rglob("*.npy"))
    before = path.read_bytes()
    path.write_bytes(b"damaged")
    succeed("--mode=evaluate", *SETTINGS, *LIKELIHOOD, *FEW, cwd=workdir.parents[1])
    assert path.read_bytes() == before


@pytest.mark.thorough
def test_the_samples_as_a_folder_of_grey_images(judged, tmp_path):
    """They are the same images, of one channel: all figures are the same."""
    workdir, _ = judged
    with np.load(workdir / "samples.npz") as file:
        pictures.save_each(tmp_path / "mine", file["images"], 17)
    ours = json.loads((workdir / "evaluation.json").read_text())
    at = ("--mode=evaluate", "--workdir", workdir, *SETTINGS, "--output=out", "--samples=mine")
    succeed(*at, cwd=tmp_path)
    theirs = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert theirs["figures"] == ours["figures"]
    assert theirs["samples"]["sha256"] == ours["samples"]["sha256"]
    assert (tmp_path / "out" / "nearest.png").read_bytes() == (workdir / "nearest.png").read_bytes()
    text = page_of(tmp_path / "out").text
    assert "then the nearest training images by pixels" in text
    told = succeed(*at, "--reference=mine", cwd=tmp_path)
    assert "evaluation.json: of another evaluation; it is now evaluation.old.json" in told
    assert "then the nearest images of mine by pixels" in page_of(tmp_path / "out").text


def test_anybodys_images_need_no_run(judged, tmp_path):
    workdir, _ = judged
    np.savez(tmp_path / "a.npz", images=np.resize(images(24, channels=1), (24, 8, 8, 1)))
    (tmp_path / "classifier.npz").write_bytes((workdir / "classifier.npz").read_bytes())
    given = ("--mode=evaluate", "--samples=a.npz", *SETTINGS)
    succeed(*given, "--config", ROOT / "configs" / "vp_digits.py", cwd=tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(found["samples"].pop("sha256")) == len(found["reference"].pop("sha256")) == 64
    assert found["samples"] == {"path": "a.npz", "n": 24}
    assert found["reference"] == {"set": "digits", "split": "train", "n": 30}
    assert not (tmp_path / "report.html").exists()
    line = refused(*given, cwd=tmp_path)
    assert line.startswith("error: --workdir = 'runs/vp_digits': ")


def test_statistics_of_a_set_are_a_reference(judged, tmp_path):
    """By one command, which finds the features that an evaluation has kept."""
    workdir, _ = judged
    at = ("--workdir", workdir, *SETTINGS)
    told = succeed("--mode=data", *at, "--config.eval.statistics=digits.npz", cwd=tmp_path)
    assert "statistics: digits.npz: set digits, split train, n 30, features classifier" in told
    kept = read_statistics(tmp_path / "digits.npz")
    assert kept.n == 30 and kept.mu.shape == (64,) and "weights" in kept.about
    given = ("--samples", workdir / "samples.npz", "--reference", "digits.npz", "--output", "out")
    succeed("--mode=evaluate", *at, *given, cwd=tmp_path)
    ours, theirs = (
        json.loads((folder / "evaluation.json").read_text())
        for folder in (workdir, tmp_path / "out")
    )
    name = "Frechet distance-24 (classifier features)"
    assert theirs["figures"][name] == ours["figures"][name]
    assert theirs["statistics"] == ours["statistics"] and "precision" not in theirs["figures"]


def test_statistics_of_something_else_are_not_replaced(judged, tmp_path):
    workdir, _ = judged
    at = ("--mode=data", "--workdir", workdir, *SETTINGS, "--config.eval.statistics=a.npz")
    write_statistics(tmp_path / "a.npz", statistics([np.eye(3)], {"set": "x"}))
    told = succeed(*at, cwd=tmp_path)
    assert "a.npz: of another set; it is now a.old.npz" in told
    assert read_statistics(tmp_path / "a.old.npz").about == {"set": "x"}
    assert "of another set" not in succeed(*at, cwd=tmp_path)  # the same are made anew
    (tmp_path / "a.npz").write_text("a user's own")
    assert refused(*at, cwd=tmp_path).startswith("error: a.npz: ")
    assert (tmp_path / "a.npz").read_text() == "a user's own"


def test_a_step_that_is_not_there_is_refused_before_any_work(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    done = command("--mode=evaluate", *SETTINGS, "--step=3", cwd=tmp_path)
    assert done.returncode == 2 and "error: --step = 3: not in " in done.stderr
    assert not (workdir / "features").exists() and not (workdir / "classifier.npz").exists()


MISTAKES = {
    "images of another size": (
        ["--samples=other.npz"],
        "other.npz: images are (6, 4); allowed are (8, 8), the classifier's, with "
        "config.eval.features = 'classifier'",
    ),
    "numbers of another kind": (
        ["--samples=float.npz"],
        "float.npz: images is float64(24, 8, 8, 1); allowed is uint8 (N, H, W, 1 or 3)",
    ),
    "a run": (
        ["--samples=runs/vp_digits"],
        "runs/vp_digits: a run; allowed are files of results, such as its samples.npz",
    ),
    "samples of a step": (
        ["--samples=other.npz", "--step=2"],
        "--step = 2: not with --samples, which come from no checkpoint",
    ),
    "a step that is not there": (
        ["--step=3"],
        "--step = 3: not in runs/vp_digits; allowed are 2, 4",
    ),
    "weights of something else": (
        ["--config.eval.features=inception", "--config.eval.inception_weights=text"],
        "config.eval.inception_weights: text cannot be read: Error while deserializing header: ",
    ),
    "statistics of something else": (
        ["--reference=text"],
        "text: allowed are a folder of images, .npz of images, or of mu and sigma",
    ),
}


@pytest.mark.parametrize(("typed", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_that_says_what_to_do(judged, tmp_path, typed, said):
    workdir, _ = judged
    (tmp_path / "runs").symlink_to(workdir.parent)
    np.savez(tmp_path / "other.npz", images(24))
    np.savez(tmp_path / "float.npz", images=np.zeros((24, 8, 8, 1)))
    (tmp_path / "text").write_text("hello, this is a text")
    done = command("--mode=evaluate", *SETTINGS, *typed, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {said}")


def test_a_config_of_another_program_is_no_run(judged, tmp_path):
    """Where anybody's images are compared in its folder."""
    workdir, _ = judged
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel", "data": []}')
    (tmp_path / "classifier.npz").write_bytes((workdir / "classifier.npz").read_bytes())
    given = ("--samples", workdir / "samples.npz", "--reference", workdir / "samples.npz")
    succeed("--mode=evaluate", *given, *SETTINGS, cwd=tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path):
    said = refused("--mode=data", "--config.eval.statistics=/dev/null/x.npz", cwd=tmp_path)
    assert said.startswith("error: config.eval.statistics = '/dev/null/x.npz': allowed are files")


@pytest.mark.thorough
def test_statistics_of_a_streamed_folder_are_those_of_one_in_memory(tmp_path):
    """And those of its classifier, which learns the folders."""
    for number, image in enumerate(images(40)):
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    at = ("--mode=data", "--config.data.name=folder", "--config.data.dir=photos")
    at = (*at, "--config.eval.features=classifier", "--config.data.image_size=(6, 4)")
    found = []
    for stream in (True, False):
        more = (f"--config.data.stream={stream}", f"--config.eval.statistics={stream}.npz")
        succeed(*at, *more, cwd=tmp_path)
        found.append(read_statistics(tmp_path / f"{stream}.npz"))
    np.testing.assert_array_equal(found[0].sigma, found[1].sigma)
    assert found[0].about == found[1].about and found[0].n == 36
