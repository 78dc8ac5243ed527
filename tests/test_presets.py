"""The presets of published configurations, against a table of them written a second time here."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build, networks, workdirs
from score_sde.config import default, flat
from score_sde.discrete import discretization
from score_sde.errors import UserError
from score_sde.presets import load, names
from score_sde.samplers import PredictorCorrector
from score_sde.validation import validate
from tests.cases import thorough
from tests.commands import CONFIGS
from tests.networks.test_family import expected_count

# The 27 rows and the unconditional DDPM of the original's configuration files. Attention is at 16
# pixels and the images' colours are three in all of them.

# preset, pixels, width, multipliers, blocks, embedding, FIR, skips rescaled (if not: the plain DDPM
# network), progressive output and input, dropout, parameters
NETWORKS = """
subvp_cifar10:ddpm            32   128 1,2,2,2             2 pos     no  no  -        0.1 35218947
subvp_cifar10:ddpmpp          32   128 1,2,2,2             4 pos     no  yes -        0.1 61804419
subvp_cifar10:ddpmpp_deep     32   128 1,2,2,2             8 pos     no  yes -        0.1 106632579
subvp_cifar10:ncsnpp          32   128 1,2,2,2             4 pos     yes yes residual 0.1 62693251
subvp_cifar10:ncsnpp_deep     32   128 1,2,2,2             8 pos     yes yes residual 0.1 107521411
ve_256:bedroom                256  128 1,1,2,2,2,2,2       2 fourier yes yes skips    0.0 65574549
ve_celeba                     64   128 1,2,2,2             4 pos     yes yes residual 0.1 62693251
ve_256:celebahq               256  128 1,1,2,2,2,2,2       2 fourier yes yes skips    0.0 65574549
ve_1024:celebahq              1024 16  1,2,4,8,16,32,32,32 1 fourier yes yes skips    0.0 105785896
ve_256:church                 256  128 1,1,2,2,2,2,2       2 fourier yes yes skips    0.0 65574549
ve_cifar10:ddpm_discrete      32   128 1,2,2,2             2 pos     no  no  -        0.1 35218947
ve_cifar10:ncsnpp_discrete    32   128 1,2,2,2             4 pos     yes yes residual 0.1 62693251
ve_cifar10:ncsnpp             32   128 1,2,2,2             4 fourier yes yes residual 0.1 62758915
ve_cifar10:ncsnpp_deep        32   128 1,2,2,2             8 fourier yes yes residual 0.1 107587075
ve_256:ffhq                   256  128 1,1,2,2,2,2,2       2 fourier yes yes skips    0.0 65574549
ve_1024:ffhq                  1024 16  1,2,4,8,16,32,32,32 1 fourier yes yes skips    0.0 105785896
vp_cifar10:ddpmpp_discrete    32   128 1,2,2,2             4 pos     no  yes -        0.1 61804419
vp_cifar10:ddpmpp             32   128 1,2,2,2             4 pos     no  yes -        0.1 61804419
vp_cifar10:ddpmpp_deep        32   128 1,2,2,2             8 pos     no  yes -        0.1 106632579
vp_cifar10:ncsnpp_discrete    32   128 1,2,2,2             4 pos     yes yes residual 0.1 62693251
vp_cifar10:ncsnpp             32   128 1,2,2,2             4 pos     yes yes residual 0.1 62693251
vp_cifar10:ncsnpp_deep        32   128 1,2,2,2             8 pos     yes yes residual 0.1 107521411
vp_256:bedroom                256  128 1,1,2,2,4,4         2 pos     no  no  -        0.0 111569923
vp_256:celebahq               256  128 1,1,2,2,4,4         2 pos     no  no  -        0.0 111569923
vp_256:church                 256  128 1,1,2,2,4,4         2 pos     no  no  -        0.0 111569923
vp_cifar10:ddpm_discrete      32   128 1,2,2,2             2 pos     no  no  -        0.1 35218947
vp_cifar10:ddpm               32   128 1,2,2,2             2 pos     no  no  -        0.1 35218947
vp_cifar10:ddpm_unconditional 32   128 1,2,2,2             2 pos     no  no  -        0.1 32329347
"""

# preset, process with its two constants, levels of discrete training, data set, batch, steps,
# learning rate, decay of the averages, mean or half the sum
TRAINING = """
subvp_cifar10:ddpm            subvp 0.1  20.0 -    cifar10      128 1_300_001 0.0002 0.9999 mean
subvp_cifar10:ddpmpp          subvp 0.1  20.0 -    cifar10      128 1_300_001 0.0002 0.9999 mean
subvp_cifar10:ddpmpp_deep     subvp 0.1  20.0 -    cifar10      128 950_001   0.0002 0.9999 mean
subvp_cifar10:ncsnpp          subvp 0.1  20.0 -    cifar10      128 1_300_001 0.0002 0.9999 mean
subvp_cifar10:ncsnpp_deep     subvp 0.1  20.0 -    cifar10      128 950_001   0.0002 0.9999 mean
ve_256:bedroom                ve    0.01 378  -    lsun_bedroom 64  2_400_001 0.0002 0.999  half
ve_celeba                     ve    0.01 90.0 1000 celeba       128 1_300_001 0.0002 0.999  half
ve_256:celebahq               ve    0.01 348  -    celebahq     64  2_400_001 0.0002 0.999  half
ve_1024:celebahq              ve    0.01 1348 -    celebahq     8   2_400_001 0.0002 0.9999 half
ve_256:church                 ve    0.01 380  -    lsun_church  64  2_400_001 0.0002 0.999  half
ve_cifar10:ddpm_discrete      ve    0.01 50   1000 cifar10      128 1_300_001 0.0002 0.999  half
ve_cifar10:ncsnpp_discrete    ve    0.01 50   1000 cifar10      128 1_300_001 0.0002 0.999  half
ve_cifar10:ncsnpp             ve    0.01 50   -    cifar10      128 1_300_001 0.0002 0.999  half
ve_cifar10:ncsnpp_deep        ve    0.01 50   -    cifar10      128 950_001   0.0002 0.999  half
ve_256:ffhq                   ve    0.01 348  -    ffhq         64  2_400_001 0.0002 0.999  half
ve_1024:ffhq                  ve    0.01 1348 -    ffhq         8   2_400_001 0.0002 0.9999 mean
vp_cifar10:ddpmpp_discrete    vp    0.1  20.0 1000 cifar10      128 1_300_001 0.0002 0.9999 mean
vp_cifar10:ddpmpp             vp    0.1  20.0 -    cifar10      128 1_300_001 0.0002 0.9999 mean
vp_cifar10:ddpmpp_deep        vp    0.1  20.0 -    cifar10      128 950_001   0.0002 0.9999 mean
vp_cifar10:ncsnpp_discrete    vp    0.1  20.0 1000 cifar10      128 1_300_001 0.0002 0.9999 mean
vp_cifar10:ncsnpp             vp    0.1  20.0 -    cifar10      128 1_300_001 0.0002 0.9999 mean
vp_cifar10:ncsnpp_deep        vp    0.1  20.0 -    cifar10      128 950_001   0.0002 0.9999 mean
vp_256:bedroom                vp    0.1  20.0 1000 lsun_bedroom 64  2_400_001 2e-05  0.9999 mean
vp_256:celebahq               vp    0.1  20.0 1000 celebahq     64  2_400_001 2e-05  0.9999 mean
vp_256:church                 vp    0.1  20.0 1000 lsun_church  64  2_400_001 2e-05  0.9999 mean
vp_cifar10:ddpm_discrete      vp    0.1  20.0 1000 cifar10      128 1_300_001 0.0002 0.9999 mean
vp_cifar10:ddpm               vp    0.1  20.0 -    cifar10      128 1_300_001 0.0002 0.9999 mean
vp_cifar10:ddpm_unconditional vp    0.1  20.0 1000 cifar10      128 1_300_001 0.0002 0.9999 mean
"""

# preset, steps, predictor, corrector, signal-to-noise ratio
SAMPLING = """
subvp_cifar10:ddpm            1000 euler_maruyama    none     0.16
subvp_cifar10:ddpmpp          1000 euler_maruyama    none     0.16
subvp_cifar10:ddpmpp_deep     1000 euler_maruyama    none     0.16
subvp_cifar10:ncsnpp          1000 euler_maruyama    none     0.16
subvp_cifar10:ncsnpp_deep     1000 euler_maruyama    none     0.16
ve_256:bedroom                2000 reverse_diffusion langevin 0.075
ve_celeba                     1000 reverse_diffusion langevin 0.17
ve_256:celebahq               2000 reverse_diffusion langevin 0.075
ve_1024:celebahq              2000 reverse_diffusion langevin 0.15
ve_256:church                 2000 reverse_diffusion langevin 0.075
ve_cifar10:ddpm_discrete      1000 reverse_diffusion langevin 0.16
ve_cifar10:ncsnpp_discrete    1000 reverse_diffusion langevin 0.16
ve_cifar10:ncsnpp             1000 reverse_diffusion langevin 0.16
ve_cifar10:ncsnpp_deep        1000 reverse_diffusion langevin 0.16
ve_256:ffhq                   2000 reverse_diffusion langevin 0.075
ve_1024:ffhq                  2000 reverse_diffusion langevin 0.15
vp_cifar10:ddpmpp_discrete    1000 ancestral         none     0.16
vp_cifar10:ddpmpp             1000 euler_maruyama    none     0.16
vp_cifar10:ddpmpp_deep        1000 euler_maruyama    none     0.16
vp_cifar10:ncsnpp_discrete    1000 reverse_diffusion none     0.16
vp_cifar10:ncsnpp             1000 euler_maruyama    none     0.16
vp_cifar10:ncsnpp_deep        1000 euler_maruyama    none     0.16
vp_256:bedroom                1000 ancestral         none     0.075
vp_256:celebahq               1000 ancestral         none     0.075
vp_256:church                 1000 ancestral         none     0.075
vp_cifar10:ddpm_discrete      1000 ancestral         none     0.16
vp_cifar10:ddpm               1000 euler_maruyama    none     0.16
vp_cifar10:ddpm_unconditional 1000 ancestral         none     0.16
"""


def table(text):
    """{preset: the other columns} of a table."""
    return {row[0]: row[1:] for row in map(str.split, text.strip().splitlines())}


PRESETS = list(table(NETWORKS))
# What the table does not say of a run: how often it saves and draws, and how many images.
FREE = {
    "name",
    "training.checkpoint_every",
    "training.sample_every",
    "sampling.num_samples",
    "sampling.batch_size",
}


def network_keys(preset):
    """The model's keys of a row, and the data's size."""
    size, width, multipliers, blocks, embedding, fir, rescale, pyramids, dropout, _ = table(
        NETWORKS
    )[preset]
    output, input_ = {
        "-": ("none", "none"),
        "residual": ("none", "residual"),
        "skips": ("output_skip", "input_skip"),
    }[pyramids]
    ve, fourier, ddpm = preset.startswith("ve_"), embedding == "fourier", rescale == "no"
    return {
        "data.image_size": 0 if size == "32" else int(size),
        "model.width": int(width),
        "model.multipliers": tuple(map(int, multipliers.split(","))),
        "model.num_blocks": int(blocks),
        "model.attention_resolutions": (16,),
        "model.dropout": float(dropout),
        "model.embedding": "fourier" if fourier else "positional",
        "model.fourier_scale": 16.0,
        "model.skip_rescale": not ddpm,
        "model.fir": fir == "yes",
        "model.progressive_output": output,
        "model.progressive_input": input_,
        "model.combine": "sum",
        "model.block": "ddpm" if ddpm else "biggan",
        "model.norm_groups": 32 if ddpm else 0,
        "model.resample_with_conv": True,
        "model.decoder_attention": "once",
        "model.activation": "swish",
        "model.init_scale": 0.0,
        "model.conditional": "unconditional" not in preset,
        "model.input_frequencies": (),
        "model.class_conditional": False,
        "model.dtype": "float32",
        "model.centered": not ve,
        "model.parameterization": "score" if ve else "epsilon",
        "model.condition": "log_sigma" if fourier else "time",
    }


def training_keys(preset):
    """The keys of data, process and training of a row."""
    sde, low, high, levels, data, batch, steps, rate, ema, reduction = table(TRAINING)[preset]
    names = ("sigma_min", "sigma_max") if sde == "ve" else ("beta_min", "beta_max")
    return {
        "seed": 42,
        "data.name": data,
        "data.flip": True,
        "sde.name": sde,
        f"sde.{names[0]}": float(low),
        f"sde.{names[1]}": float(high),
        "model.num_levels": 0 if levels == "-" else int(levels),
        "training.num_steps": int(steps),
        "training.batch_size": int(batch),
        "training.learning_rate": float(rate),
        "training.warmup_steps": 5000,
        "training.schedule": "constant",
        "training.gradient_clip": 1.0,
        "training.beta2": 0.999,
        "training.weight_decay": 0.0,
        "training.ema_rate": float(ema),
        "training.loss": "paper",
        "training.reduce_mean": reduction == "mean",
        "training.label_dropout": 0.0,
        "training.dequantize": False,
        "training.t_min": 1e-5,
    }


def sampling_keys(preset):
    """The keys of sampling of a row."""
    steps, predictor, corrector, snr = table(SAMPLING)[preset]
    return {
        "sampling.method": "pc",
        "sampling.num_steps": int(steps),
        "sampling.predictor": predictor,
        "sampling.corrector": corrector,
        "sampling.corrector_steps": 1,
        "sampling.snr": float(snr),
        "sampling.denoise": True,
        "sampling.faithful": True,
        "sampling.t_min": None,
    }


def test_the_table_has_27_rows_and_the_unconditional_one():
    assert len(PRESETS) == 28
    assert list(table(TRAINING)) == list(table(SAMPLING)) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_row(preset):
    """Every key: those of the row have its values, all others the schema's."""
    row = network_keys(preset) | training_keys(preset) | sampling_keys(preset)
    assert row.keys() <= flat(default()).keys()
    expected = flat(default()) | row
    values = flat(load(preset))
    assert {key: values[key] for key in expected.keys() - FREE} == {
        key: expected[key] for key in expected.keys() - FREE
    }


