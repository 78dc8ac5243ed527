"""The schema of a config: the kinds of values, and one row for each key. Reading this file imports
no JAX."""

import math
from typing import Any, NamedTuple

from score_sde.allowed import Names, Values, at_least, between, words
from score_sde.operations import OPERATIONS
from score_sde.paths import ALLOWED as PATHS
from score_sde.paths import is_url


def _are_positive(value: tuple[Any, ...], types: tuple[type, ...]) -> bool:
    return all(type(item) in types and 0 < item < math.inf for item in value)


def _is_interval(value: tuple[Any, ...]) -> bool:
    numbers = all(type(item) in (int, float) for item in value)
    return not value or (numbers and len(value) == 2 and 0 <= value[0] < value[1])


def _is_image_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return value == 0 or all(type(side) is int and 0 < side <= 16384 for side in sides)


# fmt: off
SWITCH = Values(lambda value: True, "True, False")
TEXT = Values(lambda value: True, "text")
SWEEP = Values(lambda value: True, "empty, KEY=VALUE,VALUE;... of sampling's keys and step")
FILE = Values(lambda value: not is_url(value) or value.startswith(("https://", "http://")),
              "paths of this machine, addresses of https://")
PATH = Values(lambda value: not is_url(value), PATHS)
SEED = Values(lambda value: 0 <= value < 2**32, "integers from 0 to 2**32 - 1")
COUNT = at_least(1)
SIZE = between(0, 16384, "integers")  # beyond, a mistake fills the memory by its name alone
IMAGE_SIZE = Values(_is_image_size, "integers from 0 to 16384, tuples (height, width)")
NOT_NEGATIVE = Values(lambda value: 0 <= value < math.inf, "numbers of at least 0")
REAL = Values(lambda value: -math.inf < value < math.inf, "numbers")
POSITIVE = Values(lambda value: 0 < value < math.inf, "positive numbers")
UP_TO_1 = Values(lambda value: 0 < value <= 1, "numbers above 0, up to 1")
FRACTION = Values(lambda value: 0 <= value < 1, "numbers from 0 to below 1")
# Below, float32's rounding is all that a step's error estimate sees.
TOLERANCE = Values(lambda value: 1e-7 <= value < 1, "numbers from 1e-7 to below 1")
# Below 1e-5 float32 and the networks' training end; next to 1 there is nothing left to do.
TIME = Values(lambda value: 1e-5 <= value <= 0.9, "times from 1e-5 to 0.9")
ABOVE_0 = Values(lambda value: value > 0, "numbers above 0")
SMALL = Values(lambda value: 0 < value < 1, "numbers above 0 and below 1")
CHURN_NOISE = Values(lambda value: 0 < value <= 2, "numbers above 0, up to 2")
FOURS = Values(lambda value: value > 0 and value % 4 == 0, "positive multiples of 4")
INTEGERS = Values(lambda value: _are_positive(value, (int,)), "tuples of positive integers")
NUMBERS = Values(lambda value: _are_positive(value, (int, float)), "tuples of positive numbers")
REALS = Values(lambda value: all(type(item) in (int, float) for item in value),
               "tuples of numbers")
BETAS = Values(lambda value: not value or (len(value) > 1 and _are_positive(value, (int, float))),
               "tuples of positive numbers, one for each level")
CLASSES = Values(lambda value: all(type(item) is int and item >= 0 for item in value),
                 "tuples of classes, integers from 0")
INTERVAL = Values(_is_interval, "(), two rising numbers of at least 0")
COLUMNS = Values(lambda value: all(type(item) is str or (type(item) is int and item >= 0)
                                   for item in value), "tuples of columns' names or indices")
REFERENCE = Values(lambda value: value == 0 or value >= 20, "0, integers of at least 20")
LEVELS = Values(lambda value: value == 0 or value > 1, "0, integers of at least 2")
AUGMENTATIONS = Values(lambda value: bool(value) and all(item in OPERATIONS for item in value),
                       f"tuples of {', '.join(OPERATIONS)}")
