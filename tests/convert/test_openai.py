"""OpenAI's networks from their state dicts, without PyTorch (tests/parity compares the numbers)."""

import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import score_sde
from score_sde import commands, convert, networks
from score_sde.config import changed, default
from score_sde.convert import openai
from score_sde.data import digits
from score_sde.modes import convert as convert_mode
from score_sde.networks import UNet
from score_sde.validation import validate
from tests.commands import CONFIGS, command, succeed
from tests.convert.openai_files import (
    TINY,
    Theirs,
    arrays_of,
    classifier_of,
    conv,
    layer,
    shapes_of,
    state_of,
)
from tests.convert.originals import spec_of
from tests.convert.torch_files import save

_CIFAR = Theirs(128, (128, 256, 256, 256), 3, (1, 2), updown=False)
_64 = Theirs(192, (192, 384, 576, 768), 3, (1, 2, 3), classes=1000)
_128 = Theirs(256, (256, 256, 512, 768, 1024), 2, (2, 3, 4), classes=1000)
_256 = Theirs(256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5))
_512 = Theirs(256, (128, 256, 256, 512, 512, 1024, 1024), 2, (4, 5, 6), classes=1000)
_LSUN = Theirs(128, (128, 128, 256, 256, 512, 512), 2, (4,), updown=False, scale_shift=False)
# Published files, their networks and the millions of parameters: those of guided-diffusion are in
# table 11 of Dhariwal and Nichol 2021; the others' names say about 50, 100, 270 and 100.
PUBLISHED = {
    "cifar10_uncond_50M_500K.pt": (_CIFAR, 53),
    "imagenet64_uncond_100M_1500K.pt": (
        _CIFAR._replace(widths=(128, 256, 384, 512), attended=(2, 3)),
        121,
    ),
    "imagenet64_cond_270M_250K.pt": (_64._replace(attended=(2, 3), updown=False), 273),
    "lsun_uncond_100M_1200K_bs128.pt": (_LSUN, 114),
    "64x64_diffusion.pt": (_64, 296),
    "128x128_diffusion.pt": (_128, 422),
    "256x256_diffusion.pt": (_256._replace(classes=1000), 554),
    "lsun_cat.pt": (_256, 553),
    "512x512_diffusion.pt": (_512, 559),
}


# What no array shows of each published file, by the flags of the two READMEs and the defaults of
# their commands: pixels, schedule, steps, heads (or channels of a head), whether the network gets
# the level times 1000 / steps, and the order of the attention's array.
FLAGS = """
cifar10_uncond_50M_500K.pt       32  cosine 4000 4 heads     rescaled by_head
cifar10_uncond_vlb_50M_500K.pt   32  cosine 4000 4 heads     rescaled by_head
imagenet64_uncond_100M_1500K.pt  64  cosine 4000 4 heads     rescaled by_head
imagenet64_uncond_vlb_100M_1500K.pt 64 cosine 4000 4 heads   rescaled by_head
imagenet64_cond_270M_250K.pt     64  cosine 4000 4 heads     as_it_is by_head
lsun_uncond_100M_1200K_bs128.pt  256 linear 1000 1 heads     as_it_is by_head
lsun_uncond_100M_2400K_bs64.pt   256 linear 1000 1 heads     as_it_is by_head
64x64_diffusion.pt               64  cosine 1000 64 channels as_it_is by_kind
128x128_diffusion.pt             128 linear 1000 4 heads     as_it_is by_head
256x256_diffusion.pt             256 linear 1000 64 channels as_it_is by_head
256x256_diffusion_uncond.pt      256 linear 1000 64 channels as_it_is by_head
512x512_diffusion.pt             512 linear 1000 64 channels as_it_is by_head
lsun_bedroom.pt                  256 linear 1000 64 channels as_it_is by_head
lsun_cat.pt                      256 linear 1000 64 channels as_it_is by_head
lsun_horse.pt                    256 linear 1000 64 channels as_it_is by_head
lsun_horse_nodropout.pt          256 linear 1000 64 channels as_it_is by_head
"""


