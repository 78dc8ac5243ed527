"""Values of a config that contradict each other have their lines; test_values.py has the others."""

import pytest

from score_sde import presets, rules
from score_sde.config import changed, flat
from score_sde.errors import UserError
from score_sde.validation import validate
from tests.refusals import checked, refusal, valid

DISCRETE = {"model.num_levels": 1000}
VARIANCES = DISCRETE | {"model.learned_variance": True}
CHAIN = {"sampling.method": "pc", "sampling.faithful": True, "sampling.predictor": "ancestral"}
LEARNED = {"sde.name": "vp_learned"}
MLP = {"data.name": "moons", "model.name": "mlp"}
LAST_IS_NOISE = {
    "sde.name": "vp_discrete",
    "sde.betas": (0.1, 0.5, 1.0),
    "model.num_levels": 3,
    "sampling.method": "unipc",
    "sampling.num_steps": 2,
}
NO_DATA_LEFT = {"sde.name": "cosine", "model.parameterization": "velocity"}
PAIRED = {"sde.name": "flow", "model.parameterization": "velocity", "training.pairing": "ot"}
OWN_SIZE = {"data.name": "celeba", "data.image_size": 12}

# Values, the key that is named, and what is said of the allowed values.
CONTRADICTIONS = [
    ({"sde.beta_max": 0.05}, "sde.beta_max", "above beta_min = 0.1"),
    (
        OWN_SIZE | {"training.evaluate_every": 5, "eval.features": "classifier"},
        *("eval.features", "inception with ", "celeba has no classes"),
    ),
    ({"sde.name": "ve", "sde.sigma_min": 60.0}, "sde.sigma_max", "above sigma_min = 60"),
    ({"model.multipliers": (1,) * 5}, "model.multipliers", "1 to 4 ", "8"),
    (
        {"data.name": "fashion_mnist", "model.multipliers": (1, 1, 1, 1)},
        *("model.multipliers", "1 to 3 ", "28"),
    ),
    (OWN_SIZE | {"model.multipliers": (1, 1, 1, 1)}, "model.multipliers", "1 to 3 ", "12"),
    (
        OWN_SIZE | {"data.image_size": (16, 24), "model.multipliers": (1,) * 5},
        *("model.multipliers", "1 to 4 ", "(16, 24)"),
    ),
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
    ({"training.label_dropout": 0.1}, "training.label_dropout", "0 with", "class_conditional"),
    ({"sampling.labels": (1,)}, "sampling.labels", "() with", "class_conditional = False"),
    (
        {"model.class_conditional": True, "sampling.labels": (0, 10)},
        *("sampling.labels", "classes from 0 to 9 of digits"),
    ),
    (
        {"model.class_conditional": True, "sampling.guidance": 2.0},
        *("sampling.guidance", "1 (none), as", "config.training.label_dropout = 0"),
    ),
    (
        {"data.name": "lsun_church", "sampling.classifier_scale": 1.0},
        *("sampling.classifier_scale", "0: lsun_church has no classes"),
    ),
    (
        {"sampling.classifier_scale": 1.0, "sampling.labels": (0, 10)},
        *("sampling.labels", "classes from 0 to 9 of digits"),
    ),
    (
        {"sde.name": "vp_discrete", "sde.betas": (0.1, 1.0), "sampling.classifier_scale": 1.0},
        *("sampling.classifier_scale", "0, as alpha(T) = 0 of DiscreteVPSDE"),
    ),
    (
        {"sde.name": "flow"},
        *(
            "model.parameterization",
            "velocity, denoised, flow",
            "alpha(T) = 0 of Flow, or config.sde.t_",
        ),
    ),
    (NO_DATA_LEFT | {"model.condition": "log_snr"}, "model.condition", "time, log_sigma, as"),
    (NO_DATA_LEFT | {"training.loss": "mixture"}, "training.loss", "paper, edm, flow, as"),
    (NO_DATA_LEFT | {"training.loss": "second_order"}, "training.loss", "paper, edm, flow, as"),
    (
        NO_DATA_LEFT | {"training.weight": "likelihood"},
        *("training.weight", "epsilon, min_snr, velocity, flow, denoised, as alpha(T) = 0"),
    ),
    (
        {"sde.name": "cosine", "sde.t_max": 0.99999999},  # 1 in float32
        *("model.parameterization", "velocity, denoised, flow", "alpha(T) = 0 of Cosine"),
    ),
    (
        DISCRETE | NO_DATA_LEFT | {"likelihood.method": "bound"},
        *("likelihood.method", "vlb, as alpha(T) = 0 of Cosine"),
    ),
    (
        {"training.times": "log_normal", "training.weight": "likelihood"},
        *("training.times", "uniform, log_snr, alternate, importance with the weight likelihood"),
    ),
    (
        {"training.loss": "edm", "training.weight": "likelihood"},
        *("training.weight", "epsilon, min_snr, ", " with the times log_normal"),
    ),
    (
        LEARNED
        | {"model.condition": "log_snr", "training.loss": "likelihood"}
        | {"training.dequantize": True, "training.reduce_mean": False},
        *("training.reduce_mean", "True with config.sde.name = 'vp_learned'"),
    ),
    (
        LAST_IS_NOISE | {"likelihood.method": "vlb"},
        *("sde.betas", "numbers below 1 with config.likelihood.method = 'vlb'"),
    ),
    (
        LAST_IS_NOISE | {"training.loss": "vlb", "model.learned_variance": True},
        *("sde.betas", "numbers below 1 with config.training.loss = 'vlb'"),
    ),
    (
        NO_DATA_LEFT | {"sampling.method": "ipndm", "sampling.grid": "quadratic"},
        *("sampling.grid", "uniform, paper, angle"),
    ),
    (
        PAIRED | {"likelihood.method": "bound"},
        *("likelihood.method", "ode with config.training.pairing = "),
    ),
    (
        {"sampling.method": "consistency"},
        *("sampling.method", "pc, ald, ode, ddim, dpmpp, unipc, ipndm, deis, heun unless"),
    ),
    ({"sde.name": "cosine", "sde.t_max": 1e-3}, "sde.t_max", "times above 0.001, up to 1"),
    ({"sde.name": "edm", "sde.t_max": 0.001}, "sde.t_max", "times above 0.002, up to 1e+06"),
    ({"training.pairing": "ot"}, "training.pairing", "independent, as some of the data", "VPSDE"),
    (
        PAIRED | {"sde.t_max": 0.99},
        *("training.pairing", "independent, as some of the data are left at T of Flow"),
    ),
    (
        PAIRED | {"model.class_conditional": True},
        *("training.pairing", "independent for a model with classes, conditions or augm"),
    ),
    (PAIRED | {"data.augment": 0.1}, "training.pairing", "independent for a model with classes"),
    (
        PAIRED | {"sampling.method": "ddim", "sampling.eta": 0.5},
        *("sampling.eta", "0 with config.training.pairing = 'ot'"),
    ),
    ({"restore.label": 10}, "restore.label", "classes below 10, those of digits"),
    ({"data.image_size": 16}, "data.image_size", "0 (its own 8 pixels) for digits"),
    ({"data.condition": ("a",)}, "data.condition", "vectors"),
    ({"data.bin_width": 1.0}, "data.bin_width", "vectors"),
    ({"model.name": "mlp"}, "model.name", "unet", "digits"),
    ({"data.name": "moons"}, "model.name", "mlp", "moons"),
    (MLP | {"model.width": 12}, "model.width", "multiples of 4 of at least 16"),
    (MLP | {"data.flip": True}, "data.flip", "False", "vectors"),
    (MLP | {"data.augment": 0.1}, "data.augment", "0: moons are vectors"),
    (
        {"data.augment": 0.1, "model.conditional": False},
        *("data.augment", "0 with config.model.conditional = False"),
    ),
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
    (CHAIN | {"sde.name": "edm"}, "sampling.faithful", "False with T = 80, as the original"),
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
    (
        DISCRETE | {"sde.name": "cosine", "sde.t_max": 0.9},
        *("sde.t_max", "unset, 1.0 with config.model.num_levels = 1000"),
    ),
    (
        DISCRETE | {"training.loss": "vlb"},
        *("training.loss", "paper with config.model.learned_variance = False"),
    ),
    ({"model.learned_variance": True}, "model.learned_variance", "False with", "num_levels = 0"),
    (
        VARIANCES | {"data.augment": 0.1, "training.loss": "vlb"},
        *("data.augment", "0 with config.training.loss = 'vlb'"),
    ),
    (
        VARIANCES | {"training.reduce_mean": False, "training.loss": "hybrid"},
        *("training.reduce_mean", "True with", "hybrid"),
    ),
    (
        VARIANCES | {"training.loss": "mixture"},
        *("training.loss", "paper, hybrid, vlb with", "num_levels = 1000"),
    ),
    (
        VARIANCES | CHAIN | {"sampling.predictor": "ancestral_learned"},
        *(
            "sampling.predictor",
            "euler_maruyama, reverse_diffusion, ancestral, ancestral_large, none with faithful",
        ),
    ),
    (
        DISCRETE | CHAIN | {"sampling.grid": "linspace"},
        *("sampling.grid", "unset with faithful = True"),
    ),
    (
        {"training.loss": "hybrid"},
        *("training.loss", "paper, likelihood", "second_order with", "learned_variance = False"),
    ),
    (
        {"likelihood.variance": "learned"},
        *("likelihood.variance", "large, small with", "learned_variance = False"),
    ),
    (
        {"sampling.method": "pc", "sampling.predictor": "ancestral_learned"},
        *("sampling.predictor", "ancestral_large, none with model.learned_variance = False"),
    ),
    (
        {"sampling.method": "pc", "sampling.grid": "linspace"},
        *("sampling.grid", "uniform, paper", "without levels"),
    ),
    (DISCRETE | {"training.loss": "mixture"}, "training.loss", "paper with", "num_levels = 1000"),
    (DISCRETE | {"training.times": "log_snr"}, "training.times", "unset with", "num_levels = 1000"),
    (DISCRETE | {"training.weight": "flow"}, "training.weight", "unset with", "num_levels = 1000"),
    ({"training.average_every": 7}, "training.average_every", "0, multiples of", "every = 5000"),
    (
        {"sampling.average": 0.1},
        *("sampling.average", "0, as the model is trained with config.training.average_every = 0"),
    ),
    ({"training.keep_every": 7}, "training.keep_every", "0, multiples of", "checkpoint_every = 5"),
    ({"training.batch_size": 1501}, "training.batch_size", "1 to 1500, the training", "digits"),
    (LEARNED, "model.condition", "log_sigma, log_snr with", "sde.name = 'vp_learned'"),
    (LEARNED | {"model.condition": "log_snr"}, "training.loss", "likelihood with", "vp_learned"),
    (
        LEARNED | {"model.condition": "log_snr", "training.loss": "likelihood"},
        *("training.dequantize", "True with", "vp_learned"),
    ),
    (
        LEARNED | {"model.condition": "log_snr", "training.loss": "likelihood", "sde.shift": 2.0},
        *("sde.shift", "1.0 with", "vp_learned"),
    ),
    (
        {"training.loss": "consistency", "training.uncertainty": True},
        *("training.uncertainty", "False with the weight consistency"),
    ),
    (
        LEARNED
        | {
            "model.condition": "log_snr",
            "training.loss": "likelihood",
            "training.uncertainty": True,
        },
        *("training.uncertainty", "False with", "vp_learned"),
    ),
    (
        LEARNED
        | {
            "model.condition": "log_snr",
            "training.loss": "likelihood",
            "training.times": "uniform",
        },
        *("training.times", "unset with", "vp_learned"),
    ),
    (
        {"likelihood.method": "vlb", "likelihood.num_times": 1},
        *("likelihood.num_times", "integers of at least 2 with", "method = 'vlb'"),
    ),
    ({"likelihood.num_images": 298}, "likelihood.num_images", "0 (all) to 297, the test", "digits"),
]


