"""Two processes that train one model, as on two hosts: the run is that of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from score_sde.training.checkpoints import Checkpoints
from tests.training.test_loop import lines
from tests.training.tiny_run import TinyRun

ROOT = Path(__file__).parents[2]
PROCESS = """
import sys
from pathlib import Path
import jax
port, rank, workdir = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
from score_sde.training.mesh import is_writer
from tests.training.tiny_run import TinyRun
run, called = TinyRun(), []
assert jax.process_count() == run.mesh.size == 2 and is_writer() == (rank == "0")
from score_sde.training.feed import streaming
from tests.training.tiny_run import EXAMPLES
streamed = streaming(EXAMPLES, batch_size=8, seed=5, mesh=run.mesh, workers=0)
mine, same = next(run.batches(0))["x"], next(streamed(0))["x"]
assert len(mine.addressable_shards) == len(same.addressable_shards) == 1
assert (mine.addressable_data(0) == same.addressable_data(0)).all()
hook = (3, lambda step, state: called.append(step))
run.train(Path(workdir), [hook], num_steps=7)
run.train(Path(workdir), [hook])  # goes on from the checkpoint
assert run.traces == 1 and called == [3, 6, 7, 9, 12], (run.traces, called)
"""


@pytest.mark.slow
def test_two_processes_are_one(run_python, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-c", PROCESS, str(port)]
    processes = [
        subprocess.Popen(
            [*command, rank, tmp_path / "two"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    output = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)
    assert "training: step" in output[0] and "training: step" not in output[1]
    code = f"""
from pathlib import Path
from tests.training.tiny_run import TinyRun
TinyRun().train(Path({str(tmp_path / "one")!r}))
"""
    same = os.environ.get("XLA_FLAGS", "")  # the code is optimized as that of the two
    run_python(
        code,
        {"XLA_FLAGS": f"{same} --xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
    )
    assert [line["step"] for line in lines(tmp_path / "two")] == [2, 4, 6, 7, 8, 10, 12]
    states = [
        Checkpoints(tmp_path / name / "checkpoints").restore(TinyRun().state())
        for name in ("two", "one")
    ]
    # Each device's gradient is the same; their sum over two devices is too, in either order.
    jax.tree.map(np.testing.assert_array_equal, *states)
