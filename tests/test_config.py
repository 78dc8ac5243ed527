"""The schema, the checks and the saved config: what needs no command line."""

import importlib
import inspect
import json
import sys

import jax
import numpy as np
import pytest

from score_sde import build, overrides, workdirs
from score_sde.config import changed, default, flat, resolve, validate
from score_sde.errors import UserError
from score_sde.schema import SCHEMA, SWITCH, TEXT

PRESETS = ("vp_digits", "subvp_digits", "ve_digits", "vp_fashion_mnist", "vp_cifar10", "vp_moons")


def valid():
    """The schema's defaults with a network that fits the digits."""
    return changed(default(), {"model.multipliers": (1, 2), "model.attention_resolutions": (4,)})


def as_json(config):
    return workdirs.to_json(config, build.dataset(config))


def refusal(values):
    """What is said to the valid config with these values, by itself or beside its data."""
    with pytest.raises(UserError) as caught:
        checked(changed(valid(), values))
    return str(caught.value)


def checked(config):
    """As a training checks it."""
    validate(config)
    build.check(config, build.dataset(config))


CHECKED = [row for row in SCHEMA.values() if row.allowed not in (SWITCH, TEXT)]


def test_every_row_allows_its_default_and_says_what_it_is():
    assert flat(default()) == {key: row.default for key, row in SCHEMA.items()}
    for row in SCHEMA.values():
        assert row.default is None or row.allowed.ok(row.default), row.key
        assert (row.unset is None) == (row.default is not None), row.key
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


# For each row one value outside; the text must be the row's own.
IMPOSSIBLE = {
    "seed": -1,
    "data.name": "mnist",
    "data.dir": "gs://bucket/data",
    "data.image_size": -8,
    "data.channels": -1,
    "data.num_classes": 10**6,
    "data.condition": (-1,),
    "data.bin_width": 0.0,
    "sde.name": "ddpm",
    "sde.beta_min": 0.0,
    "sde.beta_max": float("inf"),
    "sde.sigma_min": -1.0,
    "sde.sigma_max": float("nan"),
    "sde.betas": (0.1, -0.1),
    "model.name": "resnet",
    "model.width": 6,
    "model.depth": 0,
    "model.multipliers": (1, 0),
    "model.num_blocks": 0,
    "model.attention_resolutions": ("4",),
    "model.dropout": 1.0,
    "model.embedding": "learned",
    "model.fourier_scale": 0.0,
    "model.progressive_input": "skip",
    "model.progressive_output": "skip",
    "model.combine": "mean",
    "model.block": "resnet",
    "model.decoder_attention": "twice",
    "model.activation": "gelu",
    "model.init_scale": -1.0,
    "model.norm_groups": -1,
    "model.norm_eps": 0.0,
    "model.head_width": -1,
    "model.input_frequencies": (0.0,),
    "model.parameterization": "x0",
    "model.condition": "sigma",
    "model.num_levels": 1,
    "model.dtype": "float16",
    "training.num_steps": 0,
    "training.batch_size": 0,
    "training.learning_rate": float("nan"),
    "training.warmup_steps": -1,
    "training.schedule": "linear",
    "training.schedule_steps": 0,
    "training.gradient_clip": 0.0,
    "training.beta2": 1.0,
    "training.weight_decay": -0.1,
    "training.ema_rate": 1.0,
    "training.loss": "elbo",
    "training.t_min": 0.0,
    "training.checkpoint_every": 0,
    "training.keep": 0,
    "training.keep_every": -1,
    "training.log_every": 0,
    "training.sample_every": -1,
    "sampling.seed": 2**32,
    "sampling.method": "hmc",
    "sampling.num_samples": 0,
    "sampling.batch_size": 0,
    "sampling.num_steps": 0,
    "sampling.predictor": "heun",
    "sampling.corrector": "hmc",
    "sampling.corrector_steps": 0,
    "sampling.snr": 0.0,
    "sampling.steps_per_level": 0,
    "sampling.step_size": 0.0,
    "sampling.t_min": 1.0,
    "sampling.condition": ("a",),
    "sampling.solver": "rk45",
    "sampling.step_control": "image",
    "sampling.num_pairs": 0,
    "sampling.num_between": 0,
    "sampling.grid": "cosine",
    "sampling.rho": 0.0,
    "sampling.eta": 1.1,
    "sampling.clip": -1.0,
    "sampling.steps_offset": -1,
    "sampling.order": 5,
    "sampling.churn": -1.0,
    "sampling.churn_from": -0.5,
    "sampling.churn_to": 0.0,
    "sampling.churn_noise": 0.0,
    "sampling.rtol": 1e-8,
    "sampling.atol": -1e-5,
    "sampling.max_steps": 0,
    "likelihood.seed": -1,
    "likelihood.split": "valid",
    "likelihood.num_images": -1,
    "likelihood.batch_size": 0,
    "likelihood.dequantization": "variational",
    "likelihood.num_importance": 0,
    "likelihood.divergence": "hutchinson",
    "likelihood.num_probes": 0,
    "likelihood.rtol": 0.0,
    "likelihood.atol": 0.0,
    "likelihood.max_steps": 0,
    "likelihood.t_min": 2.0,
}


