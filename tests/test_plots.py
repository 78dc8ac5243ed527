"""Figures for notebooks: each is drawn, names its axes, and shows the numbers that it was given."""

import base64
import io
import json
import re
from xml.etree import ElementTree

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from score_sde import plots
from score_sde.likelihood import DataLikelihood, Likelihood
from score_sde.plots.base import MOST_POINTS
from score_sde.samplers.base import Samples

DRAW = np.random.default_rng(0)
POINTS = DRAW.standard_normal((200, 2)).astype(np.float32)
PIXELS = DRAW.integers(0, 17, (5, 8, 8, 1), dtype=np.uint8)
LINES = [{"step": step, "loss": 1.0 / step, "grad_norm": 2.0 / step} for step in (2, 4, 6)]
LEVELS = {
    "log_snr": [3.0, 0.0, -3.0],
    "loss": [0.1, 0.3, 0.9],
    "accuracy": [0.9, 0.8, 0.1],
    "standard_error": [0.01] * 3,
}
BITS = np.array([2.0, 3.0, 4.0, 5.0])
FOUND = DataLikelihood(BITS, BITS[:, None], BITS[:, None], np.ones(4, np.int32), None)


def normal(x, t=None):
    return -0.5 * np.sum(x**2, axis=1) - np.log(2 * np.pi)


FIGURES = {
    "scatter": lambda: plots.scatter(POINTS, 2 * POINTS, ("mass, g", "length, m"), normal),
    "corner": lambda: plots.corner(POINTS, 2 * POINTS, ("mass, g", "length, m")),
    "contours": lambda: plots.contours({"a": normal, "b": normal}, (-3, 3), ("mass, g", "y")),
    "score": lambda: plots.score(lambda x, t: -x, (-3, 3), (0.1, 1.0), normal),
    "losses": lambda: plots.losses(LINES),
    "loss_by_level": lambda: plots.loss_by_level(LEVELS),
    "accuracy_by_level": lambda: plots.accuracy_by_level(LEVELS),
    "quality": lambda: plots.quality({"DDIM": [(5, 0.2), (10, 0.1)], "Heun": [(9, 0.1, 0.01)]}),
    "likelihoods": lambda: plots.likelihoods({"test": FOUND, "more": FOUND}),
}
NAMES = {
    "scatter": {"mass, g", "length, m"},
    "corner": {"mass, g", "length, m"},
    "contours": {"mass, g", "y", "density"},
    "score": {"x", "y", "log density less its maximum, nats"},
    "losses": {"training step", "loss", "norm of the gradient"},
    "loss_by_level": {"log SNR (noise on the left, data on the right)", "loss"},
    "accuracy_by_level": {"log SNR (noise on the left, data on the right)", "accuracy"},
    "quality": {"NFE (evaluations of the network)", "distance to the data"},
    "likelihoods": {"bits/dim", "items"},
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_names_its_axes_and_shows_itself(name):
    figure = FIGURES[name]()
    assert isinstance(figure, matplotlib.figure.Figure)
    labels = {text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())}
    assert labels - {""} == NAMES[name]
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[0, 0] == 255).all()  # white in every theme
    assert pixels.std() > 5  # not empty


def image_of(figure):
    [axes] = figure.axes
    [image] = axes.images
    return np.asarray(image.get_array())


def test_images_are_a_grid_of_their_levels():
    sheet = image_of(plots.images(PIXELS, 17, columns=3))
    assert sheet.shape == (8 * (2 * 9 - 1), 8 * (3 * 9 - 1), 3)
    # The second image, each pixel eight times as large, and 16 of 17 levels white.
    second = sheet[: 8 * 8 : 8, 9 * 8 : 17 * 8 : 8, 0]
    np.testing.assert_array_equal(second, np.rint(PIXELS[1, ..., 0] * (255 / 16)))


def test_images_of_floats_are_scaled_and_samples_are_taken():
    x = np.zeros((1, 8, 8, 1))
    x[0, 0, 0], x[0, 0, 1] = -1.0, 3.0
    sheet = image_of(plots.images(Samples(x, np.ones(1))))
    assert [sheet[0, 8 * column, 0] for column in range(3)] == [0, 255, 64]


