"""What streaming costs, and what memory it takes: `python benchmarks/streaming.py`.

It writes PNG files of 32 x 32 pixels, smooth random colours, into a temporary folder. The network
of `vp_digits` then trains on 20,000 of them by both feeds in this process, in turn: so many steps
until what the stream had read ahead is used up, then so many that count. It prints the stream's
images/s over those from memory; the project asks for 0.9. `--width 8` makes the steps short, the
harder case. About four minutes on 2 cores.

`--memory` trains a small network on 10,000 and on 100,000 files instead, each time in a process of
its own. It prints what memory that process takes at its end and at most (VmRSS, VmHWM), and what it
and its workers take at most together (Pss, in which a page that several share counts once). About
three minutes.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import vp_digits
from score_sde import build, learn, networks, objectives
from score_sde.config import changed
from score_sde.data import Arrays, DatasetInfo
from score_sde.modes import start
from score_sde.training.feed import default_workers, in_memory, streaming
from score_sde.training.mesh import data_mesh, replicated
from score_sde.training.state import create
from score_sde.training.step import make_train_step

SIDE = 32
DIFFERENT = 20_000  # further files repeat these
READ_AHEAD = 8  # steps, more than a stream of one worker has ready
COUNTED = 12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="pairs of measurements")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--width", type=int, help="the network's width, instead of the config's")
    parser.add_argument("--workers", type=int, default=default_workers(), help="data.workers")
    parser.add_argument("--memory", action="store_true", help="measure memory")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        folder, feed = arguments.train
        train_and_report(Path(folder), feed == "stream")
        return
    with tempfile.TemporaryDirectory() as place:
        if arguments.memory:
            for number in (10_000, 100_000):
                write_images(Path(place, f"{number}"), number)
            for number, feed in ((10_000, "stream"), (100_000, "stream"), (100_000, "memory")):
                folder = f"{place}/{number}"
                command = [sys.executable, __file__, "--train", folder, feed]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{number:,} images, {feed}: {done.stdout.splitlines()[-1]}", flush=True)
        else:
            write_images(Path(place), DIFFERENT)
            measure(settings(Path(place), arguments), arguments)


def write_images(folder: Path, number: int) -> None:
    """PNG files of smooth random colours: 6 x 6 random pixels, enlarged."""
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    contents = []
    for _ in range(min(number, DIFFERENT)):
        small = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        content = io.BytesIO()
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(content, "PNG")
        contents.append(content.getvalue())
    for index in range(number):
        (folder / f"{index:06d}.png").write_bytes(contents[index % DIFFERENT])


def settings(folder: Path, arguments: argparse.Namespace) -> ConfigDict:
    """The config of both feeds."""
    width = arguments.width or vp_digits.get_config().model.width
    values = {
        "data.name": "folder",
        "data.dir": f"{folder}",
        "model.width": width,
        "model.attention_resolutions": (16,),
    }
    return changed(vp_digits.get_config(), values)


def measure(config: ConfigDict, arguments: argparse.Namespace) -> None:
    """Both feeds in turn, over one compiled step."""
    start(arguments.batch)
    mesh, info = data_mesh(), build.dataset(config)
    apply, params = networks.init(build.network(config, info), jax.random.key(0))
    optimizer, loss = build.optimizer(config), objectives.loss(config, apply, info)
    step = make_train_step(loss, optimizer, config.training.ema_rate, mesh)
    state = create(params, optimizer, mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    options = {"batch_size": arguments.batch, "seed": 0, "mesh": mesh}
    memory = in_memory(_examples(config, info, False), **options)(0)
    stream = streaming(_examples(config, info, True), workers=arguments.workers, **options)(0)
    rates: dict[str, list[float]] = {"memory": [], "stream": []}
    for _ in range(arguments.rounds + 1):
        for name, feed in (("memory", memory), ("stream", stream)):
            for number in range(READ_AHEAD + COUNTED):
                if number == READ_AHEAD:
                    jax.block_until_ready(state)
                    begin = time.perf_counter()
                state, values = step(state, next(feed), key)
                if mesh.size > 1:  # of CPU devices one process may have one step under way
                    jax.block_until_ready(values)
            jax.block_until_ready(state)
            rates[name].append(COUNTED * arguments.batch / (time.perf_counter() - begin))
    stream.close()
    first, second = (np.array(rates[name][1:]) for name in ("memory", "stream"))
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()},")
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; jax {jax.__version__}")
    width, workers = config.model.width, arguments.workers
    print(f"width {width}, batches of {arguments.batch}, {workers} workers")
    print(f"median images/s: memory {np.median(first):.0f}, stream {np.median(second):.0f}")
    ratios = second / first
    print(f"ratio {np.median(ratios):.3f}, from {ratios.min():.3f} to {ratios.max():.3f}")


def _examples(config: ConfigDict, info: DatasetInfo, stream: bool) -> dict:
    found: Arrays = build.arrays(changed(config, {"data.stream": stream}), info, "train")
    return {"x": found.x, "condition": found.condition}


def train_and_report(folder: Path, stream: bool) -> None:
    """40 steps of a small network, and the memory of this process and its workers."""
    values = {
        "data.name": "folder",
        "data.dir": f"{folder}",
        "data.stream": stream,
        "model.width": 8,
        "model.multipliers": (1,),
        "model.attention_resolutions": (),
        "model.num_blocks": 1,
        "training.num_steps": 40,
        "training.batch_size": 32,
    }
    ended, together = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.5):
            together.append(_together())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    begin = time.perf_counter()
    learn.train(changed(vp_digits.get_config(), values))
    seconds = time.perf_counter() - begin
    ended.set()
    watching.join()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {name: int(status[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")}
    found["Pss of all"] = max(together) // 1024
    print(json.dumps({"MiB": found, "seconds": round(seconds)}))


def _together() -> int:
    """KiB of this process and its workers."""
    found = 0
    for pid in (os.getpid(), *(each.pid for each in multiprocessing.active_children())):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found


if __name__ == "__main__":
    main()
