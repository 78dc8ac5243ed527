"""Files that are written whole, and paths that are read."""

import os
import socket
import subprocess
import sys

import pytest

from score_sde.errors import UserError
from score_sde.paths import local, whole


def test_what_a_killed_process_left_is_removed_and_no_more(tmp_path):
    host, gone = socket.gethostname(), subprocess.Popen(["true"])
    gone.wait()
    kept = {
        f"a.npz.{os.getpid()}-0000-{host}.partial",
        f"a.npz.{gone.pid}-0000-not-{host}.partial",
        "a.npz.partial",
    }
    for name in (*kept, f"a.npz.{gone.pid}-0000-{host}.partial"):
        (tmp_path / name).touch()
    with whole(tmp_path / "b"):
        assert len([*tmp_path.iterdir()]) == 4  # its own, too
    assert {path.name for path in tmp_path.iterdir()} == {"b", *kept}


def test_two_writers_of_a_file_each_write_it_whole(tmp_path):
    """Two processes, as the first has begun when the second writes."""
    path = tmp_path / "a"
    code = "import sys; from pathlib import Path; from score_sde.paths import whole\n"
    code += "with whole(Path(sys.argv[1])) as file: file.write(b'theirs'); input()"
    command = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(command, **pipes)
    while not any(tmp_path.iterdir()):
        assert other.poll() is None
    with whole(path) as file:
        file.write(b"ours")
    assert path.read_bytes() == b"ours"
    other.communicate(b"\n", timeout=60)
    assert other.returncode == 0 and path.read_bytes() == b"theirs"
    assert [*tmp_path.iterdir()] == [path]


def test_a_pipe_or_device_is_refused_as_reading_one_may_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(UserError, match=r"--input = '.*: a pipe or device; allowed are files"):
            local(path, "--input")
