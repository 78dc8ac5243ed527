"""Ours and diffusers' U-Net in PyTorch side by side: images/s of a forward pass and a train step.

    make test-parity                                  makes the environment, with torch in it
    .venv-parity/bin/python benchmarks/pytorch.py     all networks, in some ten minutes
    .venv-parity/bin/python benchmarks/pytorch.py --network digits --profile

Both are measured in this process, in turn, on all its cores, in float32. A train step is that of a
run: noise, dropout, loss, gradient, clipping, Adam and the averages. Ours is the compiled step of
`--mode train`; PyTorch runs eagerly, with its fused Adam and fused averages, in the faster of its
two memory formats (`--format`). The table has medians over the rounds, and their ratio; a first
round, in which ours compiles, does not count.

ddpmpp   CIFAR-10's DDPM++, 61.8 M parameters, and the UNet2DModel that is nearest to it: resampling
         in its residual blocks; 1 % larger, as its decoder has attention after every block
ddpm     the network of google/ddpm-cifar10-32, 35.7 M parameters, exactly the same on both sides
digits   that of the demo, 0.7 M parameters, and the nearest UNet2DModel

`--profile` prints, too, where the time of our train step goes: the share of each kind of operation
in the time that all cores spend computing.
"""

import argparse
import os
import platform
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import jax
import numpy as np
import torch
from diffusers import UNet2DModel
from ml_collections import ConfigDict

from configs import vp_cifar10, vp_digits
from score_sde import build, networks, objectives
from score_sde.modes import start
from score_sde.training.mesh import along_data, data_mesh, replicated
from score_sde.training.state import create
from score_sde.training.step import make_train_step


class Pair(NamedTuple):
    """A network on both sides."""

    config: ConfigDict
    theirs: dict[str, Any]  # arguments of UNet2DModel
    batch: int
    steps: int  # that are timed together


def blocks(kind: str, attends: tuple[bool, ...]) -> dict[str, Any]:
    """Block types of a UNet2DModel: "resnet" resamples in residual blocks, "conv" between them."""
    down, up = {
        "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
        "conv": ("DownBlock2D", "UpBlock2D"),
    }[kind]
    return {
        "down_block_types": tuple("AttnDownBlock2D" if yes else down for yes in attends),
        "up_block_types": tuple("AttnUpBlock2D" if yes else up for yes in reversed(attends)),
        "downsample_type": kind,
        "upsample_type": kind,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    }


CIFAR10 = {"sample_size": 32, "block_out_channels": (128, 256, 256, 256), "dropout": 0.1}
SECOND = (False, True, False, False)
PAIRS = {
    "digits": lambda: Pair(
        vp_digits.get_config(),
        {
            **blocks("resnet", (False, True)),
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "dropout": 0.05,
        },
        batch=64,
        steps=10,
    ),
    "ddpm": lambda: Pair(
        vp_cifar10.get_config("ddpm_diffusers"),
        {**blocks("conv", SECOND), **CIFAR10, "layers_per_block": 2},
        batch=16,
        steps=1,
    ),
    "ddpmpp": lambda: Pair(
        vp_cifar10.get_config("ddpmpp"),
        {**blocks("resnet", SECOND), **CIFAR10, "layers_per_block": 4},
        batch=16,
        steps=1,
    ),
}


def ours(pair: Pair) -> tuple[Callable[[], None], Callable[[], None], int, Callable[[], str]]:
    """(forward, train step, number of parameters, profile of a train step).

    The calls wait for their results.
    """
    mesh = data_mesh()
    info = build.dataset(pair.config)
    apply, params = networks.init(build.network(pair.config, info), jax.random.key(0))
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    optimizer = build.optimizer(pair.config)
    rate = pair.config.training.ema_rate
    step = make_train_step(objectives.loss(pair.config, apply, info), optimizer, rate, mesh)
    shape = (pair.batch, *info.shape)
    rng = np.random.default_rng(0)
    labels = np.zeros(pair.batch, np.int32)
    batch = {"x": rng.integers(0, 17, shape, np.uint8), "condition": {"labels": labels}}
    batch = jax.device_put(batch, along_data(mesh))
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    state = create(params, optimizer, mesh)
    weights = jax.device_put(params, replicated(mesh))
    x = jax.device_put(rng.standard_normal(shape, np.float32), along_data(mesh))
    time_ = jax.device_put(np.full(pair.batch, 0.5, np.float32), along_data(mesh))
    network = jax.jit(apply)

    def forward() -> None:
        jax.block_until_ready(network(weights, x, time_))

    def train() -> None:
        nonlocal state
        state, _ = step(state, batch, key)
        jax.block_until_ready(state)

    def profile() -> str:
        return profile_of(train, step.lower(state, batch, key).compile().as_text())

    return forward, train, number, profile


def pytorch(pair: Pair, memory_format: torch.memory_format) -> tuple[Any, Any, int]:
    """As `ours`, without the profile."""
    torch.manual_seed(0)
    model = UNet2DModel(**pair.theirs).to(memory_format=memory_format)
    params = list(model.parameters())
    averages = [parameter.detach().clone() for parameter in params]
    optimizer = torch.optim.Adam(params, lr=2e-4, fused=True)
    height, width, channels = build.dataset(pair.config).shape
    images = torch.randn(pair.batch, channels, height, width).to(memory_format=memory_format)
    middle = torch.full((pair.batch,), 500.0)

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(images, middle)

    def train() -> None:
        model.train()
        times, noise = torch.rand(pair.batch), torch.randn_like(images)
        angle = 0.5 * torch.pi * times.reshape(-1, 1, 1, 1)
        noisy = angle.cos() * images + angle.sin() * noise
        loss = torch.nn.functional.mse_loss(model(noisy, 999.0 * times).sample, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1e-4)

    return forward, train, sum(parameter.numel() for parameter in params)


