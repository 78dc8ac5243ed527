"""OpenAI's networks, built here in PyTorch from their papers, against what the command line makes
of their state dicts: outputs, scores and DDIM's samples.

The modules have the names of the published files (Nichol, Dhariwal 2021, arXiv:2102.09672;
Dhariwal, Nichol 2021, arXiv:2105.05233). All sizes are small, no weight is 0 or 1.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde
from score_sde import build
from score_sde.config import changed
from score_sde.discrete import discretization
from tests.commands import succeed

torch = pytest.importorskip("torch", reason="make test-parity installs torch")
nn, functional = torch.nn, torch.nn.functional

# Of the largest value. Some hundred layers in float32 round to 1e-6; the levels' places in the
# chain are computed in float32, too, and are off by 1e-4 of a level at most.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Kind:
    """A network and its process, by OpenAI's flags."""

    image_size: int
    features: int
    multipliers: tuple[float, ...]
    blocks: int
    attended: tuple[int, ...]  # by their sizes
    heads: int = 0
    head_channels: int = 0
    new_order: bool = False
    scale_shift: bool = True
    updown: bool = False
    classes: int = 0
    learn_sigma: bool = True
    cosine: bool = False
    steps: int = 1000
    rescale: bool = False

    def heads_of(self, width: int) -> int:
        return self.heads or width // self.head_channels


class Residual(nn.Module):
    def __init__(self, kind: Kind, n: int, m: int, change: str = "none") -> None:
        super().__init__()
        self.kind, self.change = kind, change
        wide = 2 * m if kind.scale_shift else m
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, n), nn.SiLU(), nn.Conv2d(n, m, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * kind.features, wide))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, m), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(m, m, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(n, m, 1) if n != m else nn.Identity()

    def resized(self, x: Any) -> Any:
        if self.change == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return functional.avg_pool2d(x, 2) if self.change == "down" else x

    def forward(self, x: Any, embedding: Any) -> Any:
        norm, act, convolve = self.in_layers
        h = convolve(self.resized(act(norm(x))))
        told = self.emb_layers(embedding)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.kind.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (scale + 1.0) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return h + self.skip_connection(self.resized(x))


class Attention(nn.Module):
    def __init__(self, kind: Kind, n: int) -> None:
        super().__init__()
        self.heads, self.new_order = kind.heads_of(n), kind.new_order
        self.norm = nn.GroupNorm(32, n)
        self.qkv, self.proj_out = nn.Conv1d(n, 3 * n, 1), nn.Conv1d(n, n, 1)

    def forward(self, x: Any, _embedding: Any) -> Any:
        pixels = x.flatten(2)
        fused = self.qkv(self.norm(pixels))
        if self.new_order:
            parts = fused.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            parts = fused.unflatten(1, (self.heads, 3, -1)).unbind(2)
        q, k, v = (part.transpose(2, 3) for part in parts)  # (B, heads, pixels, channels)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        return x + self.proj_out(mixed).unflatten(2, x.shape[2:])


class Down(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(n, n, 3, stride=2, padding=1)

    def forward(self, x: Any, _embedding: Any) -> Any:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Any, _embedding: Any) -> Any:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stem(nn.Conv2d):
    def forward(self, x: Any, _embedding: Any) -> Any:
        return super().forward(x)


class Theirs(nn.Module):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        wide, widths = 4 * kind.features, [int(m * kind.features) for m in kind.multipliers]
        self.time_embed = nn.Sequential(
            nn.Linear(kind.features, wide), nn.SiLU(), nn.Linear(wide, wide)
        )
        if kind.classes:
            self.label_emb = nn.Embedding(kind.classes, wide)

        def block(n: int, m: int, level: int) -> list[Any]:
            attends = kind.image_size >> level in kind.attended
            return [Residual(kind, n, m), *([Attention(kind, m)] if attends else [])]

        n, kept = widths[0], [widths[0]]
        inputs = [[Stem(3, n, 3, padding=1)]]
        for level, m in enumerate(widths):
            for _ in range(kind.blocks):
                inputs.append(block(n, m, level))
                n = m
                kept.append(n)
            if level < len(widths) - 1:
                inputs.append([Residual(kind, n, n, "down") if kind.updown else Down(n)])
                kept.append(n)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, inputs))
        middle = [Residual(kind, n, n), Attention(kind, n), Residual(kind, n, n)]
        self.middle_block = nn.ModuleList(middle)
        outputs = []
        for level in reversed(range(len(widths))):
            for index in range(kind.blocks + 1):
                outputs.append(block(n + kept.pop(), widths[level], level))
                n = widths[level]
                if level and index == kind.blocks:
                    outputs[-1].append(Residual(kind, n, n, "up") if kind.updown else Up(n))
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, outputs))
        channels = 6 if kind.learn_sigma else 3
        self.out = nn.Sequential(
            nn.GroupNorm(32, n), nn.SiLU(), nn.Conv2d(n, channels, 3, padding=1)
        )

    def forward(self, x: Any, level: Any, labels: Any = None) -> Any:
        kind = self.kind
        time = level.float() * (1000.0 / kind.steps if kind.rescale else 1.0)
        half = kind.features // 2
        angles = time[:, None] * 10000.0 ** (-torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if kind.classes:
            embedding = embedding + self.label_emb(labels)
        kept = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, embedding)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, embedding)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:
                x = layer(x, embedding)
        return self.out(x)