SIZES = Values(lambda value: bool(value) and _are_positive(value, (int,)),
               "tuples of positive integers, one per resolution")

DATASETS = Names("score_sde.data:DATASETS", "score_sde.data:Dataset", instance=True)
PROCESSES = Names("score_sde.processes:PROCESSES", "score_sde.sde:SDE")
NETWORKS = Names("score_sde.networks:NETWORKS", "flax.nnx:Module")
SAMPLERS = Names("score_sde.samplers:SAMPLERS", "score_sde.samplers.base:Sampler")
PREDICTORS = Names(
    "score_sde.samplers.predictor_corrector:PREDICTORS", "types:FunctionType", instance=True)
CORRECTORS = Names(
    "score_sde.samplers.predictor_corrector:CORRECTORS", "types:FunctionType", instance=True)
SOLVERS = Names("score_sde.integrate:SOLVERS")
STEP_CONTROLS = Names("score_sde.integrate:STEP_CONTROLS")
GRIDS = Names("score_sde.samplers.grids:GRIDS")
PARAMETERIZATIONS = Names("score_sde.score:PARAMETERIZATIONS")
NOISE_CONDITIONS = Names("score_sde.score:NOISE_CONDITIONS")
LOSSES = Names("score_sde.losses:LOSSES")
TIMES = Names("score_sde.times:TIMES")
WEIGHTS = Names("score_sde.losses:WEIGHTS")
PAIRINGS = Names("score_sde.pairing:PAIRINGS")
DEQUANTIZATIONS = Names("score_sde.spaces:DEQUANTIZATIONS")
DIVERGENCES = Names("score_sde.likelihood:DIVERGENCES")
LIKELIHOODS = Names("score_sde.densities:METHODS")
VARIANCES = Names("score_sde.bounds:VARIANCES")
RESTORATIONS = Names("score_sde.inverse:METHODS")
OPTIMIZERS = Names("score_sde.training.optimizers:OPTIMIZERS")
SCHEDULES = Names("score_sde.training.optimizers:SCHEDULES")
FEATURES = Names("score_sde.scoring:EXTRACTORS")
RESIZES = Names("score_sde.evaluation.network:RESIZES")
# fmt: on


def unet(name: str) -> Names:
    """The words of one setting of the U-Net."""
    return Names(f"score_sde.networks.spec:CHOICES.{name}")


class Row(NamedTuple):
    """One key.

    Attributes:
        key: "section.name".
        default: None is unset.
        allowed: the values that it may be set to.
        help: one short sentence.
        unset: the type of the values, where the default does not say it; object for several types.
    """

    key: str
    default: Any
    allowed: Values | Names
    help: str
    unset: type | None = None

    @property
    def kind(self) -> type:
        """The type of the values that are set."""
        return self.unset or type(self.default)


