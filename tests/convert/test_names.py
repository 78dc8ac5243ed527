"""Which array of the original each of ours is."""

from dataclasses import replace
from functools import partial

import jax
import pytest

from score_sde.convert.original import FLAX_CLASSES, arrays
from score_sde.networks import UNet, abstract
from tests.cases import only
from tests.networks.test_family import architecture


@pytest.mark.parametrize("seed", only((0, 1, 2, 3, 4, 7), range(16)))
def test_every_array_of_a_drawn_architecture_has_one_place(seed):
    """Unconditional ones too, whose PyTorch arrays without a counterpart have no path."""
    # The original has neither of the two, nor ADM's blocks.
    spec = replace(architecture(seed), num_classes=0, input_frequencies=())
    spec = replace(spec, block="biggan") if spec.block == "adm" else spec
    _, params = abstract(partial(UNet, spec))
    ours = {
        "/".join(step.key for step in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    known = list(arrays(spec))
    paths = [array.path for array in known if array.path]
    assert sorted(paths) == sorted(ours)
    assert len({array.torch for array in known}) == len({array.flax for array in known})
    assert len({array.torch for array in known}) == len(known)
    unknown = [array for array in known if not array.path]
    if spec.conditional:
        assert not unknown
    else:
        assert all("Dense_0" in array.torch or array.layer == "fourier" for array in unknown)
    kernels = {"conv": 4, "dense": 2, "nin": 2, "norm": 1, "fourier": 1}
    for array in known:
        if array.path and not array.path.endswith("/bias"):
            assert ours[array.path].ndim == kernels[array.layer], array


def test_flax_counts_the_pyramids_own_resamplers():
    """With DDPM blocks, convolutions between the levels and skip pyramids over three levels, theirs
    take numbers in between: going down after the level's, going up before it."""
    spec = replace(
        architecture(0),
        multipliers=(1, 1, 1),
        image_size=8,
        attention_resolutions=(),
        block="ddpm",
        resample_with_conv=True,
        fir=False,
        progressive_input="input_skip",
        progressive_output="output_skip",
    )
    places = {array.path: array.flax[0] for array in arrays(spec)}
    assert places["encoder/level0_down/conv/kernel"] == "Downsample_0"
    assert places["encoder/level1_down/conv/kernel"] == "Downsample_2"
    assert places["decoder/level2_up/conv/kernel"] == "Upsample_0"
    assert places["decoder/level1_up/conv/kernel"] == "Upsample_2"
    assert {"Downsample", "Upsample"} <= set(FLAX_CLASSES.values())