def spec_of(preset):
    config = load(preset)
    (spec,) = build.network(config, build.dataset(config)).args
    return spec


@pytest.mark.parametrize("preset", [*PRESETS, "vp_cifar10:ddpm_diffusers"])
def test_a_preset_has_the_published_number_of_parameters(preset):
    """By the plan and the layers' conventions; networks that are built have as many, as is shown
    below and in networks/test_family.py."""
    row = table(NETWORKS).get(preset, ("32", "35746307"))
    spec, size = spec_of(preset), int(row[0])
    assert expected_count(spec) == int(row[-1])
    assert (*spec.sides, spec.channels) == (size, size, 3)


# NCSN++. Blocks of the other kinds are counted in networks/test_family.py.
BUILT = ("ve_celeba",)
OTHERS = (
    "vp_cifar10:ddpm",
    "subvp_cifar10:ddpmpp",
    "ve_256:ffhq",
    "ve_cifar10:ncsnpp_deep",
    "ve_1024:ffhq",
)
OTHERS += ("vp_256:church", "vp_cifar10:ddpm_diffusers")


@pytest.mark.parametrize("preset", [*BUILT, *thorough(*OTHERS)])
def test_the_network_of_a_preset_is_built_with_that_number(preset):
    spec = spec_of(preset)
    params = networks.abstract(functools.partial(networks.UNet, spec))[1]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected_count(spec)