def perturbed(kind: Kind) -> Any:
    torch.manual_seed(0)
    model = Theirs(kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Half of what keeps the variance of what passes through.
            fan = parameter[0].numel() if parameter.ndim > 1 else 25.0
            parameter += 0.5 * fan**-0.5 * torch.randn_like(parameter)
    return model


def alphas2(kind: Kind) -> np.ndarray:
    """The products of 1 - beta, float64 (N,)."""
    number = kind.steps
    if not kind.cosine:
        return np.cumprod(1.0 - np.linspace(0.1, 20.0, number) / number)
    f = [math.cos((k / number + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(number + 1)]
    betas = [min(1.0 - f[k + 1] / f[k], 0.999) for k in range(number)]
    return np.cumprod(1.0 - np.asarray(betas))


def theirs(model: Any, x: np.ndarray, level: int, labels: Any) -> np.ndarray:
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        output = model(images.float(), torch.full((len(x),), level), labels)
    return output.numpy().transpose(0, 2, 3, 1)


def ddim(model: Any, x: np.ndarray, count: int, labels: Any) -> np.ndarray:
    """Song, Meng, Ermon 2021, eq. 12 without noise, over every (N // count)th level."""
    alpha2, stride = alphas2(model.kind), model.kind.steps // count
    for level in reversed(range(0, model.kind.steps, stride)):
        epsilon = theirs(model, x, level, labels)[..., :3].astype(np.float64)
        x0 = (x - math.sqrt(1.0 - alpha2[level]) * epsilon) / math.sqrt(alpha2[level])
        after = alpha2[level - stride] if level else 1.0
        x = math.sqrt(after) * x0 + math.sqrt(1.0 - after) * epsilon
    return x


# The file's name, the network, and the flags of --mode convert. The first has a published name, and
# needs none.
KINDS: dict[str, tuple[str, Kind, tuple[str, ...]]] = {
    "improved-diffusion of CIFAR-10": (
        "cifar10_uncond_50M_500K.pt",
        Kind(
            *(32, 32, (1, 2, 2, 2), 1, (16, 8)),
            heads=4,
            cosine=True,
            steps=4000,
            rescale=True,
        ),
        (),
    ),
    "guided-diffusion with classes": (
        "mine.pt",
        Kind(
            *(16, 32, (1, 2), 2, (8,)),
            head_channels=16,
            new_order=True,
            updown=True,
            classes=5,
        ),
        (
            "--config.data.image_size=16",
            "--config.model.head_width=16",
            "--new_attention_order",
        ),
    ),
    "guided-diffusion with half a level, of before 2020": (
        "old.pt",
        Kind(
            *(16, 64, (0.5, 1, 1), 1, (8, 4)),
            heads=2,
            scale_shift=False,
            updown=True,
            learn_sigma=False,
            cosine=True,
        ),
        (
            "--config.data.image_size=16",
            "--config.model.num_heads=2",
            "--config.sde.name=cosine",
        ),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_outputs_scores_and_samples(name: str, tmp_path: Path):
    file, kind, flags = KINDS[name]
    model = perturbed(kind)
    new = file != "old.pt"
    torch.save(model.state_dict(), tmp_path / file, _use_new_zipfile_serialization=new)
    # No weights of a trained network: they predict no noise.
    command = ("--mode", "convert", "--source", file, "--workdir", "run", "--force")
    succeed(*command, *flags, cwd=tmp_path)
    run = score_sde.load(tmp_path / "run")
    count = sum(leaf.size for leaf in jax.tree.leaves(run.score.params))
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert run.config.model.learned_variance is kind.learn_sigma

    classes = np.asarray([4, 1]) if kind.classes else None
    labels = None if classes is None else torch.from_numpy(classes)
    score = run.score if classes is None else run.score.given({"labels": jnp.asarray(classes)})
    x = np.random.default_rng(0).standard_normal((2, *run.info.shape)).astype(np.float32)
    alpha2 = alphas2(kind)
    last = kind.steps - 1
    levels = [0, 1, *(round(share * last) for share in np.linspace(0.02, 1.0, 8))]
    snr = discretization(run.sde).chain(kind.steps).log_snr()
    np.testing.assert_allclose(snr, np.log(alpha2 / (1.0 - alpha2)), rtol=0, atol=2e-3)

    @jax.jit
    def ours(t: Any) -> Any:
        return score(jnp.asarray(x), t), score.output(jnp.asarray(x), score.noise(t))

    outputs = []
    for level in levels:
        t = run.sde.inverse_log_snr(jnp.full(2, snr[level]))
        found, output = map(np.asarray, ours(t))
        outputs.append(theirs(model, x, level, labels))
        check(output, outputs[-1])
        check(-math.sqrt(1.0 - alpha2[level]) * found, outputs[-1][..., :3])
    # The levels are heard: what is compared is far more than the tolerance apart.
    assert np.abs(outputs[0] - outputs[-1]).max() > 0.01 * np.abs(outputs[0]).max()
    if labels is not None:
        other = theirs(model, x, 0, 4 - labels)
        assert np.abs(outputs[0] - other).max() > 0.01 * np.abs(other).max()

    settings = {"sampling.method": "ddim", "sampling.grid": "leading", "sampling.num_steps": 5}
    sampler = build.sampler(changed(run.config, settings))
    samples = sampler.sample(jax.random.key(0), run.sde, score, jnp.asarray(x)).x
    expected = ddim(model, x.astype(np.float64), 5, labels)
    # White and black are 2 apart. The network predicts no noise, so the samples leave their range.
    assert 0.1 < np.abs(expected).mean() < 50.0
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-3)


def check(ours: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
