"""Objects that show themselves: short texts, and tables with thumbnails for notebooks."""

import base64
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde.batches import Drawn
from score_sde.latents import Interpolation
from score_sde.likelihood import DataLikelihood, Likelihood
from score_sde.samplers.base import Samples
from tests.cases import thorough

PIXELS = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1) % 17
NFE = np.array([14, 16], np.int32)


def pictures_of(html):
    for data in re.findall('src="data:image/png;base64,([^"]*)"', html):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            yield np.asarray(image)


TEXTS = [
    (
        Samples(jnp.zeros((1000, 2)), jnp.full(1000, 15)),
        "Samples(x: float32 (1000, 2), NFE: 15, trajectory: None)",
    ),
    (
        Drawn(PIXELS, NFE, {"labels": np.zeros(2, np.int32)}, None, 17),
        "Drawn(x: uint8 (2, 8, 8, 1), NFE: 15 (14 to 16), labels: int32 (2,), trajectory: None)",
    ),
    (
        Interpolation(np.stack([PIXELS] * 3, 1), PIXELS, NFE, np.array([[0.1, 0.3]]), 17),
        "Interpolation(pairs: 2, between: 1, x: uint8 (2, 3, 8, 8, 1), NFE: 15 (14 to 16), "
        "RMS change there and back: 0.2 (0.1 to 0.3))",
    ),
    # The mean of 2 and 4 is 3, and 1 the standard error: their deviation sqrt(2), over sqrt(2).
    (
        DataLikelihood(np.array([2.0, 4.0]), np.zeros((2, 1)), np.zeros((2, 1)), NFE, None),
        "DataLikelihood(bits/dim, at most: 3 ± 1, items: 2, NFE: 15 (14 to 16))",
    ),
    (
        DataLikelihood(None, np.zeros((1, 1)), np.full((1, 1), -1.5), NFE[:1], None),
        "DataLikelihood(log density, nats: -1.5, items: 1, NFE: 14)",
    ),
    (
        Likelihood(jnp.array([-1.0, -1.0]), jnp.zeros((2, 2)), jnp.array(NFE), jnp.zeros((2, 1))),
        "Likelihood(log density, nats: -1 ± 0, items: 2, NFE: 15 (14 to 16))",
    ),
]


@pytest.mark.parametrize(("shown", "text"), TEXTS, ids=lambda each: type(each).__name__)
def test_a_result_shows_forms_and_means(shown, text):
    assert repr(shown) == f"{shown}" == text
    html = shown._repr_html_()
    assert type(shown).__name__ in html and "http" not in re.sub('base64,[^"]*', "", html)
    assert len(list(pictures_of(html))) == (shown.__class__ in (Drawn, Interpolation))


def test_thumbnails_are_of_the_levels_that_a_run_has_and_a_row_for_each_pair():
    drawn, between = (shown for shown, _ in TEXTS[1:3])
    [sheet] = pictures_of(drawn._repr_html_())
    assert sheet.shape[:2] == (8 * 8, 8 * 17) and sheet.max() == 255
    [sheet] = pictures_of(between._repr_html_())
    assert sheet.shape[:2] == (8 * 17, 8 * 26)
    # Large ones are shown by some of their pixels.
    large = Samples(np.zeros((1, 300, 300, 3)), np.ones(1))
    [sheet] = pictures_of(large._repr_html_())
    assert sheet.shape == (75, 75, 3)


def test_results_that_jax_traces_or_has_deleted_show_their_forms():
    seen = []

    @jax.jit
    def f(x):
        seen.append(repr(Samples(x, x[:, 0])))
        return x

    x = f(jnp.ones((3, 2)))
    form = "Samples(x: float32 (3, 2), NFE: {}, trajectory: None)"
    assert seen == [form.format("float32 (3,)")]
    nfe = jnp.ones(3)
    nfe.delete()
    assert repr(Samples(x, nfe)) == form.format("float32 (3,)")


@pytest.mark.parametrize("kind", ["digits", *thorough("classes")])
def test_a_run_shows_its_facts_and_no_path(kind, tiny_run, tmp_path):
    run = score_sde.load(tiny_run(kind, tmp_path))
    text, html = repr(run), run._repr_html_()
    size = sum(leaf.size for leaf in jax.tree.leaves(run.score.params))
    assert text.startswith("Run(data: digits, images (8, 8, 1) of 17 levels, process: VPSDE(")
    given = ", given labels" if kind == "classes" else ""
    assert f"network: tests.tiny:Tiny, {size} parameters{given}, training steps: 4" in text
    assert "sampler: ExponentialMultistep(" in text and "loss: " in text and len(text) < 500
    assert "<table>" in html and f"{size} parameters" in html
    for shown in (text, html, repr(run.score), repr(run.latents)):
        assert str(tmp_path) not in shown and len(shown) < 2000
    drawn = run.sample(jax.random.key(0), 2, trajectory=True)
    assert drawn.levels == 17 and drawn.frames.shape[1:] == (2, 8, 8, 1)
    assert drawn.frames.shape[0] == drawn.trajectory.shape[1]