@pytest.mark.parametrize("preset", PRESETS)
def test_sampling_is_the_originals(preset):
    """Its sampler from T = 1 down to 1e-3 (VP, sub-VP) or 1e-5 (VE), both ends included."""
    config = load(preset)
    sampler, process = build.sampler(config), build.sde(config)
    steps, predictor, corrector, snr = table(SAMPLING)[preset]
    assert sampler == PredictorCorrector(
        num_steps=int(steps),
        predictor=predictor,
        corrector=corrector,
        corrector_steps=1,
        snr=float(snr),
        denoise=True,
        faithful=True,
        num_levels=config.model.num_levels,
    )
    times = np.asarray(sampler.times(process))[:-1]
    t_min = 1e-5 if preset.startswith("ve_") else 1e-3
    np.testing.assert_allclose(times, np.linspace(1.0, t_min, int(steps)), rtol=1e-6, atol=1e-7)
    assert sampler.corrections == (1 if corrector == "langevin" else 0)
    if config.model.num_levels or predictor == "reverse_diffusion":
        # float32 reads each level's own row of the table: none is skipped or read twice.
        index = np.trunc(times * np.float32(int(steps) - 1))
        np.testing.assert_array_equal(index, np.arange(int(steps))[::-1])
    if config.model.num_levels:
        discrete = discretization(process)
        levels = discrete.snap(discrete.level(jnp.asarray(times), config.model.num_levels))[1]
        rows = np.arange(int(steps))
        np.testing.assert_array_equal(levels, rows if preset.startswith("ve_") else rows[::-1])


