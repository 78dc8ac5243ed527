"""Our networks with the weights of diffusers' `UNet2DModel` against that class itself.

Needs torch and diffusers: `make test-parity` runs it, `make test` leaves it out.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import ve_256, vp_cifar10
from score_sde import networks
from score_sde.convert import diffusers as reader
from score_sde.networks import UNet, UNetSpec
from tests.convert.originals import spec_of

torch = pytest.importorskip("torch", reason="make test-parity installs torch and diffusers")
UNet2DModel = pytest.importorskip("diffusers", reason="make test-parity").UNet2DModel

# Of the largest value. Measured: 2e-6 with positional features, 8e-6 with Fourier features, whose
# angles of up to 2 pi log(sigma) W = some 1500 radians have an error of 1e-4 radians in float32.
TOLERANCE = 1e-4

# google/ddpm-cifar10-32
DDPM = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "attention_head_dim": None,
}
# google/ncsnpp-church-256
NCSNPP = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": (
        *("SkipDownBlock2D",) * 4,
        "AttnSkipDownBlock2D",
        *("SkipDownBlock2D",) * 2,
    ),
    "up_block_types": (*("SkipUpBlock2D",) * 2, "AttnSkipUpBlock2D", *("SkipUpBlock2D",) * 4),
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": 1.41421356237,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "attention_head_dim": None,
}


def perturbed(settings: dict[str, Any]) -> Any:
    """A randomly initialised model in which no parameter is 0 or 1."""
    torch.manual_seed(0)
    model = UNet2DModel(**settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # A quarter of what keeps the variance of what passes through.
            fan = parameter[0].numel() if parameter.ndim > 1 else 25.0
            parameter += 0.25 * fan**-0.5 * torch.randn_like(parameter)
    return model


def theirs(model: Any, x: np.ndarray, time: np.ndarray, labels: Any = None) -> np.ndarray:
    with torch.no_grad():
        labels = None if labels is None else torch.from_numpy(labels)
        images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return model(images, torch.from_numpy(time), labels).sample.numpy().transpose(0, 2, 3, 1)


def converted(model: Any, spec: UNetSpec, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Our network and the parameters that were read from where the model saved itself."""
    model.save_pretrained(folder)
    read = reader.read(folder, spec).ema
    apply, expected = networks.abstract(partial(UNet, spec))
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    shapes = {path_of(path): leaf.shape for path, leaf in leaves}
    assert {path: array.shape for path, array in read.items()} == shapes
    return jax.jit(apply), jax.tree_util.tree_map_with_path(
        lambda path, leaf: read[path_of(path)], expected
    )


def path_of(path: Any) -> str:
    return "/".join(key.key for key in path)


def check(ours: np.ndarray, expected: np.ndarray) -> None:
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_the_network_of_ddpm_cifar10(tmp_path: Path):
    model = perturbed(DDPM)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_746_307
    spec = spec_of(vp_cifar10.get_config("ddpm_diffusers"))
    apply, params = converted(model, spec, tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    outputs = []
    for times in ([0.0, 999.0], [1.0, 37.5], [500.0, 500.0]):
        time = np.array(times, np.float32)
        outputs.append(theirs(model, x, time))
        check(apply(params, x, time), outputs[-1])
    # The times are heard: what the test compares is far more than its tolerance apart.
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01 * np.abs(outputs[0]).max()


def test_the_network_of_ncsnpp_256(tmp_path: Path):
    model = perturbed(NCSNPP)
    assert sum(parameter.numel() for parameter in model.parameters()) == 65_574_549
    apply, params = converted(model, spec_of(ve_256.get_config("church")), tmp_path)
    rng = np.random.default_rng(0)
    for sigma in (0.01, 0.5, 10.0, 380.0):
        x = rng.random((1, 256, 256, 3)) + sigma * rng.standard_normal((1, 256, 256, 3))
        x, told = x.astype(np.float32), np.full(1, sigma, np.float32)
        # What the class does itself: the logarithm, and the division by sigma.
        check(np.asarray(apply(params, x, np.log(told))) / sigma, theirs(model, x, told))


def test_several_sigmas_in_one_batch_of_a_small_ncsnpp(tmp_path: Path):
    settings = {**NCSNPP, "sample_size": 16, "layers_per_block": 1}
    settings |= {"block_out_channels": (32, 128), "center_input_sample": False}
    settings |= {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    }
    model = perturbed(settings)
    spec = replace(
        spec_of(ve_256.get_config("church")),
        image_size=16,
        width=32,
        multipliers=(1, 4),
        num_blocks=1,
        attention_resolutions=(8,),
        centered=True,
    )
    apply, params = converted(model, spec, tmp_path)
    sigma = np.array([0.01, 1.3, 50.0], np.float32)
    x = np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32)
    ours = np.asarray(apply(params, x, np.log(sigma))) / sigma.reshape(-1, 1, 1, 1)
    for one, expected in zip(ours, theirs(model, x, sigma), strict=True):
        check(one, expected)


def test_a_small_ddpm_with_classes(tmp_path: Path):
    settings = {**DDPM, "sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 64)}
    settings |= {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "num_class_embeds": 10,
    }
    model = perturbed(settings)
    spec = replace(
        spec_of(vp_cifar10.get_config("ddpm_diffusers")),
        image_size=8,
        width=32,
        multipliers=(1, 2),
        num_blocks=1,
        attention_resolutions=(8, 4),
        num_classes=10,
    )
    apply, params = converted(model, spec, tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    time, labels = np.array([3.0, 700.0], np.float32), np.array([9, 4])
    ours = apply(params, x, time, {"labels": labels.astype(np.int32)})
    check(ours, theirs(model, x, time, labels))