# fmt: off
_ROWS = (
    # key, default, allowed, help, and the type where the default is None: unset
    Row("name", "", TEXT, "file and variant of the preset, set by the command line"),
    Row("seed", 0, SEED, "of training: initial weights, order of the data, noise"),

    Row("data.name", "digits", DATASETS, "the data set"),
    Row("data.dir", "", PATH, "the user's folder or file, or where to download; empty: the cache"),
    Row("data.image_size", 0, IMAGE_SIZE, "to which files of images are resized; 0: their own",
        object),
    Row("data.channels", 0, SIZE, "of files of images: 1 grey, 3 colours; 0: their own"),
    Row("data.num_classes", 0, SIZE, "of a set that is only described; 0: its own"),
    Row("data.flip", False, SWITCH, "mirror half of the images in training"),
    Row("data.augment", 0.0, FRACTION,
        "probability of each change of an image that the network is given; 0: none, EDM: 0.12"),
    Row("data.augmentations", OPERATIONS, AUGMENTATIONS, "the changes that are made"),
    Row("data.skip_corrupt", False, SWITCH, "leave out corrupt files of images, else end there"),
    Row("data.stream", None, SWITCH, "read images as they are needed; unset: many ones", bool),
    Row("data.workers", None, between(0, 256, "integers"),
        "processes that read a stream; 0: threads; unset: half of the processors, up to 8", int),
    Row("data.condition", (), COLUMNS, "columns of vectors that become the condition"),
    Row("data.bin_width", None, POSITIVE, "step to which vectors were rounded; unset: none", float),

    Row("sde.name", "vp", PROCESSES, "the process"),
    Row("sde.beta_min", 0.1, POSITIVE, "beta at t = 0"),
    Row("sde.beta_max", 20.0, POSITIVE, "beta at t = 1"),
    Row("sde.sigma_min", 0.01, POSITIVE, "sigma at t = 0"),
    Row("sde.sigma_max", 50.0, POSITIVE, "sigma at t = 1"),
    Row("sde.betas", (), BETAS, "of the levels of vp_discrete, the least noise first"),
    Row("sde.t_max", None, POSITIVE,
        "last time of cosine, sigmoid and flow (unset: 1, where alpha is 0) and edm (80)", float),
    Row("sde.shift", 1.0, POSITIVE, "factor of all noise levels; d / 64 for d x d pixels"),

    Row("model.name", "unet", NETWORKS, "the network"),
    Row("model.width", 128, FOURS, "channels of the first level, or features of the mlp"),
    Row("model.depth", 3, between(1, 100, "integers"), "residual blocks of the mlp"),
    Row("model.multipliers", (1, 2, 2, 2), SIZES, "each level's width over the first's"),
    Row("model.num_blocks", 4, between(1, 100, "integers"), "residual blocks per level"),
    Row("model.block", "biggan", unet("block"), "kind of residual block"),
    Row("model.scale_shift", False, SWITCH,
        "the noise level scales and shifts what blocks normalize, else it is added before"),
    Row("model.resample_with_conv", True, SWITCH, "convolve where ddpm blocks resample"),
    Row("model.symmetric_padding", False, SWITCH, "pad both sides where ddpm blocks halve"),
    Row("model.attention_resolutions", (16,), INTEGERS, "image sizes that have attention"),
    Row("model.decoder_attention", "once", unet("decoder_attention"),
        "attention of the decoder: once a level or after every block"),
    Row("model.head_width", 0, at_least(0), "channels of an attention's head; 0: as num_heads"),
    Row("model.num_heads", 1, COUNT, "heads of an attention, where head_width is 0"),
    Row("model.dropout", 0.1, FRACTION, "probability of dropping an activation in training"),
    Row("model.activation", "swish", unet("activation"), "the nonlinearity"),
    Row("model.init_scale", 0.0, NOT_NEGATIVE, "variance of the initial kernels that end a block"),
    Row("model.norm_groups", 0, at_least(0), "groups of a normalization; 0: min(C // 4, 32)"),
    Row("model.norm_eps", 1e-6, POSITIVE, "what a normalization adds to the variance"),
    Row("model.conditional", True, SWITCH, "the network reads the noise level"),
    Row("model.embedding", "positional", unet("embedding"), "of the noise level"),
    Row("model.embedding_features", 0, at_least(0), "of the noise level; 0: width"),
    Row("model.level_scale", 1.0, POSITIVE, "factor of the noise level before the embedding"),
    Row("model.fourier_scale", 16.0, POSITIVE, "standard deviation of the Fourier frequencies"),
    Row("model.skip_rescale", True, SWITCH, "divide the sum of block and shortcut by sqrt(2)"),
    Row("model.fir", False, SWITCH, "resample with a [1, 3, 3, 1] filter"),
    Row("model.progressive_input", "none", unet("progressive_input"),
        "what each level gets of the input"),
    Row("model.combine", "sum", unet("combine"), "how input_skip combines the input with a level"),
    Row("model.progressive_output", "none", unet("progressive_output"),
        "how the levels make the output"),
    Row("model.input_frequencies", (), NUMBERS, "sin and cos of these multiples of pi x as input"),
    Row("model.class_conditional", False, SWITCH, "condition the network on the class"),
    Row("model.parameterization", "epsilon", PARAMETERIZATIONS, "what the network's output is"),
    Row("model.sigma_data", 1.0, POSITIVE,
        "standard deviation of the data: scales denoised, velocity, flow, weights; EDM's is 0.5"),
    Row("model.condition", "time", NOISE_CONDITIONS, "what the network reads as the noise level"),
    Row("model.num_levels", 0, LEVELS, "levels of a discretely trained chain; 0: continuous time"),
    Row("model.learned_variance", False, SWITCH,
        "the output has twice the channels; the second half says the chain's reverse variances"),
    Row("model.dtype", "float32", words("float32 bfloat16"), "precision inside the network"),
    Row("model.remat", False, SWITCH, "compute blocks twice in training: less memory, more time"),
    Row("model.centered", True, SWITCH, "data lie in [-1, 1], else in [0, 1]"),

    Row("training.from", "", PATH,
        "a run of the same model and process, whose averaged weights it begins with; empty: none"),
    Row("training.num_steps", 100_000, COUNT, "updates"),
    Row("training.batch_size", 128, COUNT, "examples of an update"),
    Row("training.optimizer", "adam", OPTIMIZERS,
        "muon: orthogonal steps for kernels and matrices, Adam's for the rest; fewer updates do"),
    Row("training.learning_rate", 2e-4, POSITIVE, "the largest, after the warm-up"),
    Row("training.warmup_steps", 5000, at_least(0), "updates over which the rate grows linearly"),
    Row("training.schedule", "constant", SCHEDULES, "the rate after the warm-up"),
    Row("training.schedule_steps", None, COUNT, "updates until the cosine ends; unset: num_steps",
        int),
    Row("training.gradient_clip", 1.0, POSITIVE, "largest norm of the gradient"),
    Row("training.beta2", 0.999, FRACTION, "Adam's decay of the second moment"),
    Row("training.weight_decay", 0.0, NOT_NEGATIVE, "AdamW's decay, times the rate"),
    Row("training.ema_rate", 0.9999, FRACTION, "decay of the averaged weights"),
    Row("training.loss", "paper", LOSSES, "a pair of times and weight"),
    Row("training.times", None, TIMES, "how times are drawn; unset: as of the loss", str),
    Row("training.weight", None, WEIGHTS, "of the error at a time; unset: that of the loss", str),
    Row("training.times_mean", None, REAL,
        "of log(sigma / alpha) for log_normal, unset -1.2; of log(t / (T - t)) for logit_normal, 0",
        float),
    Row("training.times_std", None, POSITIVE, "their standard deviation; unset: 1.2 and 1", float),
    Row("training.halve_every", None, COUNT,
        "updates between halvings of consistency's gap; unset: an eighth of num_steps", int),
    Row("training.pairing", "independent", PAIRINGS,
        "of noise and data in a batch; ot: that of the shortest paths, for flow matching"),
    Row("training.uncertainty", False, SWITCH,
        "learn how large the loss is at each noise level, and divide by it"),
    Row("training.reduce_mean", True, SWITCH, "mean over an example, else half the sum"),
    Row("training.label_dropout", 0.0, FRACTION,
        "probability of training an example without its class; above 0 guidance is possible"),
    Row("training.dequantize", False, SWITCH, "add uniform noise to integer pixels"),
    Row("training.t_min", 1e-5, TIME, "smallest time of training"),
    Row("training.checkpoint_every", 5000, COUNT, "updates between checkpoints"),
    Row("training.keep", 2, COUNT, "of the newest checkpoints, so many stay"),
    Row("training.keep_every", 0, at_least(0), "updates between checkpoints that stay; 0: none"),
    Row("training.average_every", 0, at_least(0),
        "updates between averages that are kept for sampling.average; 0: none"),
    Row("training.log_every", 50, COUNT, "updates between lines of the log"),
    Row("training.sample_every", 5000, at_least(0), "updates between pictures; 0: none"),
    Row("training.evaluate_every", 0, at_least(0),
        "updates between scores, of which the best keeps its checkpoint; 0: none"),

    Row("sampling.seed", 0, SEED, "of the samples' noise"),
    Row("sampling.method", "unipc", SAMPLERS, "the sampler; it reads some of the keys below"),
    Row("sampling.num_samples", 64, COUNT, "how many samples"),
    Row("sampling.batch_size", 64, COUNT, "samples drawn at a time"),
    Row("sampling.num_steps", None, COUNT, "steps; unset: the sampler's own", int),
    Row("sampling.average", 0.0, between(0, 0.28),
        "length of the weights' average, in all modes; 0: that of training.ema_rate"),
    Row("sampling.denoise", True, SWITCH, "denoise the last state"),
    Row("sampling.t_min", None, TIME, "time of the last state; unset: the process's own", float),
    Row("sampling.condition", (), REALS, "of all samples: a number for each condition column"),
    Row("sampling.labels", (), CLASSES, "classes that are drawn in turn; (): all of them"),
    Row("sampling.guidance", 1.0, NOT_NEGATIVE,
        "weight of classifier-free guidance; 1: none, 0: without classes"),
    Row("sampling.guidance_interval", (), INTERVAL,
        "noise levels sigma / alpha with guidance, lowest and highest; (): all"),
    Row("sampling.classifier_scale", 0.0, NOT_NEGATIVE,
        "of the gradient of --mode train_classifier's classifier; 0: none, 1: given the class"),
    Row("sampling.gif", False, SWITCH, "also write a film"),
    Row("sampling.png", False, SWITCH, "also write each image by itself, of 0 to 255"),
    Row("sampling.predictor", "euler_maruyama", PREDICTORS, "step to the next time"),
    Row("sampling.corrector", "none", CORRECTORS, "steps at each time"),
    Row("sampling.corrector_steps", 1, COUNT, "of the corrector at each time"),
    Row("sampling.snr", 0.16, POSITIVE, "signal-to-noise ratio of a corrector step"),
    Row("sampling.probability_flow", False, SWITCH, "predict by the flow, without noise"),
    Row("sampling.faithful", False, SWITCH, "as the original code, else as the paper's algorithm"),
    Row("sampling.steps_per_level", 1, COUNT, "Langevin steps at each noise level"),
    Row("sampling.step_size", None, SMALL, "of a Langevin step; unset: the sampler's rule", float),
    Row("sampling.consistent", True, SWITCH, "keep the noise at its level, else as NCSN"),
    Row("sampling.solver", "dopri5", SOLVERS, "of the probability flow"),
    Row("sampling.step_control", "sample", STEP_CONTROLS, "each sample's step, or the batch's"),
    Row("sampling.rtol", 1e-5, TOLERANCE, "relative tolerance of a step's error"),
    Row("sampling.atol", 1e-5, TOLERANCE, "absolute tolerance of a step's error"),
    Row("sampling.max_steps", 4096, COUNT, "steps of the flow, at most; no result depends on it"),
    Row("sampling.grid", None, GRIDS, "the times; unset: the sampler's own", str),
    Row("sampling.rho", 7.0, between(1, 100), "of the grid karras: larger, more late steps"),
    Row("sampling.steps_offset", 0, at_least(0), "of the grid leading: the level of its last time"),
    Row("sampling.clip", 0.0, NOT_NEGATIVE,
        "ddim and pc cut the denoised data to -clip ... clip; 0: not"),
    Row("sampling.eta", 0.0, between(0, 1), "how much noise a step adds"),
    Row("sampling.order", None, Values(lambda value: value in (1, 2, 3, 4), "1, 2, 3, 4"),
        "of a multistep method, 4 of ipndm and deis alone; unset: the best", int),
    Row("sampling.churn", 0.0, NOT_NEGATIVE, "S_churn of Heun's method"),
    Row("sampling.churn_from", 0.0, NOT_NEGATIVE, "S_tmin: no churn below this level of noise"),
    Row("sampling.churn_to", None, ABOVE_0, "S_tmax: no churn above this; unset: no bound", float),
    Row("sampling.churn_noise", 1.0, CHURN_NOISE, "S_noise: standard deviation of the noise"),
    Row("sampling.num_pairs", 8, COUNT, "pairs of an interpolation"),
    Row("sampling.num_between", 8, between(1, 1000, "integers"), "states between a pair"),

    Row("likelihood.seed", 0, SEED, "of dequantization, probes, times and noise"),
    Row("likelihood.split", "test", words("train test"), "of the data set"),
    Row("likelihood.method", "ode", LIKELIHOODS,
        "by the flow, variational bound, or that of finitely many levels"),
    Row("likelihood.num_images", 0, at_least(0), "how many; 0: all of the split"),
    Row("likelihood.batch_size", 100, COUNT, "examples at a time"),
    Row("likelihood.dequantization", "uniform", DEQUANTIZATIONS, "of integer pixels"),
    Row("likelihood.num_importance", 1, COUNT, "dequantizations of each image"),
    Row("likelihood.divergence", None, DIVERGENCES,
        "the probes, or exact; unset: exact for vectors of up to 16 columns, else rademacher", str),
    Row("likelihood.num_probes", 1, COUNT, "probes of the divergence"),
    Row("likelihood.rtol", 1e-5, TOLERANCE, "relative tolerance of a step's error"),
    Row("likelihood.atol", 1e-5, TOLERANCE, "absolute tolerance of a step's error"),
    Row("likelihood.max_steps", 4096, COUNT, "steps of a solve, at most; no result depends on it"),
    Row("likelihood.t_min", 1e-5, TIME, "time of the density, or of the bound's decoder"),
    Row("likelihood.num_times", 100, COUNT, "of the bound for each image; levels of vlb in time"),
    Row("likelihood.variance", "large", VARIANCES, "of the reverse steps in vlb"),

    Row("restore.method", "pigdm", RESTORATIONS,
        "of --mode restore, see docs/control.md; repaint and twisted have steps of their own"),
    Row("restore.iterations", 3, COUNT,
        "of mmps: of its solve, a pass back through the network each"),
    Row("restore.zeta", 1.0, POSITIVE, "of dps: how far its step goes towards the measurement"),
    Row("restore.resamplings", 10, COUNT, "of repaint: how often each step is made"),
    Row("restore.particles", 64, at_least(2),
        "of twisted: of each draw, which is one of them; other draws have their own"),
    Row("restore.num_draws", 4, COUNT, "of each image"),
    Row("restore.sigma_y", 0.05, NOT_NEGATIVE, "noise of the measurement, in the model's units"),
    Row("restore.strength", 0.5, UP_TO_1, "share of the process's time to which edit goes back"),
    Row("restore.label", None, at_least(0), "class of the images to relabel; unset: none", int),
    Row("restore.factor", 2, COUNT, "by which super_resolve enlarges"),
    Row("restore.blur", 1.0, POSITIVE, "standard deviation of the blur, in pixels"),

    Row("eval.features", "inception", FEATURES,
        "of Inception, or of a classifier that learns the set's labels on the spot"),
    Row("eval.num_samples", 50_000, at_least(20), "how many are drawn and compared"),
    Row("eval.training_samples", 2000, at_least(20), "how many a score during training is of"),
    Row("eval.num_reference", 0, REFERENCE, "images of the training split; 0: all"),
    Row("eval.num_manifold", 10_000, at_least(20),
        "images of a side for KID, precision and its kin, at most"),
    Row("eval.statistics", "", PATH,
        "file of the training split's mu and sigma: --mode data writes it, training reads it"),
    Row("eval.sweep", "", SWEEP, "settings to compare, each combination by itself"),
    Row("eval.likelihood", False, SWITCH, "also compute bits/dim, as --mode likelihood does"),
    Row("eval.batch_size", 64, COUNT, "images whose features are computed at a time"),
    Row("eval.inception_weights", "", FILE,
        "file of the FID network's weights, or a URL; empty: the cache"),
    Row("eval.resize", "tf1", RESIZES, "how images become the network's 299 pixels"),
)
# fmt: on

SECTIONS = ("data", "sde", "model", "training", "sampling", "likelihood", "restore", "eval")
SCHEMA: dict[str, Row] = {row.key: row for row in _ROWS}
"""The rows, by their keys."""