def seconds_of(call: Callable[[], None], steps: int) -> float:
    """Seconds of one call, over `steps` in a row."""
    began = time.perf_counter()
    for _ in range(steps):
        call()
    return (time.perf_counter() - began) / steps


def compare(
    name: str, pair: Pair, rounds: int, memory_format: torch.memory_format
) -> Callable[[], str]:
    """Print the rows of a network, and return what profiles our train step."""
    *mine, my_number, profile = ours(pair)
    *their, their_number = pytorch(pair, memory_format)
    for what, my_call, their_call in zip(("forward", "train step"), mine, their, strict=True):
        my_call(), their_call()  # compiles, allocates
        pairs = [
            (seconds_of(my_call, pair.steps), seconds_of(their_call, pair.steps))
            for _ in range(rounds)
        ]
        my_speed, their_speed = (
            pair.batch / statistics.median(column) for column in zip(*pairs, strict=True)
        )
        ratios = [theirs / my for my, theirs in pairs]
        print(
            f"| {name}, {what}, batch {pair.batch} | {my_number / 1e6:.2f} M / "
            f"{their_number / 1e6:.2f} M | {my_speed:.2f} | {their_speed:.2f} "
            f"| {my_speed / their_speed:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )
    return profile


# --- Where the time goes --------------------------------------------------------------------------

INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(")
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
CALLED = re.compile(r"calls=%?([\w.-]+)")


def profile_of(train: Callable[[], None], text: str) -> str:
    """The shares of the kinds of operations in a train step.

    Args:
        train: runs one.
        text: the compiled program, which says what the trace's names are.
    """
    kinds = kinds_of(text)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            train()
        [file] = Path(folder).rglob("*.xplane.pb")
        seconds: dict[str, float] = defaultdict(float)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in kinds:
                        seconds[kinds[event.name]] += 1e-9 * event.duration_ns
    whole = sum(seconds.values())
    rows = sorted(seconds.items(), key=lambda item: -item[1])
    lines = [f"    {100 * share / whole:5.1f} %  {kind}" for kind, share in rows]
    return "\n".join([f"{whole:.2f} s of computing, over all devices", *lines])


def kinds_of(text: str) -> dict[str, str]:
    """What each instruction of a compiled program does, by its name.

    A fusion is what the heaviest of its parts is. Instructions that only call others are left out:
    what they call is there.
    """
    parts: dict[str, list[tuple[str, str]]] = defaultdict(list)  # of each computation
    instructions = []
    computation = ""
    for line in text.splitlines():
        if opened := COMPUTATION.match(line):
            computation = opened[1]
        elif found := INSTRUCTION.match(line):
            name, opcode = found.groups()
            parts[computation].append((opcode, line))
            called = CALLED.search(line)
            instructions.append((name, opcode, line, called[1] if called else ""))
    return {
        name: kind_of([(opcode, line), *parts[called]])
        for name, opcode, line, called in instructions
        if opcode not in ("call", "while", "conditional")
    }


def kind_of(parts: list[tuple[str, str]]) -> str:
    """The kind of an instruction with these (opcode, text)."""
    opcodes = {opcode for opcode, _ in parts}
    for opcode, line in parts:
        if opcode == "convolution":
            if "transpose(" not in line:
                return "convolutions, forward"
            # Kernels' gradients are laid out (in, k, k, out), images' (B, H, W, C) as images are.
            size = line.split("[", 1)[1].split(",")[1]
            return f"convolutions, gradients of the {'kernels' if size in '13' else 'images'}"
    if "dot" in opcodes:
        return "matrix products: attention, Dense, means of groups"
    if "all-reduce" in opcodes:
        return "sums over the devices, with waiting for the slower one"
    if opcodes & {"reduce", "reduce-window"}:
        return "sums and what is fused with them"
    if opcodes <= {"fusion", "parameter", "transpose", "copy", "bitcast", "reshape", "broadcast"}:
        return "copies and transposes"
    return "elementwise, dropout's random bits too"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=PAIRS, action="append", help="these only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--format", choices=("contiguous_format", "channels_last"), default="channels_last"
    )
    parser.add_argument("--profile", action="store_true", help="of our train step")
    arguments = parser.parse_args()
    start(16)
    torch.set_num_threads(jax.device_count())
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; ", end="")
    print(
        f"Python {platform.python_version()}, jax {jax.__version__}, torch {torch.__version__} ",
        end="",
    )
    print(f"({arguments.format}), diffusers {diffusers.__version__}")
    print("| | parameters, ours / PyTorch | ours, images/s | PyTorch, images/s | ratio (range) |")
    print("|---|---|---|---|---|")
    memory_format = getattr(torch, arguments.format)
    profiles = {
        name: compare(name, PAIRS[name](), arguments.rounds, memory_format)
        for name in arguments.network or PAIRS
    }
    if arguments.profile:
        for name, profile in profiles.items():
            print(f"\n{name}, our train step: {profile()}", flush=True)


if __name__ == "__main__":
    main()