def test_the_flags_of_the_published_files():
    rows = [row.split() for row in FLAGS.strip().splitlines()]
    assert [row[0] for row in rows] == list(openai.PUBLISHED)
    for name, size, schedule, steps, number, unit, level, order in rows:
        says = openai.settings(Path(name), SHAPES, 0)
        assert says["data.image_size"] == int(size), name
        assert says["sde.name"] == {"cosine": "cosine", "linear": "vp"}[schedule], name
        if schedule == "linear":  # betas from 1e-4 to 0.02 in 1000 steps
            assert (says["sde.beta_min"], says["sde.beta_max"]) == (0.1, 20.0), name
        assert says["model.num_levels"] == int(steps), name
        channels = says["model.head_width"]  # 0 where the number of heads counts
        assert channels == (int(number) if unit == "channels" else 0), name
        assert channels or says["model.num_heads"] == int(number), name
        assert says["model.level_scale"] == {"rescaled": 0.25, "as_it_is": 1.0}[level], name
        assert openai.has_new_order(Path(name)) == (order == "by_kind"), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_says_its_network_and_its_process(name):
    """Every array has its place, in a network that the rules of a config accept."""
    theirs, millions = PUBLISHED[name]
    shapes = shapes_of(theirs)
    assert round(sum(map(math.prod, shapes.values())) / 1e6) == millions
    says = openai.settings(Path(name), shapes, 0)
    assert not openai.likely(Path(name), shapes, 0) and not openai.choices(Path(name), 4000)
    assert says["model.parameterization"] == "epsilon"
    config = changed(default(), {"data.name": "images", **says})
    validate(config)
    spec, size = spec_of(config), openai.PUBLISHED[name].image_size
    assert (spec.widths, spec.image_size) == (theirs.widths, size)
    assert spec.attention_resolutions == tuple(size // 2**level for level in theirs.attended)
    assert spec.embedding_width == 4 * theirs.features
    modules, known = {each.rpartition(".")[0] for each in shapes}, openai.names(spec).keys()
    fused = {module for module in modules if module.endswith(".qkv")}
    modules |= {f"{module}.{part}" for module in fused for part in ("query", "key", "value")}
    assert modules - fused <= known
    assert all(each.endswith(("skip_connection", "label_emb")) for each in known - modules)


def test_what_no_array_shows_is_openais_default_or_typed():
    path, shapes = Path("ema_0.9999_050000.pt"), shapes_of(_CIFAR)
    likely = openai.likely(path, shapes, 0)
    assert (likely["data.image_size"], likely["model.num_heads"]) == (32, 4)
    assert (likely["sde.name"], likely["model.num_levels"]) == ("vp", 1000)
    assert not likely.keys() & openai.settings(path, shapes, 0).keys()
    cosine = openai.PUBLISHED["cifar10_uncond_50M_500K.pt"].settings()
    assert (cosine["sde.name"], cosine["model.num_levels"]) == ("cosine", 4000)
    assert cosine["model.level_scale"] == 0.25
    with_size = openai.settings(path, shapes, (16, 24))
    assert with_size["model.attention_resolutions"] == (8, 4)


@pytest.mark.parametrize(
    ("updown", "levels", "scale"),
    # improved-diffusion rescales by default, guided-diffusion does not.
    [(False, 4000, 0.25), (False, 500, 2.0), (False, 0, 1.0), (True, 4000, 1.0), (True, 0, 1.0)],
)
def test_levels_are_rescaled_by_default_where_blocks_do_not_resample(updown, levels, scale):
    shapes = shapes_of(TINY._replace(updown=updown))
    likely = openai.likely(Path("ema_0.9999_050000.pt"), shapes, levels)
    assert likely["model.level_scale"] == scale
    assert likely["model.num_levels"] == (levels or 1000)
    assert likely["model.parameterization"] == "epsilon"


def test_the_flags_that_leave_a_choice():
    choices = openai.choices(Path("a.pt"), 4000)
    assert choices["model.level_scale"] == (1.0, 0.25)
    assert choices["model.parameterization"] == ("epsilon", "denoised")
    for levels in (0, 1000):  # continuous time, and the number that theirs is scaled to
        assert openai.choices(Path("a.pt"), levels)["model.level_scale"] == (1.0, 1.0)


# Whether blocks resample, the flags, the scale and the parameterization of the network, and the
# scale that the command names as the other choice.
TYPED = {
    "the default": (False, (), (1.0, "epsilon"), None),
    "4000 levels": (False, ("num_levels=4000",), (0.25, "epsilon"), 1.0),
    "not rescaled": (False, ("num_levels=4000", "level_scale=1.0"), (1.0, "epsilon"), 0.25),
    "another scale": (False, ("num_levels=4000", "level_scale=0.5"), (0.5, "epsilon"), None),
    "the denoised images": (False, ("parameterization=denoised",), (1.0, "denoised"), None),
    "resampling blocks": (True, ("num_levels=4000",), (1.0, "epsilon"), 0.25),
    "rescaled": (True, ("num_levels=4000", "level_scale=.25"), (0.25, "epsilon"), 1.0),
}


@pytest.mark.parametrize("case", TYPED)
def test_the_default_follows_the_levels_that_are_typed(case, tmp_path, capsys):
    updown, typed, expected, other = TYPED[case]
    file = save(tmp_path / "a.pt", arrays_of(shapes_of(TINY._replace(updown=updown))))
    flags = [SIZE, *(f"--config.model.{each}" for each in typed)]
    config, _ = commands.of_conversion(file, None, f"{tmp_path / 'run'}", flags)
    assert (config.model.level_scale, config.model.parameterization) == expected
    convert_mode._print_level_scale(config, file)
    out = capsys.readouterr().out
    assert out.count("\n") == (other is not None)
    assert other is None or f" type --config.model.level_scale={other} (" in out


KINDS = {
    "guided": (TINY._replace(classes=3), {"model.head_width": 16}),
    "improved": (TINY._replace(updown=False, widths=(32, 32)), {"model.num_heads": 2}),
    "half a level": (TINY._replace(features=64, scale_shift=False, outputs=3), {}),
}


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_array_is_in_its_place(kind, new_order):
    theirs, typed = KINDS[kind]
    shapes, path = shapes_of(theirs), Path("model.pt")
    arrays = arrays_of(shapes)
    says = openai.settings(path, shapes, 8)
    config = {"data.name": "images", "data.image_size": 8, "model.num_levels": 1000}
    spec = spec_of(changed(default(), {**config, **says, **typed}))
    assert spec.block == ("adm" if theirs.updown else "ddpm")
    flat = openai.from_state(arrays, spec, new_order).ema
    _, expected = networks.abstract(partial(UNet, spec))
    convert.fit(flat, expected, path)  # of each of ours one, of the right shape
    assert sum(map(np.size, flat.values())) == sum(map(np.size, arrays.values()))
    array = arrays["middle_block.1.qkv.weight"][:, :, 0]
    width = theirs.widths[-1]
    head = width // {"guided": 4, "improved": 2, "half a level": 1}[kind]
    for number, part in enumerate(("query", "key", "value")):
        ours = flat[f"middle/attention/{part}/kernel"]
        for begin in range(0, width, head):
            # The rows of this head: among those of its kind, or behind those of its head.
            row = number * width + begin if new_order else 3 * begin + number * head
            np.testing.assert_array_equal(ours[:, begin : begin + head], array[row : row + head].T)
    # The cosines come first there.
    first, half = arrays["time_embed.0.weight"].T, theirs.features // 2
    swapped = np.concatenate([first[half:], first[:half]])
    np.testing.assert_array_equal(flat["condition/dense0/kernel"], swapped)


@pytest.mark.thorough
def test_a_file_becomes_a_run_that_samples(tmp_path):
    """Of a name that is not a published one's, without a config."""
    theirs = TINY._replace(widths=(32,), attended=(), classes=3)
    save(tmp_path / "model.pt", arrays_of(shapes_of(theirs)))
    typed = ("--config.data.image_size=8", "--config.model.head_width=16", "--workdir", "run")
    force = "--force"  # it was never trained
    out = succeed("--mode", "convert", "--source", "model.pt", *typed, force, cwd=tmp_path)
    unseen = out.partition("as neither arrays nor files show it: ")[2].partition("\n")[0]
    for setting in ("process VPSDE", "data.image_size = 8", "head_width = 16", "num_levels = 1000"):
        assert setting in unseen, unseen
    assert "scale_shift" not in unseen and "activation" not in unseen
    assert "rescale_timesteps" not in out  # of 1000 levels it changes nothing
    run = score_sde.load(tmp_path / "run")
    settings = run.config.model
    assert (settings.block, settings.scale_shift, settings.learned_variance) == ("ddpm", True, True)
    assert (run.info.name, run.info.shape, run.info.num_classes) == ("images", (8, 8, 3), 3)
    ddim = ("--config.sampling.method=ddim", "--config.sampling.grid=leading")
    few = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=3")
    out = succeed("--mode", "sample", "--workdir", "run", *ddim, *few, cwd=tmp_path)
    assert "3 images, NFE 2" in out
    learned = ("--config.sampling.predictor=ancestral_learned", "--config.sampling.grid=linspace")
    pc = ("--config.sampling.method=pc", *learned, "--config.sampling.clip=1")
    out = succeed("--mode", "sample", "--workdir", "run", *pc, *few, cwd=tmp_path)
    assert "3 images, NFE 2" in out


SIZE = "--config.data.image_size=8"
# The network of a tiny file, in a run of ours; its levels are the times 999 t.
TRAINED = (
    *("--config", CONFIGS / "vp_digits.py", "--config.model.input_frequencies=()"),
    *("--config.model.multipliers=1,", "--config.model.attention_resolutions=()"),
    *("--config.model.block=ddpm", "--config.model.decoder_attention=every"),
    *("--config.model.symmetric_padding", "--config.model.scale_shift"),
    *("--config.model.norm_groups=32", "--config.model.norm_eps=1e-5"),
    *("--config.model.embedding=vaswani", "--config.model.condition=time"),
    *("--config.model.skip_rescale=False", "--config.model.parameterization=denoised"),
    *("--config.training.loss=edm", "--config.training.num_steps=400"),
    *("--config.training.ema_rate=0.99", "--config.training.sample_every=0"),
)


@pytest.mark.slow  # a U-Net, compiled and trained
def test_a_network_of_predict_xstart_and_of_rescaled_levels(tmp_path):
    """Digits, under a name that is not published. With one flag wrong it is refused, and the
    refusal names that flag's other value."""
    succeed("--mode", "train", *TRAINED, "--workdir", "ours", cwd=tmp_path)
    ours = score_sde.load(tmp_path / "ours")
    params = convert.flattened(ours.score.params)
    save(tmp_path / "model.pt", state_of(params, spec_of(ours.config)))
    levels = ("--config.model.num_levels=4000", "--config.model.num_heads=1", SIZE)
    source = ("--source", "model.pt", *levels)
    denoised = "--config.model.parameterization=denoised"
    told = line_of(*source, cwd=tmp_path)
    assert ", or config.model.parameterization = denoised, or --force" in told
    told = line_of(*source, denoised, "--config.model.level_scale=1.0", cwd=tmp_path)
    assert ", or config.model.level_scale = 0.25, or --force" in told

    out = succeed("--mode", "convert", "--workdir", "run", *source, denoised, cwd=tmp_path)
    assert "config.model.level_scale = 0.25, as of rescale_timesteps = True; for False type " in out
    assert "type --config.model.level_scale=1.0 (" in out
    assert "(within the bounds of trained networks)" in out
    theirs = score_sde.load(tmp_path / "run").score
    x0 = digits.load("test").x[:64] / np.float32(8.0) - 1
    t = np.full(len(x0), 0.1, np.float32)
    (alpha,), (sigma,) = ours.sde.alpha(t[:1]), ours.sde.sigma(t[:1])
    x = alpha * x0 + sigma * np.random.default_rng(0).standard_normal(x0.shape, np.float32)
    denoise = jax.jit(lambda model, x, t: model.denoised(x, t))
    found, expected = denoise(theirs, x, t), denoise(ours.score, x, t)
    # A level times 0.25 is 999 t up to 0.25. On these digits that makes a difference of 1e-4.
    assert rms(found - expected) < 1e-3
    # Of the noise, which is 0.34, 0.20 is left. (The mean pixel would be off by 0.76.)
    assert rms(found - x0) < 0.75 * sigma / alpha


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


PRESET = ("--config", CONFIGS / "vp_digits.py")
SHAPES = shapes_of(TINY)
UPSAMPLER = shapes_of(TINY._replace(channels=6))
EDM = "--config.model.sigma_data=0.5"
# A file's name, its arrays' shapes, flags, and what is said.
MISTAKES = {
    "a classifier": ("64x64_classifier.pt", classifier_of(TINY), (), "pt: it is a classifier;"),
    "an upsampler": ("up.pt", UPSAMPLER, (), "it enlarges images: it reads one of low resolution"),
    "no size": ("a.pt", SHAPES, (), "config.data.image_size: missing; a.pt does not say it"),
    "an array too many": (
        *("a.pt", SHAPES | layer("input_blocks.9.0", 3), (SIZE,)),
        "2 not the network's: input_blocks.9.0.weight, input_blocks.9.0.bias",
    ),
    "an array too few": (
        *("a.pt", {name: SHAPES[name] for name in SHAPES if name != "out.0.bias"}, (SIZE,)),
        "1 missing: head_norm/bias",
    ),
    "an array too few to know the network": (
        *("a.pt", {name: SHAPES[name] for name in SHAPES if "0.emb_layers.1." not in name}, ()),
        "its array middle_block.0.emb_layers.1.weight is missing",
    ),
    "a head that does not divide": (
        *("a.pt", SHAPES, (SIZE, "--config.model.head_width=48")),
        "config.model.head_width = 48: allowed are 0 and divisors of the widths 64",
    ),
    "widths of no multiples": (
        *("a.pt", shapes_of(TINY._replace(widths=(32, 48))), (SIZE,)),
        "its levels have [32, 48] channels, no multiples of 32",
    ),
    "other outputs": (
        *("a.pt", SHAPES | conv("out.2", 32, 5), (SIZE,)),
        "it reads 3 channels and returns 5",
    ),
    "another chain than the published": (
        *("cifar10_uncond_50M_500K.pt", SHAPES, ("--config.model.num_levels=1000",)),
        "num_levels = 1000: allowed are 4000, as cifar10_uncond_50M_500K.pt says",
    ),
    "an output that none has": (
        *("a.pt", SHAPES, (SIZE, "--config.model.parameterization=velocity")),
        "parameterization = 'velocity': allowed are epsilon, denoised, as a.pt is of OpenAI's",
    ),
    "a preset with an output that none has": (
        *("a.pt", SHAPES, (*PRESET, SIZE)),
        "parameterization = 'velocity': allowed are epsilon, denoised, as a.pt is of OpenAI's",
    ),
    "another output than the published": (
        "cifar10_uncond_50M_500K.pt",
        *(SHAPES, ("--config.model.parameterization=denoised",)),
        "parameterization = 'denoised': allowed are 'epsilon', as cifar10_uncond_50M_500K.pt says",
    ),
    "denoised images in other units": (
        *("a.pt", SHAPES, (SIZE, "--config.model.parameterization=denoised", EDM)),
        "config.model.sigma_data = 0.5: allowed are 1.0, as a.pt says",
    ),
    "levels that cannot be": (
        *("a.pt", shapes_of(TINY._replace(updown=False)), (SIZE, "--config.model.num_levels=-5")),
        "config.model.num_levels = -5: allowed are",
    ),
    "the order of another's attention": (
        *("a.pt", layer("all_modules.0", 3), (*PRESET, "--new_attention_order")),
        "--new_attention_order: a.pt is no checkpoint of OpenAI's",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake, tmp_path):
    name, shapes, typed, says = MISTAKES[mistake]
    save(tmp_path / name, arrays_of(shapes))
    assert says in line_of("--source", name, *typed, cwd=tmp_path)


def line_of(*arguments, cwd):
    """What is said of a source, in one line; nothing is written. (`start` prints the devices.)"""
    done = command("--mode", "convert", "--workdir", "run", *arguments, cwd=cwd)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert not (cwd / "run").exists()
    return done.stderr


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    content = save(tmp_path / "a.pt", arrays_of(SHAPES)).read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    assert "a.pt: damaged" in line_of("--source", "a.pt", *PRESET, cwd=tmp_path)
    assert "no whole .pt file of OpenAI's" in line_of("--source", "a.pt", cwd=tmp_path)
