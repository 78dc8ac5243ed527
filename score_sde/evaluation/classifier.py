"""A small classifier of a set's labels. Its features stand in where Inception's cannot be had.

A distance of them is no FID, and two are comparable only where the classifier is the same: its
digest says so. It is trained on the spot, the same way each time.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from score_sde.errors import DAMAGED
from score_sde.evaluation.network import FeatureFn
from score_sde.evaluation.rows import CHUNK_BYTES
from score_sde.evaluation.weights import digest
from score_sde.paths import whole
from score_sde.score import full_precision

WIDTHS = (32, 64, 64)  # of the convolutions; the last is the number of features
LARGEST = 32  # pixels of a side: larger images are reduced
STEPS, EPOCHS, BATCH = 400, 20, 128  # as many steps as that, or epochs where that is less
RATE = 3e-3
SCALED = 2048  # images over which the features' mean square becomes 1
RECIPE = {"widths": WIDTHS, "steps": STEPS, "epochs": EPOCHS, "batch": BATCH, "rate": RATE,
          "scaled": SCALED}  # fmt: skip
Images = Callable[[np.ndarray], np.ndarray]  # of rows (B,)


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
        weights: float32 arrays by their names.
        about: what it is of: set, classes, channels, `held_out_accuracy` and so on.
    """

    weights: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return digest(self.weights)

    def features(self) -> FeatureFn:
        """Images uint8 (B, H, W, C) of 0 to 255 -> features float32 (B, 64). Grey images of a
        classifier of colours are repeated; colours become grey by their mean.

        Raises:
            ValueError: from the function: images of another size than it was trained on.
        """
        graph, state = _made(self.about["channels"], self.about["num_classes"])
        names = [*_flat(state)]
        params = jax.tree.unflatten(
            jax.tree.structure(state), [jnp.asarray(self.weights[name]) for name in names]
        )
        sides = tuple(self.about["image_size"])

        def features(images: np.ndarray) -> jax.Array:
            if images.shape[1:3] != sides:
                raise ValueError(
                    f"images are {images.shape[1:3]}; allowed are {sides}, the classifier's"
                )
            return _features(graph, params, images)

        return features


class _Convolution(nnx.Module):
    """Of 3 x 3, as one matrix product of all windows: on the CPU its gradient is the faster."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.stride, start = stride, nnx.initializers.he_normal()
        self.linear = nnx.Linear(9 * inputs, outputs, kernel_init=start, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        (height, width), step = x.shape[1:3], self.stride
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            x[:, i : i + height : step, j : j + width : step] for i in range(3) for j in range(3)
        ]
        return self.linear(jnp.concatenate(shifted, axis=-1))


class _Network(nnx.Module):
    def __init__(self, channels: int, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.channels, layers = channels, []
        for number, width in enumerate(WIDTHS):
            layers.append(_Convolution(channels, width, 2 if number else 1, rngs=rngs))
            channels = width
        self.layers = nnx.List(layers)
        self.head = nnx.Linear(channels, num_classes, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 127.5 - 1.0
        if x.shape[-1] > self.channels:
            x = x.mean(-1, keepdims=True)
        size = (*(min(side, LARGEST) for side in x.shape[1:3]), self.channels)
        x = jax.image.resize(x, (len(x), *size), "linear")  # antialiased where it reduces
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x.mean((1, 2))


def train(
    images: Images,
    labels: np.ndarray,
    num_classes: int,
    done: Callable[[int], object] = lambda steps: None,
) -> dict[str, np.ndarray]:
    """Train a classifier: Adam, a cosine of the rate, the same order and start each time.

    Args:
        images: of rows (B,), uint8 (B, H, W, C) of 0 to 255.
        labels: integers (N,) from 0 on.
        num_classes: how many.
        done: called after each step with 1.

    Returns:
        the weights.
    """
    steps = num_steps(len(labels))
    channels = images(np.zeros(1, np.int64)).shape[-1]
    graph, params = _made(channels, num_classes)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            network = nnx.merge(graph, params)
            logits = network.head(network.features(x))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for rows in _batches(len(labels), steps):
        params, state = step(params, state, images(rows), labels[rows])
        done(1)
    _scale(params, graph, images, min(SCALED, len(labels)))
    return {name: np.asarray(leaf) for name, leaf in _flat(params).items()}


def _scale(params: Any, graph: nnx.GraphDef, images: Images, number: int) -> None:
    """Make the features' mean square 1 over the first images, and keep the logits: a kernel
    (x y / d + 1)^3 wants that. The features are a mean of relu(linear), and so scale as the last
    convolution does."""
    step = max(1, CHUNK_BYTES // images(np.arange(1)).nbytes)
    rows = (np.arange(begin, min(begin + step, number)) for begin in range(0, number, step))
    features = jnp.concatenate([_features(graph, params, images(part)) for part in rows])
    scale = jnp.sqrt(jnp.mean(jnp.square(features)))
    last = params["layers"][len(WIDTHS) - 1]["linear"]
    last["kernel"], last["bias"] = last["kernel"] / scale, last["bias"] / scale
    params["head"]["kernel"] = params["head"]["kernel"] * scale


def num_steps(n: int) -> int:
    """The steps of a training on n images."""
    return min(STEPS, max(1, EPOCHS * n // BATCH))


def accuracy(classifier: Classifier, images: Images, labels: np.ndarray) -> float:
    """The share of images whose largest logit is that of their class; arguments as of `train`."""
    of, right = classifier.features(), 0
    head = [classifier.weights[f"head/{part}"] for part in ("kernel", "bias")]
    for begin in range(0, len(labels), BATCH):
        rows = np.minimum(np.arange(begin, begin + BATCH), len(labels) - 1)
        found = np.argmax(np.asarray(of(images(rows))) @ head[0] + head[1], axis=1)
        right += int((found == labels[rows])[: len(labels) - begin].sum())
    return right / len(labels)


def write(path: Path, classifier: Classifier) -> None:
    """Write an .npz file of the weights and `about` (JSON)."""
    # mypy takes the weights for savez's own `allow_pickle`.
    with whole(path) as file:
        np.savez(file, about=json.dumps(classifier.about), **classifier.weights)  # type: ignore[arg-type]


def read(path: Path, about: Mapping[str, Any]) -> Classifier | None:
    """Read a file of `write`; None where there is none, it is damaged, or it says another `about`
    than these values."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = json.loads(str(arrays["about"]))
            weights = {name: arrays[name] for name in arrays.files if name != "about"}
    except DAMAGED:
        return None
    wanted = json.loads(json.dumps(dict(about)))
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in wanted.items()):
        return None
    return Classifier(weights, found)


def _made(channels: int, num_classes: int) -> tuple[nnx.GraphDef, Any]:
    graph, state = nnx.split(_Network(channels, num_classes, rngs=nnx.Rngs(0)))
    return graph, nnx.to_pure_dict(state)


def _flat(params: Any) -> dict[str, Any]:
    """The leaves by their paths, such as `head/kernel`, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@functools.partial(jax.jit, static_argnums=0)
def _features(graph: nnx.GraphDef, params: Any, images: jax.Array) -> jax.Array:
    with full_precision():
        found: jax.Array = nnx.merge(graph, params).features(images)
        return found


def _batches(n: int, steps: int) -> Iterator[np.ndarray]:
    """Rows (B,) of each step: epochs in random order, laid end to end."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(n) for _ in range(-(-steps * BATCH // n))])
    for number in range(steps):
        yield order[number * BATCH : (number + 1) * BATCH]
