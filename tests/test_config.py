"""The schema, the checks and the saved config: what needs no command line."""

import importlib
import inspect
import json
import sys

import jax
import numpy as np
import pytest

from score_sde import build, overrides, workdirs
from score_sde.config import changed, default, flat, resolve
from score_sde.errors import UserError
from score_sde.schema import SCHEMA, SWITCH, TEXT
from score_sde.validation import validate
from tests.refusals import refusal, valid

PRESETS = (
    *("vp_digits", "subvp_digits", "ve_digits", "vp_fashion_mnist", "vp_cifar10", "vp_moons"),
    *("edm_digits", "edm_fashion_mnist", "edm_cifar10", "ect_digits", "ect_fashion_mnist"),
    "cosine_digits",
)


def as_json(config):
    return workdirs.to_json(config, build.dataset(config))


def test_every_row_allows_its_default_and_says_what_it_is():
    assert flat(default()) == {key: row.default for key, row in SCHEMA.items()}
    for row in SCHEMA.values():
        assert row.default is None or row.allowed.ok(row.default), row.key
        several = row.kind is object  # types of values
        assert (row.unset is None) == (row.default is not None and not several), row.key
        assert row.help and row.allowed.words, row.key
        assert (row.allowed is SWITCH) == (row.kind is bool), row.key
    assert {row.key for row in SCHEMA.values() if row.allowed is TEXT} == {"name"}


@pytest.mark.parametrize("key", ["sde.name", "model.name", "sampling.method"])
def test_the_schemas_defaults_are_the_objects_own(key):
    """A value at the schema's default is left to the object."""
    section = key.partition(".")[0]
    for make in SCHEMA[key].allowed.load().values():
        make = getattr(make, "Spec", make)
        call = make.__init__ if inspect.isclass(make) else make
        for name, parameter in inspect.signature(call).parameters.items():
            row = SCHEMA.get(f"{section}.{name}")
            if row and row.default is not None and type(parameter.default) is row.kind:
                assert parameter.default == row.default, (make, name)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    validate(config)
    assert flat(workdirs.from_json(as_json(config))) == flat(config)


def test_an_optional_number_survives_json():
    config = changed(valid(), {"sampling.t_min": 1e-4})
    assert workdirs.from_json(as_json(config)).sampling.t_min == 1e-4
    again = workdirs.from_json(as_json(valid()))
    assert again.sampling.t_min is None
    assert changed(again, {"sampling.t_min": 1e-4}).sampling.t_min == 1e-4


def test_of_a_tuple_given_twice_the_last_holds():
    """As of every other key. ml_collections would join the two."""
    key = "--config.model.multipliers"
    for arguments, found in (
        ((f"{key}=(8,)", f"{key}=(16,)"), (16,)),
        ((key, "1,2", "--config.seed=1", key, "3"), (3,)),
        ((f"{key}=(8,)", key, "4,5"), (4, 5)),
        ((key, "4,5", f"{key[1:]}=()"), ()),
        ((key, f"{key}=8"), (f"{key}=8",)),  # the next word is the value, which `validate` refuses
    ):
        assert overrides.apply(valid(), arguments).model.multipliers == found
    both = ("--config.model.multipliers=1", "--config.model.attention_resolutions=2")
    assert overrides.apply(valid(), both).model.attention_resolutions == (2,)


def test_changing_a_copy_leaves_the_config_alone():
    config = valid()
    changed(config, {"model.width": 8})
    assert config.model.width == 128


def test_a_saved_config_that_lacks_younger_keys_takes_their_defaults():
    document = json.loads(as_json(valid()))
    del document["config"]["sampling"]["gif"]
    assert workdirs.from_json(json.dumps(document)).sampling.gif is False


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "config.json: not a config written by a run (no JSON: Expecting"),
        (
            "[]",
            "config.json: not a config written by a run (it has no section config); a run's has",
        ),
        pytest.param(
            "[" * 9999,
            "config.json: not a config written by a run (no JSON: nested too deeply); a run's",
            id="deep",
        ),
        (b"\xff\xfe\0", "config.json: not a config written by a run (no JSON: not text); a run's"),
        ('{"config": 3}', "config.json: not a config written by a run (it has no section config)"),
        ('{"config": {"lr": 1}}', "config.json: config.lr = 1: no such key; "),
        ('{"config": {"seed": "a"}}', "config.json: "),
    ],
)
def test_a_damaged_saved_config_is_refused_in_one_line(text, line):
    with pytest.raises(UserError) as caught:
        workdirs.from_json(text)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="a file that nobody can read, root neither")