@pytest.mark.parametrize("preset", [*PRESETS, "vp_cifar10:ddpm_diffusers", "ve_cifar10:ncsn"])
def test_presets_are_valid_and_survive_json(preset):
    config = load(preset)
    validate(config)
    assert flat(workdirs.from_json(workdirs.to_json(config, build.dataset(config)))) == flat(config)
    json.dumps(config.to_dict())


@pytest.mark.parametrize(
    ("alone", "variant"),
    [
        ("vp_cifar10", "ddpmpp"),
        ("vp_cifar10:deep", "ddpmpp_deep"),
        ("subvp_cifar10", "ddpmpp"),
        ("ve_cifar10", "ncsnpp"),
    ],
)
def test_defaults_and_short_names(alone, variant):
    short, long = flat(load(alone)), flat(load(f"{alone.partition(':')[0]}:{variant}"))
    assert short | {"name": long["name"]} == long


@pytest.mark.parametrize(
    "name",
    [
        *("vp_digits", "vp_moons", "vp_fashion_mnist", "vp_cifar10", "cosine_digits"),
        *("edm_digits", "edm_fashion_mnist", "edm_cifar10", "ect_digits", "ect_fashion_mnist"),
    ],
)
def test_the_conditional_variants(name):
    plain, values = flat(load(name)), flat(load(f"{name}:conditional"))
    assert {key: value for key, value in values.items() if value != plain[key]} == {
        "name": f"{name}-conditional",
        "model.class_conditional": True,
        "training.label_dropout": 0.1,
    }