def test_every_row_has_its_impossible_value():
    assert set(IMPOSSIBLE) == {row.key for row in CHECKED}


@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row.key)
def test_an_impossible_value_is_refused(row):
    value = IMPOSSIBLE[row.key]
    line = refusal({row.key: value})
    assert line == f"config.{row.key} = {value!r}: allowed are {row.allowed.words}"


DISCRETE = {"model.num_levels": 1000}
CHAIN = {"sampling.method": "pc", "sampling.faithful": True, "sampling.predictor": "ancestral"}
MLP = {"data.name": "moons", "model.name": "mlp"}
OWN_SIZE = {"data.name": "celeba", "data.image_size": 12}

# Values, the key that is named, and what is said of the allowed values.
CONTRADICTIONS = [
    ({"sde.beta_max": 0.05}, "sde.beta_max", "above beta_min = 0.1"),
    ({"sde.name": "ve", "sde.sigma_min": 60.0}, "sde.sigma_max", "above sigma_min = 60"),
    ({"model.multipliers": (1,) * 5}, "model.multipliers", "1 to 4 ", "8"),
    (
        {"data.name": "fashion_mnist", "model.multipliers": (1, 1, 1, 1)},
        *("model.multipliers", "1 to 3 ", "28"),
    ),
    (OWN_SIZE | {"model.multipliers": (1, 1, 1, 1)}, "model.multipliers", "1 to 3 ", "12"),
    ({"model.attention_resolutions": (16,)}, "model.attention_resolutions", "8, 4"),
    (
        {"model.embedding": "fourier"},
        *("model.condition", "log_sigma, log_snr with", "embedding = 'fourier'"),
    ),
    (
        MLP | {"model.embedding": "fourier"},
        *("model.condition", "log_sigma, log_snr with", "embedding = 'fourier'"),
    ),
    ({"model.norm_groups": 48}, "model.norm_groups", "0 and divisors of", "width = 128"),
    (
        {"model.conditional": False, "model.class_conditional": True},
        *("model.class_conditional", "False with", "conditional = False"),
    ),
    (
        {"model.conditional": False, "model.input_frequencies": (17.0,)},
        *("model.input_frequencies", "() with", "conditional = False"),
    ),
    (
        {"data.name": "lsun_church", "model.class_conditional": True},
        "model.class_conditional",
        "False",
    ),
    ({"data.image_size": 16}, "data.image_size", "0 (its own 8 pixels) for digits"),
    ({"data.condition": ("a",)}, "data.condition", "vectors"),
    ({"data.bin_width": 1.0}, "data.bin_width", "vectors"),
    ({"model.name": "mlp"}, "model.name", "unet", "digits"),
    ({"data.name": "moons"}, "model.name", "mlp", "moons"),
    (MLP | {"model.width": 12}, "model.width", "multiples of 4 of at least 16"),
    (MLP | {"data.flip": True}, "data.flip", "False", "vectors"),
    (MLP | {"data.image_size": 8}, "data.image_size", "0", "vectors"),
    (
        {
            "sampling.method": "pc",
            "sampling.probability_flow": True,
            "sampling.predictor": "ancestral",
        },
        *("sampling.predictor", "euler_maruyama, reverse_diffusion with probability_flow = True"),
    ),
    (
        {"sampling.method": "pc", "sampling.predictor": "none"},
        "sampling.corrector",
        "langevin, ald",
    ),
    ({"sampling.method": "ald", "sampling.num_steps": 1}, "sampling.num_steps", "at least 2"),
    (
        {"sampling.method": "heun", "sampling.churn_from": 2.0, "sampling.churn_to": 1.0},
        *("sampling.churn_to", "numbers from churn_from = 2.0 on"),
    ),
    (
        {"sampling.method": "dpmpp", "sampling.eta": 0.5, "sampling.order": 3},
        *("sampling.order", "1, 2 with eta"),
    ),
    (
        {"sampling.grid": "paper", "sampling.num_steps": 1},
        *("sampling.num_steps", "at least 2 with grid = 'paper'"),
    ),
    (
        {"sampling.method": "ddim", "sampling.num_steps": 100, "model.num_levels": 100},
        *("sampling.num_steps", "1 to 99 with num_levels = 100"),
    ),
    (CHAIN | {"sampling.num_steps": 20}, "sampling.num_steps", "above beta_max = 20"),
    (
        {"sde.name": "subvp", "likelihood.dequantization": "truncated_normal"},
        *("likelihood.t_min", "from 0.001 with", "'truncated_normal'", "SubVPSDE"),
    ),
    (
        DISCRETE | {"sde.name": "subvp", "model.parameterization": "velocity"},
        *("model.num_levels", "0, as SubVPSDE has no discrete chain", "VPSDE, VESDE"),
    ),
    ({"model.num_levels": 20}, "model.num_levels", "0, integers above beta_max = 20"),
    ({"sde.name": "vp_discrete"}, "sde.betas", "at least two numbers above 0 and below 1"),
    (
        {"sde.name": "vp_discrete", "sde.betas": (0.1, 0.2), "model.num_levels": 3},
        *("model.num_levels", "0, 2, the number of sde.betas"),
    ),
    (
        DISCRETE | {"model.embedding": "fourier", "model.condition": "log_sigma"},
        *("model.embedding", "positional, vaswani with", "num_levels = 1000"),
    ),
    (
        DISCRETE | {"model.condition": "log_snr"},
        *("model.condition", "time with", "num_levels = 1000"),
    ),
    (DISCRETE | {"training.loss": "mixture"}, "training.loss", "paper with", "num_levels = 1000"),
    ({"training.keep_every": 7}, "training.keep_every", "0, multiples of", "checkpoint_every = 5"),
    ({"training.batch_size": 1501}, "training.batch_size", "1 to 1500, the training", "digits"),
    ({"likelihood.num_images": 298}, "likelihood.num_images", "0 (all) to 297, the test", "digits"),
]