@pytest.mark.parametrize("case", CONTRADICTIONS, ids=lambda case: " ".join(case[0]))
def test_keys_that_contradict_each_other_are_refused(case):
    values, key, *said = case
    line = refusal(values)
    value = flat(changed(valid(), values))[key]
    assert line.startswith(f"config.{key} = {value!r}: allowed ")
    assert all(words in line for words in said), line


def test_a_sampler_that_cannot_begin_without_data_says_so():
    line = refusal(NO_DATA_LEFT | {"sampling.method": "pc"})
    named = "ode, ddim, dpmpp, unipc, ipndm, deis, as alpha(T) = 0 of Cosine, or "
    assert line == f"config.sampling.method = 'pc': allowed are {named}config.sde.t_max below 1"
    checked(changed(valid(), NO_DATA_LEFT))
    checked(changed(valid(), NO_DATA_LEFT | {"sampling.method": "pc", "sde.t_max": 0.99}))
    # The levels of a chain end before, so some grids do.
    of_chain = presets.load("iddpm_digits")
    checked(of_chain)
    with pytest.raises(
        UserError, match=r"ddim, .* or one of the grids leading, trailing, linspace$"
    ):
        checked(changed(of_chain, {"sampling.grid": "uniform"}))


@pytest.mark.parametrize("method", ["ode", "bound", "vlb"])
def test_a_process_that_ends_in_noise_has_every_likelihood(method):
    checked(changed(valid(), NO_DATA_LEFT | {"likelihood.method": method}))


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
    rules.check_devices(valid(), 8)
    with pytest.raises(UserError, match=r"^config\.training\.batch_size = 128: .*the 7 devices$"):
        rules.check_devices(valid(), 7)


@pytest.mark.parametrize("size", ["8", None, True, 1.5, (8,), (8, 0), (8, 8, 8), (8.0, 8), [8, 8]])
def test_an_image_size_is_one_number_or_two(size):
    assert "config.data.image_size = " in refusal({"data.name": "celeba", "data.image_size": size})
