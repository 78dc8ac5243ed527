"""`--mode restore` by each method: the same bits as from Python, its keys and what it costs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde
from score_sde import guidance, inverse
from score_sde.cli import main
from score_sde.config import changed, default
from score_sde.data import load
from score_sde.errors import UserError
from score_sde.inverse import operators
from score_sde.modes import restoring
from score_sde.samplers import ExponentialMultistep, PredictorCorrector
from score_sde.samplers.base import from_prior
from tests.cases import thorough
from tests.commands import as_users_have_it, command, succeed

STEPS, DRAWS, SIGMA_Y = 2, 2, 0.05
FEW = (f"--config.sampling.num_steps={STEPS}", f"--config.restore.num_draws={DRAWS}")
KEY = jax.random.key(0)
OWN_KEYS = ("iterations", "zeta", "resamplings", "particles")


def restore(folder, inputs, *arguments):
    typed = ("--mode=restore", "--input", inputs, "--task=inpaint", *FEW, *arguments)
    return succeed(*typed, cwd=folder)


def arrays_of(folder):
    with np.load(folder / "restored.npz") as arrays:
        return dict(arrays)


class Problem:
    """What the command makes of the two digits, whose right half is hidden: for the two draws of
    each, its measurement, and where it starts."""

    def __init__(self, workdir):
        self.run = score_sde.load(workdir)
        self.sde, known = self.run.sde, jnp.arange(8) < 4
        self.operator = operators.inpaint(jnp.broadcast_to(known, (8, 8)).astype(jnp.float32))
        self.images = self.run.space.to_model(jnp.asarray(load("digits", "test", "").x[:2]))
        self.y = jnp.repeat(self.operator(self.images), DRAWS, axis=0)
        self.noise = from_prior(KEY, self.sde, self.y.shape, 0, jnp.float32)

    def arguments(self, score=None):
        return self.sde, self.run.score if score is None else score, self.operator, self.y, SIGMA_Y

    def as_rows(self, x):
        """The images and the deviation of the draws, as the file has them."""
        x = x.reshape(2, DRAWS, 8, 8, 1)
        return np.asarray(self.run.space.from_model(x)), np.asarray(jnp.std(x, axis=1))


def equal(folder, problem, x):
    found = arrays_of(folder)
    for name, expected in zip(("images", "std"), problem.as_rows(x), strict=True):
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.thorough
def test_repaint_is_the_one_from_python(tiny_run, tmp_path, inputs):
    workdir = tiny_run("digits", tmp_path)
    by = ("--config.restore.method=repaint", "--config.restore.resamplings=3")
    told = restore(tmp_path, inputs, *by)
    assert "repaint, RePaint(num_steps=2, " in told and "not read" not in told
    assert f"NFE {3 * STEPS + 1}\n" in told
    with as_users_have_it():
        problem = Problem(workdir)
        project = inverse.replacement(*problem.arguments(), iterations=8)
        sampler, given = inverse.RePaint(STEPS, resamplings=3), (problem.run.score, problem.noise)
        drawn = sampler.sample(KEY, problem.sde, *given, project=project)
        equal(workdir, problem, drawn.x)
    others = ("--config.sampling.method=heun", "--config.sampling.churn=0.5")
    for other, unread in (
        (others, "config.sampling.churn, config.sampling.method"),
        (("--config.sampling.method=ode",), "config.sampling.method"),
    ):
        told = restore(tmp_path, inputs, *by, *other, FEW[0])
        assert "nothing to compute" in told
        assert f"not read with these settings: {unread}\n" in told


@pytest.mark.thorough
def test_the_originals_inpainter_begins_with_the_known_part(tiny_run, tmp_path, inputs):
    workdir = tiny_run("digits", tmp_path)
    faithful = ("--config.sampling.method=pc", "--config.sampling.faithful")
    corrected = ("--config.sampling.corrector=langevin", "--config.restore.sigma_y=0")
    by = ("--config.restore.method=replacement", "--config.sampling.num_steps=25")
    restore(tmp_path, inputs, *faithful, *corrected, *by)
    with as_users_have_it():
        problem = Problem(workdir)
        project = inverse.replacement(*problem.arguments()[:-1], iterations=8)
        known = problem.operator(jnp.ones((1, 8, 8, 1)))
        begin = known * problem.y + (1 - known) * problem.noise
        sampler = PredictorCorrector(25, corrector="langevin", faithful=True)
        drawn = sampler.sample(KEY, problem.sde, problem.run.score, begin, project=project)
    np.testing.assert_allclose(restoring._known(project, problem.noise), begin, atol=1e-6)
    assert "faithful=True" in json.loads((workdir / "restored.json").read_text())["sampler"]
    found, expected = arrays_of(workdir)["images"], problem.as_rows(drawn.x)[0]
    # Roundings in another order, and pixels are whole numbers from 0 to 16.
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)


@pytest.mark.thorough
def test_twisted_smc_takes_a_particle_of_its_own_run_for_each_draw(tiny_run, tmp_path, inputs):
    """Its evaluations are those of all its particles, and no batch of images plays a part."""
    workdir, number = tiny_run("digits", tmp_path), 8
    by = ("--config.restore.method=twisted", f"--config.restore.particles={number}")
    told = restore(tmp_path, inputs, *by)
    assert "twisted, TwistedSMC(num_steps=2, " in told and "not read" not in told
    assert f"NFE {number * 2 * (STEPS + 1)}\n" in told
    with as_users_have_it():
        problem, draws = Problem(workdir), []
        sde, score, operator, y, _ = problem.arguments()
        for index in range(2 * DRAWS):
            key = jax.random.fold_in(KEY, index)
            posterior = inverse.pigdm(sde, score, operator, y[index : index + 1], SIGMA_Y)
            noise = from_prior(key, sde, (number, 8, 8, 1), 0, jnp.float32)
            particles = inverse.TwistedSMC(STEPS).sample(key, sde, posterior, noise).x
            draws.append(particles[jax.random.randint(jax.random.fold_in(key, number), (), 0, 8)])
        equal(workdir, problem, jnp.stack(draws))
    told = restore(tmp_path, inputs, *by, "--config.sampling.batch_size=1")
    assert "nothing to compute" in told
    assert "not read with these settings: config.sampling.batch_size\n" in told
    told = restore(tmp_path, inputs / "b.png", *by, "--degrade", "--output=one")
    assert "PSNR of the mean" in told and "1 images, 2 draws each" in told


@pytest.mark.parametrize(
    ("method", "key", "value", "nfe"),
    [
        ("dps", "zeta", 0.3, 2 * (STEPS + 1)),
        *thorough(("mmps", "iterations", 1, 3 * (STEPS + 1))),
    ],
)
def test_a_methods_own_key(tiny_run, tmp_path, inputs, method, key, value, nfe):
    workdir = tiny_run("digits", tmp_path)
    by = (f"--config.restore.method={method}", f"--config.restore.{key}={value}")
    told = restore(tmp_path, inputs, *by)
    assert f"NFE {nfe}\n" in told and "not read" not in told
    with as_users_have_it():
        problem = Problem(workdir)
        posterior = getattr(inverse, method)(*problem.arguments(), **{key: value})
        sampler = ExponentialMultistep(STEPS, eta=1.0)
        equal(workdir, problem, sampler.sample(KEY, problem.sde, posterior, problem.noise).x)


@pytest.mark.thorough
def test_classes_and_their_guidance(tiny_run, tmp_path, inputs):
    """In turn among an image's draws; without them the model's draws are of no class."""
    workdir = tiny_run("classes", tmp_path)
    labels, sampler = (
        jnp.tile(jnp.asarray([3, 5], jnp.int32), 2),
        ExponentialMultistep(STEPS, eta=1),
    )

    def drawn(score):
        found = inverse.pigdm(*problem.arguments(score))
        return sampler.sample(KEY, problem.sde, found, problem.noise).x

    told = restore(tmp_path, inputs)
    assert "NFE 6\n" in told
    with as_users_have_it():
        problem = Problem(workdir)
        assert problem.run.score.num_classes == 10
        none = jnp.full_like(labels, guidance.NO_LABEL)
        equal(workdir, problem, drawn(problem.run.score.given({"labels": none})))
    told = restore(tmp_path, inputs, "--config.sampling.labels=3,5")
    assert "of another labels; it is now restored.old.npz" in told and "NFE 6\n" in told
    with as_users_have_it():
        equal(workdir, problem, drawn(problem.run.score.given({"labels": labels})))
    guided = ("--config.sampling.labels=3,5", "--config.sampling.guidance=2.0")
    told = restore(tmp_path, inputs, *guided)
    assert "NFE 12\n" in told and "not read" not in told
    with as_users_have_it():
        equal(workdir, problem, drawn(guidance.classifier_free(problem.run.score, labels, 2.0)))
    by = ("--config.restore.method=twisted", "--config.restore.particles=2")
    assert "NFE 24\n" in restore(tmp_path, inputs / "a.png", *by, *guided, "--output=twisted")
    done = command(
        *("--mode=restore", "--input", inputs, "--task=inpaint", *FEW, guided[1]), cwd=tmp_path
    )
    assert done.returncode == 2
    assert "config.sampling.labels = (): allowed are classes, which guidance needs" in done.stderr
    always = changed(problem.run.config, {"training.label_dropout": 0.0})
    for task in ("inpaint", "edit"):
        with pytest.raises(UserError, match=r"labels = \(\): allowed are classes, as the model is"):
            restoring.check(dataclasses.replace(problem.run, config=always), task, "", False)
    given = changed(always, {"sampling.labels": (3,)})
    restoring.check(dataclasses.replace(problem.run, config=given), "inpaint", "", False)


def test_an_interval_of_no_guidance_is_not_read(tiny_run, tmp_path):
    tiny_run("classes", tmp_path)
    interval = "--config.sampling.guidance_interval=0.1,1.0"
    few = ("--config.sampling.num_steps=1", "--config.sampling.num_samples=2")
    told = succeed("--mode=sample", *few, interval, cwd=tmp_path)
    assert "not read with these settings: config.sampling.guidance_interval\n" in told


@pytest.mark.parametrize(
    ("task", "degrade", "values", "read", "unread"),
    [
        ("inpaint", False, {}, "restore.sigma_y", "restore.factor"),
        ("inpaint", False, {}, "restore.method", "restore.zeta"),
        ("inpaint", False, {"restore.method": "dps"}, "restore.zeta", "restore.sigma_y"),
        ("inpaint", True, {"restore.method": "dps"}, "restore.sigma_y", "restore.iterations"),
        ("deblur", False, {"restore.method": "mmps"}, "restore.iterations", "restore.zeta"),
        ("deblur", False, {}, "restore.blur", "restore.strength"),
        ("super_resolve", False, {}, "restore.factor", "restore.label"),
        ("edit", False, {}, "restore.strength", "restore.method"),
        ("edit", False, {}, "sampling.method", "sampling.guidance_interval"),
        ("edit", False, {"sampling.guidance": 2.0}, "sampling.guidance_interval", "restore.label"),
        ("relabel", False, {}, "restore.label", "restore.num_draws"),
        ("relabel", False, {}, "sampling.rtol", "sampling.method"),
        ("inpaint", False, {"restore.method": "repaint"}, "sampling.num_steps", "sampling.eta"),
        ("inpaint", False, {"restore.method": "repaint"}, "sampling.clip", "sampling.method"),
        ("inpaint", False, {"restore.method": "repaint"}, "restore.resamplings", "sampling.order"),
        ("inpaint", False, {"restore.method": "twisted"}, "restore.particles", "sampling.eta"),
        ("inpaint", False, {"restore.method": "twisted"}, "sampling.grid", "sampling.batch_size"),
    ],
)
def test_the_keys_that_are_read(task, degrade, values, read, unread):
    keys = restoring.keys_read(changed(default(), values), task, degrade)
    assert read in keys and unread not in keys


def test_the_config_says_what_these_methods_do_not_read(capsys):
    def shown(method):
        assert main(["--mode=config", f"--config.restore.method={method}"]) == 0
        text, _, last = capsys.readouterr().out.partition("\n--mode restore by ")
        marks = {line[3:].split(" = ")[0]: line[:2] for line in text.splitlines()}
        own = {key for key in OWN_KEYS if "-" not in marks[f"restore.{key}"]}
        return own, last.replace("\n", " ").removesuffix(" ")

    for method, key in (("pigdm", set()), ("dps", {"zeta"}), ("mmps", {"iterations"})):
        assert shown(method) == (key, "")
    own, said = shown("twisted")
    begin, _, unread = said.partition("'s ")
    assert own == {"particles"} and begin == "twisted does not read sampling"
    unread = set(unread.split(", "))
    assert {"method", "eta", "batch_size", "predictor"} <= unread
    assert not {"num_steps", "grid", "denoise", "labels", "seed"} & unread
    own, said = shown("repaint")
    assert own == {"resamplings"} and "batch_size" not in said and ", eta, " in said


BY = "--config.restore.method={}".format


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("--task=edit", BY("repaint")),
            "--task = 'edit': allowed are inpaint, outpaint, colorize, super_resolve, deblur with "
            "config.restore.method = 'repaint'",
        ),
        (("--task=edit", BY("twisted")), "with config.restore.method = 'twisted'"),
        (("--task=edit", BY("dps")), "with config.restore.method = 'dps'"),
        (
            ("--task=inpaint", BY("twisted"), "--config.restore.sigma_y=0"),
            "config.restore.sigma_y = 0.0: allowed are positive numbers with twisted",
        ),
        (
            ("--task=inpaint", BY("twisted"), "--config.restore.particles=1"),
            "config.restore.particles = 1: allowed are integers of at least 2",
        ),
        (
            ("--task=inpaint", BY("repaint"), "--config.restore.resamplings=0"),
            "config.restore.resamplings = 0: allowed are integers of at least 1",
        ),
    ],
)
def test_mistakes(tiny_run, tmp_path, inputs, arguments, line):
    workdir = tiny_run("digits", tmp_path)
    done = command("--mode=restore", "--input", inputs, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert line in done.stderr.splitlines()[-1]
    assert not (workdir / "restored.npz").exists()
