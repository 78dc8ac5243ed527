"""The examples of CONTRIBUTING.md: they run, and they are as short as promised."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build, data, likelihood, networks, objectives, oracle, rules
from score_sde.config import default
from score_sde.data import DATASETS
from score_sde.networks import NETWORKS
from score_sde.processes import PROCESSES
from score_sde.samplers import DDIM, PREDICTORS, SAMPLERS, PredictorCorrector
from score_sde.schema import SCHEMA
from score_sde.validation import validate
from tests.commands import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)
LISTS = (PROCESSES, PREDICTORS, SAMPLERS, DATASETS, NETWORKS, SCHEMA)
KEY, SHAPE = jax.random.key(0), (256, 2)


@pytest.fixture(scope="module", autouse=True)
def added() -> Iterator[None]:
    """All examples, as one process runs them; the lists are left as they were."""
    before = [dict(table) for table in LISTS]
    for block in BLOCKS:
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})
    assert [len(table) - len(old) for table, old in zip(LISTS, before, strict=True)] == [1] * 6
    yield
    for table, old in zip(LISTS, before, strict=True):
        table.clear()
        table.update(old)


def lines(name: str) -> int:
    """Lines of a class or function, without docstring and blank ones."""
    [found] = [
        node
        for block in BLOCKS
        for node in ast.parse(block).body
        if getattr(node, "name", "") == name
    ]
    if ast.get_docstring(found) is not None:
        found.body = found.body[1:]
    return sum(1 for line in ast.unparse(found).splitlines() if line.strip())


def test_each_is_as_short_as_promised():
    assert lines("Hyperbolic") <= 5
    assert lines("improved_euler") <= 15
    # One file and one line: the last statement is the line in a list, and the only such.
    for block in BLOCKS:
        *rest, last = ast.parse(block).body
        assert isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Subscript)
        assert not any(isinstance(getattr(node, "targets", [0])[0], ast.Subscript) for node in rest)


PLACES = {  # of each class: its new file and that of its list, in the package
    "Hyperbolic": ("hyperbolic", "processes.py"),
    "Euler": ("samplers.euler", "samplers/__init__.py"),
    "Shallow": ("networks.shallow", "networks/__init__.py"),
    "Dataset(INFO, load)": ("data.rings", "data/__init__.py"),
}


def put(package: Path, block: str) -> None:
    """Add a block to a package: its file, and the import and the row in the file of its list."""
    *body, row = block.splitlines()
    table, name, value = re.fullmatch(r'(\w+)\["(\w+)"\] = (.*)', row).groups()
    module, listed = PLACES[value]
    imports = f"import {table}", f"import {table}, Dataset"  # which the new file does not need
    own = "\n".join(line for line in body if not line.endswith(imports))
    (package / f"{module.replace('.', '/')}.py").write_text(f"{own}\n")
    what = f"from score_sde.{module} import {value}"
    if value.startswith("Dataset"):
        what, value = "from score_sde.data import rings", "Dataset(rings.INFO, rings.load)"
    text = (package / listed).read_text()
    text = re.sub(r"^(?=from score_sde)", f"{what}\n", text, count=1, flags=re.M)
    start = rf"^{table}: .* = [^\n]*\{{\n" if table != "DATASETS" else r"^DATASETS: .*\n    \{\n"
    text, rows = re.subn(start, rf'\g<0>    "{name}": {value},\n', text, flags=re.M)
    assert rows == 1
    (package / listed).write_text(text)


@pytest.mark.thorough
def test_in_the_package_each_is_a_file_and_a_row_with_its_import(tmp_path):
    package = tmp_path / "score_sde"
    shutil.copytree(ROOT / "score_sde", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for block in BLOCKS:
        if any(block.rstrip().endswith(f"= {value}") for value in PLACES):
            put(package, block)
    keys = ("sde.name=hyperbolic", "sampling.method=euler", "model.name=shallow", "data.name=rings")
    small = ("training.num_steps=2", "training.sample_every=0", "sampling.num_samples=3")
    set_to = [f"--config.{value}" for value in (*keys, *small, "sampling.num_steps=2")]
    for mode in ("train", "sample"):
        run = [sys.executable, "-m", "score_sde", f"--mode={mode}", "--workdir=run"]
        if mode == "train":
            run += ["--config=configs/vp_moons.py", *set_to]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "run" / "samples.npz")["x"].shape == (3, 2)


@pytest.fixture(scope="module")
def target() -> oracle.GaussianMixture:
    return oracle.gaussian(jnp.asarray([0.5, -0.5]), 0.1 * jnp.eye(2))


def test_the_process(target):
    sde = PROCESSES["hyperbolic"]()
    sde.check()
    score = target.score(sde)
    drawn = DDIM(20).sample(KEY, sde, score, shape=SHAPE)
    close_to(target, drawn.x)
    found = likelihood.log_likelihood(KEY, sde, score, drawn.x[:4], divergence="exact")
    exact = target.log_prob(sde, drawn.x[:4], jnp.full(4, 1e-5))
    # The prior's mean is off by alpha(T) |m| = 0.0135 x 0.7 standard deviations: some hundredths.
    np.testing.assert_allclose(found.log_prob, exact, atol=0.05)


def test_the_predictor(target):
    sde = PROCESSES["vp"]()
    sampler = PredictorCorrector(30, predictor="improved_euler")
    drawn = sampler.sample(KEY, sde, target.score(sde), shape=SHAPE)
    close_to(target, drawn.x)
    assert (np.asarray(drawn.nfe) == 2 * 30 + 1).all()  # and the denoising


def test_the_sampler_is_ddim(target):
    """Euler's steps in nu are DDIM's, on the same grid (Song, Meng, Ermon 2021, section 4.3)."""
    sde = PROCESSES["vp"]()
    drawn, expected = (
        make(num_steps=6).sample(KEY, sde, target.score(sde), shape=SHAPE)
        for make in (SAMPLERS["euler"], DDIM)
    )
    # Up to rounding, which division by alpha(T) = 0.0066 makes larger.
    np.testing.assert_allclose(drawn.x, expected.x, atol=1e-4)
    np.testing.assert_array_equal(drawn.nfe, expected.nfe)


def test_all_from_one_config():
    """Data set, network, key, process and sampler by their names, down to a loss and samples."""
    config = default()
    config.data.name, config.model.name = "rings", "shallow"
    config.model.hidden = 8
    config.sde.name, config.sampling.method = "hyperbolic", "euler"
    config.sampling.num_steps = 2
    validate(config)
    info = build.dataset(config)
    rules.check(config, info)
    apply, params = networks.init(build.network(config, info), KEY)
    assert params["first"]["kernel"].shape == (3, 8)
    arrays = data.load("rings", "train", None, info)
    batch = {"x": arrays.x[:4], "condition": {"labels": arrays.condition["labels"][:4]}}
    loss = objectives.loss(config, apply, info)(params, None, batch, KEY)
    # The network is 0 at the start: the loss is the mean square of the noise, over 2 dimensions.
    assert loss.shape == (4,) and 0.1 < float(loss.mean()) < 3.0
    model = build.model(config, apply, params)
    drawn = build.sampler(config).sample(KEY, model.sde, model, shape=(4, 2))
    assert np.isfinite(drawn.x).all() and drawn.nfe.tolist() == [3] * 4


def close_to(target: oracle.GaussianMixture, x: jax.Array) -> None:
    """Mean and deviation of 256 draws: their scatter is 0.02, and the solvers' error below 0.05."""
    np.testing.assert_allclose(np.mean(x, axis=0), target.means[0], atol=0.1)
    np.testing.assert_allclose(np.std(x, axis=0), np.sqrt(0.1), atol=0.08)
