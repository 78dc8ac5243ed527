"""What all tests share: JAX's strict settings, the compilation cache, references, subprocesses."""

import atexit
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Compiling is most of what the tests do, so what was compiled is kept. By the environment, so that
# the commands which the tests start share it; before JAX is imported, which reads it then. The
# zero keeps small programs too: at JAX's own threshold, 1 s, a network's set-up is compiled anew.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Each operation of a program would carry its stack of Python calls, some hundred deep in a test: a
# third of what it takes to run a small program that was compiled before. Nothing here reads them.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Most programs run once: to optimize their code takes longer than it saves. A number moves by
# rounding at most, and every tolerance has room for that. Monte Carlo asks for more.
FLAGS = [
    "--xla_backend_optimization_level=0",
    # On a GPU the same program gives the same bits only so.
    "--xla_gpu_deterministic_ops=true",
]
# Memory maps that a process may have at the end of a file (`forget_programs`). No file adds as many
# as 50000.
MOST_MAPS = 15_000
# XLA ends a process whose flags it does not know, so these are for the version they were tried on.
if version("jaxlib").startswith("0.10."):
    MOST_MAPS = 45_000  # by these flags no file adds as many as 4000
    FLAGS += [
        # Of two ways to make a CPU's code of fused operations, the one that takes a third of the
        # time.
        "--xla_cpu_use_fusion_emitters=false",
        # In one piece, not in up to 32 for as many threads: it is loaded sooner, and mapped in
        # fewer parts (MOST_MAPS).
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

# Each test process on a core to itself: two that share the cores wait for each other's threads.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if WORKER and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER) % len(CORES)]})

import jax  # noqa: E402  (after the settings above)

if WORKER:
    # pytest has sent all results then. JAX would free its programs and Python millions of objects,
    # which takes up to 15 s. Handlers run in reverse order, so this one comes before JAX's. A
    # pytest that a test starts would end with 0 here.
    atexit.register(os._exit, 0)

# A (B,) that meets a (B, H, W, C), or a float32 that meets a float64, is an error and not a guess.
# Commands run without (tests/commands.py), as a user's do.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A process has as many devices as when JAX begins. A command that came first would set them.
jax.config.update("jax_num_cpu_devices", 1)
# On a GPU float32 products are TF32, of three digits; the tests compare what was computed exactly.
if jax.devices()[0].platform != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")

# JAX 0.10 makes an MLIR context for each program that it lowers: 6 ms and 2 MB, which stay with the
# program. The small programs of the tests take a third less time if those of a thread share one, as
# they do from JAX 0.11 on. A context keeps its programs' constants, so it is not the same for ever.
if version("jax").startswith("0.10."):
    from jax._src import source_info_util
    from jax._src.interpreters import mlir

    PROGRAMS_OF_A_CONTEXT = 200
    CONTEXTS = threading.local()

    def shared_context(make: Callable[[], Any] = mlir.make_ir_context) -> Any:
        context, programs = getattr(CONTEXTS, "last", (None, PROGRAMS_OF_A_CONTEXT))
        if programs == PROGRAMS_OF_A_CONTEXT:
            context, programs = make(), 0
        CONTEXTS.last = context, programs + 1
        return context

    mlir.make_ir_context = shared_context

    # Each operation that is traced would keep the stack of calls that led to it, which took a
    # fifteenth of the time of three files. All of them have this one. Where JAX's errors say where
    # an operation came from, they name this line.
    HERE = source_info_util.current().traceback
    source_info_util.new_source_info = lambda: source_info_util.SourceInfo(
        HERE, source_info_util.NameStack()
    )
    source_info_util._source_info_context = source_info_util._SourceInfoContext()

# Traced programs are millions of objects that stay. At Python's own thresholds an eighth of the
# tests' time goes into looking through them for cycles; what is found, is found later.
gc.set_threshold(200_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow and thorough tests have six times as long as others before they are given up."""
    for item in items:
        long = any(map(item.get_closest_marker, ("slow", "thorough")))
        if long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: it is looked through no more."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """pytest and Python look through all objects when they end, which takes seconds. Errors in
    the last finalizers are lost."""
    gc.freeze()


# A shell starts jobs in the background with SIGINT ignored, and what they start inherits that: the
# tests that interrupt a command would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RunPython = Callable[..., subprocess.CompletedProcess[str]]
TinyRun = Callable[[str, Path], Path]


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop compiled programs with the end of a file, where there are many. They are mapped into
    memory, a process has room for 65530 such maps (vm.max_map_count), and beyond that XLA's
    compiler ends it. Up to there the next file may use them again."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def hurried() -> Iterator[None]:
    """Classifiers of one step: any features do, and to learn good ones takes seconds."""
    from score_sde.evaluation import classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 1)
        yield


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with two digits as PNGs of 0 to 255."""
    from PIL import Image

    from score_sde.data import load

    folder = tmp_path / "inputs"
    folder.mkdir()
    for name, image in zip("ab", load("digits", "test", "").x[:2, ..., 0], strict=True):
        Image.fromarray((image * (255 / 16)).round().astype("uint8")).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Function that puts a copy of a tiny run's workdir into a folder, where a command without
    --workdir looks for it, and returns its path. `tiny_run("digits", folder)`; the kinds are those
    of `tests/commands.py`. Each is trained once for all processes of the tests."""
    from tests.commands import DIGITS, KINDS, succeed

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all workers

    def copy(kind: str, folder: Path) -> Path:
        trained, unfinished = base / f"trained_{kind}", base / f"training_{kind}"
        with (base / f"{kind}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not trained.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                succeed("--mode=train", DIGITS, "--workdir", unfinished, *KINDS[kind], cwd=base)
                unfinished.rename(trained)
        return shutil.copytree(trained, folder / "runs" / "vp_digits")

    return copy


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of recorded references: SCORE_SDE_REFERENCE, or shared/reference beside the repo."""
    return shared("SCORE_SDE_REFERENCE", "reference", "recorded references")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of CIFAR-10, the Inception weights and their features: SCORE_SDE_DATA, or shared/data
    beside the repo."""
    return shared("SCORE_SDE_DATA", "data", "CIFAR-10 and Inception weights")


def shared(variable: str, name: str, what: str) -> Path:
    """A folder outside of the repo. A test that asks for it is skipped where it is absent, unless
    the variable promised it."""
    named = os.environ.get(variable)
    path = Path(named) if named else ROOT.parent / "shared" / name
    if path.is_dir():
        return path
    if named:
        pytest.fail(f"{variable}={named} is not a folder")
    pytest.skip(f"no {what}: set {variable} to their folder")


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
