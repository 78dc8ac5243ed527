"""What all tests share: JAX's strict settings, the compilation cache, references, subprocesses."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Compiling is most of what the tests do, so what was compiled is kept. By the environment, so that
# the commands which the tests start share it; before JAX is imported, which reads it then. The
# zero keeps small programs too: at JAX's own threshold, 1 s, a network's set-up is compiled anew.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402  (after the settings above)

# A (B,) that meets a (B, H, W, C), or a float32 that meets a float64, is an error and not a guess.
# Commands run without (tests/commands.py), as a user's do.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A process has as many devices as when JAX begins. A command that came first would set them.
jax.config.update("jax_num_cpu_devices", 1)
jax.devices()

# A shell starts jobs in the background with SIGINT ignored, and what they start inherits that: the
# tests that interrupt a command would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose tests start the most commands. They begin first, so that no process is left alone with
# one at the end.
LONG = ("test_modes.py", "test_likelihood_command.py", "test_kinds_of_models.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by whether they are long; within them nothing changes."""
    items.sort(key=lambda item: item.path.name not in LONG)


RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop a file's compiled programs with its end. They are mapped into memory, a process has room
    for 65530 such maps (vm.max_map_count), and beyond that XLA's compiler ends it."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the recorded references: SCORE_SDE_REFERENCE, or shared/reference beside the repo.

    A test that asks for it is skipped where it is absent, unless the variable promised it.
    """
    named = os.environ.get("SCORE_SDE_REFERENCE")
    path = Path(named) if named else ROOT.parent / "shared" / "reference"
    if path.is_dir():
        return path
    if named:
        pytest.fail(f"SCORE_SDE_REFERENCE={named} is not a folder")
    pytest.skip("no recorded references: set SCORE_SDE_REFERENCE to their folder")


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Function that runs code in a fresh interpreter, for settings that a process takes only once.

    `run_python(code, env={"JAX_ENABLE_X64": "1"})` runs in the repository's root with `env` added
    to the environment and returns the completed process, output as text. A non-zero exit fails the
    test with what the code wrote; `check=False` returns it.
    """

    def run(
        code: str, env: Mapping[str, str] | None = None, *, check: bool = True, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    return run