def test_diffusers_ddpm_is_ddpm_with_more_attention_and_its_own_number_of_steps():
    values, ddpm = (
        flat(load(f"vp_cifar10:ddpm_{variant}")) for variant in ("diffusers", "discrete")
    )
    assert {key: value for key, value in values.items() if value != ddpm[key]} == {
        "name": "vp_cifar10-ddpm_diffusers",
        "model.decoder_attention": "every",
        "training.num_steps": 800_000,
    }


def test_a_preset_by_name_and_by_file(tmp_path, monkeypatch):
    """A path may hold colons: of a folder named by a time, of a drive on Windows."""
    assert set(names()) == {path.stem for path in CONFIGS.glob("*.py")}
    named = load("vp_cifar10:ncsnpp")
    assert named.name == "vp_cifar10-ncsnpp"
    assert flat(load(f"{CONFIGS / 'vp_cifar10.py'}:ncsnpp")) == flat(named)
    monkeypatch.chdir(tmp_path)
    for folder in ("2026-01-01T10:00", "C:", "a.py:b"):
        Path(folder).mkdir()
        file = Path(folder, "mine.py")
        file.write_text(
            "from score_sde import presets\n"
            "def get_config(variant=''):\n"
            "    config = presets.load('ve_digits')\n"
            "    config.seed = int(variant or 1)\n"
            "    return config\n"
        )
        for variant, seed, name in (("", 1, "mine"), (":", 1, "mine"), (":7", 7, "mine-7")):
            mine = load(f"{file}{variant}")
            assert (mine.name, mine.seed, mine.sde.name) == (name, seed, "ve")
        assert [path.name for path in file.parent.iterdir()] == ["mine.py"]  # and no bytecode


@pytest.mark.parametrize("preset", ["vp_digit", "configs/vp_digits", "", "none.py", "none.py:x"])
def test_a_preset_that_does_not_exist(preset):
    with pytest.raises(UserError, match=f"^--config {preset}: no such .* ve_celeba, .*vp_digits"):
        load(preset)