def test_a_saved_config_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"config\.json: not a config.*[Ee]rror"):
        workdirs.load(tmp_path)


def test_a_workdir_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run/config\.json: cannot be written \(Not a dir"):
        workdirs.save(valid(), tmp_path / "file" / "run", build.dataset(valid()))


def test_changes_leave_out_what_may_change():
    new = changed(valid(), {"training.num_steps": 7, "sampling.num_steps": 7, "model.width": 8})
    assert workdirs.changes(valid(), new, workdirs.WHEN_TRAINING) == {"model.width": 128}
    afterwards = workdirs.changes(valid(), new, workdirs.AFTERWARDS)
    assert afterwards == {"model.width": 128, "training.num_steps": 100_000}


def test_another_method_begins_with_its_own_settings():
    """What one sampler was given is not another's; the last time and what is said now stay."""
    config = changed(
        valid(),
        {
            "sampling.method": "dpmpp",
            "sampling.eta": 1.0,
            "sampling.num_steps": 30,
            "sampling.denoise": False,
            "sampling.t_min": 1e-4,
            "sampling.num_samples": 7,
        },
    )
    assert (config.sampling.eta, config.sampling.num_steps) == (1.0, 30)
    other = changed(config, {"sampling.method": "ddim", "sampling.rho": 5.0}).sampling
    usual = default().sampling
    assert (other.method, other.rho, other.t_min, other.num_samples) == ("ddim", 5.0, 1e-4, 7)
    assert (other.eta, other.num_steps, other.denoise) == (usual.eta, None, True)
    assert config.sampling.eta == 1.0  # a copy
    same = changed(config, {"sampling.method": "dpmpp", "sampling.order": 2}).sampling
    assert (same.eta, same.num_steps) == (1.0, 30)


@pytest.mark.parametrize(
    ("values", "read", "unread"),
    [
        ({"method": "ode"}, "rtol", "num_steps"),
        ({"method": "ode", "solver": "euler"}, "num_steps", "step_control"),
        ({"method": "pc"}, "predictor", "snr"),
        ({"method": "pc", "corrector": "ald"}, "snr", "eta"),
        ({"method": "pc"}, "grid", "rho"),
        ({"method": "ddim"}, "eta", "rho"),
        ({"method": "ddim", "grid": "karras"}, "rho", "churn"),
        ({"method": "ddim"}, "clip", "steps_offset"),
        ({"method": "heun"}, "churn", "churn_noise"),
        ({"method": "heun"}, "rho", "churn_to"),  # of the grid that is its own
        ({"method": "heun", "grid": "log_snr"}, "grid", "rho"),
        ({"method": "heun", "churn": 1.0}, "churn_noise", "eta"),
    ],
)
def test_the_keys_that_a_sampler_reads(values, read, unread):
    config = changed(valid(), {f"sampling.{key}": value for key, value in values.items()})
    keys = build.keys_read(config)
    assert read in keys and unread not in keys


def test_integers_beyond_what_is_counted_are_refused():
    for key in ("sampling.num_steps", "likelihood.num_probes", "training.num_steps"):
        said = refusal({key: 10**20})
        assert said == f"config.{key} = {10**20}: allowed are integers below 2**31"


OWN = """
from dataclasses import dataclass
from flax import nnx
from score_sde.samplers import DDIM
from score_sde.sde import SDE, VPSDE

class Needs(SDE):
    rate: float

class Mine(VPSDE):
    pass

class NoSpec(nnx.Module):
    pass

class NoOption(NoSpec):
    Spec = None

    def __call__(self, x, noise, condition=None, *, dropout_key=None):
        pass

class Plain(nnx.Module):
    @dataclass(frozen=True)
    class Spec:
        channels: int

    def __init__(self, spec, *, rngs):
        pass

@dataclass(frozen=True)
class Short(DDIM):
    num_steps: int = 3
    rho: float = 5.0
"""


def test_a_users_own_object(tmp_path, monkeypatch):
    """It has the values that the config shows, its own default where a key is unset, and reads what
    it takes."""
    (tmp_path / "own_of_config.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"sampling.method": "own_of_config:Short"}
    config = changed(valid(), own)
    validate(config)
    sampler = build.sampler(config)
    # Its own rho is 5. A typed 7, as the schema has, is not to be taken for unset.
    assert (sampler.num_steps, sampler.rho, sampler.denoise) == (3, config.sampling.rho, True)
    sampler = build.sampler(changed(config, {"sampling.num_steps": 4, "sampling.rho": 6.0}))
    assert (sampler.num_steps, sampler.rho) == (4, 6.0)
    assert "eta" in build.keys_read(config) and "order" not in build.keys_read(config)
    assert type(sampler) is resolve("sampling.method", "own_of_config:Short")
    assert flat(workdirs.from_json(as_json(config))) == flat(config)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sde.name", "no_such_module:X", "No module named 'no_such_module'"),
        ("sde.name", "math:no_such_name", "no_such_name"),
        ("sde.name", "math:pi", "derived from score_sde.sde:SDE"),
        ("sde.name", ":", "Empty module name"),
        ("sde.name", "own_of_errors:Needs", "its setting rate has no default"),
        ("sampling.method", "fractions:Fraction", "derived from score_sde.samplers.base:Sampler"),
        ("model.name", "math:pi", "derived from flax.nnx:Module"),
        ("model.name", "own_of_errors:NoSpec", "networks that have a Spec"),
        ("model.name", "own_of_errors:NoOption", "and reverse_only (this one got an "),
        ("sampling.predictor", "math:pi", "an instance of types:FunctionType"),
        ("sampling.solver", "math:pi", "allowed are tsit5, dopri5"),
    ],
)
def test_a_users_own_object_that_cannot_be_taken(key, value, said, tmp_path, monkeypatch):
    (tmp_path / "own_of_errors.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = {"sampling.method": "pc"} if key == "sampling.predictor" else {}
    line = refusal(method | {key: value})
    assert line.startswith(f"config.{key} = {value!r}: ") and said in line and "\n" not in line


def test_what_a_users_own_object_lacks(tmp_path, monkeypatch):
    """No chain is taken from the class that it derives from, and no condition is lost on it."""
    (tmp_path / "own_of_lacks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    process = {"sde.name": "own_of_lacks:Mine"}
    validate(changed(valid(), process))
    line = refusal(process | {"model.num_levels": 1000})
    assert line.startswith("config.model.num_levels = 1000: allowed are 0, as Mine has no discrete")
    assert "score_sde.discrete.DISCRETE" in line
    network = {"model.name": "own_of_lacks:Plain"}
    validate(changed(valid(), network))
    line = refusal(network | {"model.class_conditional": True})
    assert line.startswith("config.model.class_conditional = True: allowed are False with")


def test_euler_maruyamas_steps_need_no_chain():
    """The original code's with few steps: the chain's betas, which would be above 1, are not
    used."""
    few = {"sampling.method": "pc", "sampling.faithful": True, "sampling.num_steps": 6}
    config = changed(valid(), few)
    validate(config)
    samples = build.sampler(config).sample(
        jax.random.key(0), build.sde(config), lambda x, t: -x, shape=(2, 3)
    )
    assert np.isfinite(samples.x).all()
    ancestral = build.sampler(changed(config, {"sampling.predictor": "ancestral"}))
    with pytest.raises(ValueError, match=r"^num_steps = 6: .* above beta_max = 20"):
        ancestral.sample(jax.random.key(0), build.sde(config), lambda x, t: -x, shape=(2, 3))