def test_a_title_stands_above_each_image():
    figure = plots.images(PIXELS, 17, titles=["a", "b", "c", "d", "e"])
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c", "d", "e"]
    sheet = image_of(figure)
    for text in axes.texts:
        across, down = text.get_position()
        assert (sheet[round(down), round(across)] == 255).all()
    with pytest.raises(ValueError, match="2 titles: allowed are 5"):
        plots.images(PIXELS, 17, titles=["a", "b"])


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: plots.images(POINTS), r"images are \(200, 2\): allowed are \(n, H, W, C\)"),
        (lambda: plots.scatter(POINTS[:, :1]), r"drawn: \(200, 1\): allowed are points \(n, 2\)"),
        (lambda: plots.corner(POINTS[0]), r"allowed are points \(n, D\)"),
        (lambda: plots.losses([]), "no metrics"),
        (lambda: plots.animation(POINTS), r"allowed are \(frames, n, 2\)"),
        (lambda: plots.animation(POINTS[None]), "frames of at least 2"),
        (lambda: plots.animation({"a": np.zeros((2, 3, 2)), "b": np.zeros((2, 3, 3))}), "allowed"),
        (lambda: plots.animation(np.zeros((2, 3, 3))), r"allowed are points \(n, 2\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, text):
    with pytest.raises(ValueError, match=text):
        draw()


def test_losses_are_read_from_a_workdir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    for axes, name in zip(plots.losses(tmp_path).axes, ("loss", "grad_norm"), strict=True):
        x, y = axes.lines[0].get_data()
        assert list(x) == [2, 4, 6] and list(y) == [line[name] for line in LINES]


def test_the_learning_rate_has_a_panel_of_its_own():
    lines = [{**line, "learning_rate": 0.1 / line["step"]} for line in LINES]
    [axes] = plots.losses(lines, ["learning_rate"]).axes
    assert axes.get_ylabel() == "learning rate" and axes.get_yscale() == "linear"
    assert list(axes.lines[0].get_ydata()) == [line["learning_rate"] for line in lines]


def test_likelihoods_say_mean_and_standard_error():
    def said(result):
        [legend] = plots.likelihoods(result).legends
        return legend.get_texts()[0].get_text()

    # The mean of 2, 3, 4, 5 is 3.5; their variance 5/3, over 4 items.
    assert said(FOUND) == f"3.5 ± {np.sqrt(5 / 12):.2g} bits/dim"
    vectors = FOUND._replace(bits_per_dim=None, log_weight=np.stack([BITS, BITS + 1], axis=1))
    assert said({"a": vectors}) == f"a: 4 ± {np.sqrt(5 / 12):.2g} nats"
    points = Likelihood(BITS, BITS, BITS, BITS[:, None])
    assert said(points) == f"3.5 ± {np.sqrt(5 / 12):.2g} nats"


def frames_of(film):
    addresses = re.search('data-frames="([^"]*)"', film.html)[1].split(" ")
    for address in addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as frame:
            yield frame.convert("RGB")


@pytest.mark.thorough
def test_a_film_of_points_side_by_side_fits_its_limit():
    path = np.stack([scale * POINTS for scale in (3.0, 2.0, 1.0)])
    film = plots.animation({"reverse SDE": path, "probability flow": path[::2]})
    frames = list(frames_of(film))
    assert film.frames == len(frames) == 3 and f"{film}" == "Film(frames=3)"
    assert len(film.html) < 1e6
    assert "://" not in film.html and "<script" not in film.html  # nothing is loaded
    assert film._repr_html_() == film.html
    # One size and different contents: something moves.
    assert len({frame.size for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) == 3
    limit = 0.6 * len(film.html) / 1e6
    smaller = plots.animation({"reverse SDE": path, "probability flow": path}, limit=limit)
    assert len(smaller.html) <= 1e6 * limit
    with pytest.raises(ValueError, match=r"limit = 0\.001: 3 frames of 50 dots an inch are"):
        plots.animation(path, limit=0.001)


def test_a_film_keeps_the_ends_of_a_long_trajectory():
    states = np.arange(120, dtype=np.uint8)[:, None, None, None, None]
    path = np.broadcast_to(states, (120, 1, 2, 2, 1))
    film = plots.animation(path, levels=120)
    frames = [np.asarray(frame) for frame in frames_of(film)]
    assert len(frames) == 50
    middles = [frame[frame.shape[0] // 2, frame.shape[1] // 2, 0] for frame in frames]
    assert middles[0] == 0 and middles[-1] == 255
    assert middles == sorted(middles)


def test_many_points_are_drawn_as_far_as_they_can_be_told_apart():
    many = np.zeros((MOST_POINTS + 10, 2))
    many[:, 0] = np.arange(len(many))
    [axes] = plots.scatter(many).axes
    assert len(axes.collections[0].get_offsets()) == MOST_POINTS


def test_a_figure_becomes_a_part_of_a_page_in_its_colours():
    figure = plots.scatter({"a<b": POINTS, "c": np.tile(POINTS, (2, 1))}, density=normal)
    found = plots.svg(figure, "mine", 'said "so" & <so>')
    assert found.startswith('<svg role="img" aria-label="said &quot;so&quot; &amp; &lt;so&gt;"')
    parsed = ElementTree.fromstring(found)
    assert found.count("<image") == 1  # of 400 points; those of 200 are marks
    assert found.count("<use") > 200
    for absent in ("#000000", "#ffffff", "://", "<style", "DejaVu", "metadata"):
        assert absent not in found
    assert "currentColor" in found and "var(--curve)" in found
    texts = {each.text for each in parsed.iter("text")}
    assert {"a<b", "x", "y"} <= texts
    # Names keep the ids of two figures apart.
    other = plots.svg(figure, "other", "the same")
    ids = [
        {each.get("id") for each in ElementTree.fromstring(each).iter()} for each in (found, other)
    ]
    assert not (ids[0] & ids[1]) - {None}