@pytest.mark.parametrize("case", CONTRADICTIONS, ids=lambda case: " ".join(case[0]))
def test_keys_that_contradict_each_other_are_refused(case):
    values, key, *said = case
    line = refusal(values)
    value = flat(changed(valid(), values))[key]
    assert line.startswith(f"config.{key} = {value!r}: allowed ")
    assert all(words in line for words in said), line


def test_settings_that_a_network_does_not_read_contradict_nothing():
    checked(changed(valid(), MLP | {"model.multipliers": (1,) * 9, "model.norm_groups": 48}))


def test_a_config_made_from_scratch_is_held_to_the_schema():
    config = valid()
    with config.unlocked():
        config.model.height = 3
    with pytest.raises(UserError, match=r"^config\.model\.height = 3: no such key; closest is"):
        validate(config)
    config = valid()
    with config.unlocked():
        del config.sampling.snr
    with pytest.raises(UserError, match=r"^config\.sampling\.snr: missing"):
        validate(config)
    config = valid()
    with config.unlocked(), config.ignore_type():
        config.training.num_steps = 10.0
    with pytest.raises(UserError, match=r"^config\.training\.num_steps = 10\.0: allowed are"):
        validate(config)


def test_the_devices_must_divide_the_batch():
    build.check_devices(valid(), 8)
    with pytest.raises(UserError, match=r"^config\.training\.batch_size = 128: .*the 7 devices$"):
        build.check_devices(valid(), 7)


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
        ("{", "config.json: not a config written by a run (Expecting"),
        ("[]", "config.json: not a config written by a run (list indices"),
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
    """Its defaults hold where the config has the schema's; what it takes is what is read."""
    (tmp_path / "own_of_config.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"sampling.method": "own_of_config:Short"}
    config = changed(valid(), own)
    validate(config)
    sampler = build.sampler(config)
    assert (sampler.num_steps, sampler.rho, sampler.denoise) == (3, 5.0, True)
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
    line = refusal(process | DISCRETE)
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
