"""Notebooks, as they are saved and as they run.

`python -m tests.notebooks [FILE ...]` runs them anew and saves what comes out (`make
run-notebooks`). Everything else here needs no package of Jupyter's.

A notebook prints its key figures in lines such as `figure: error of log p, nats = 0.004 ± 0.002`.
The number after ± is how far another machine may be off. Its first cell of code has a line
`QUICK = False`; True is the reduced form, the same code with few steps.
"""

import ast
import base64
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))

Notebook = dict[str, Any]  # the JSON of an .ipynb file, version 4.5

# scikit-learn is the yardstick, and flax what a network of one's own is made of.
PACKAGES = ("score_sde", "jax", "numpy", "matplotlib", "sklearn", "flax")
LARGEST = 1_500_000  # bytes of a file
FULL, QUICK = "QUICK = False", "QUICK = True"
FIGURE = re.compile(r"^figure: (.+) = (\S+) ± (\S+)$", re.MULTILINE)

# What no saved output may hold.
REFUSED = {
    "a path of a machine": r"(?<![\w.:/~-])/(home|root|tmp|work|usr|opt|mnt|var|Users)/|C:\\",
    "a warning": r"Warning\b|\bWARNING\b",
    "a traceback": r"Traceback \(most recent call last\)",
    "an address in memory": r"\bat 0x[0-9a-f]{6,}",
}
BASE64 = re.compile(r"[A-Za-z0-9+/=]{60,}")  # pictures, of which a part may look like a path


def read(path: Path) -> Notebook:
    """Return a saved notebook."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def dumps(notebook: Notebook) -> str:
    """Return the text of the file, as Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def code(notebook: Notebook) -> list[str]:
    """Return the source of each cell of code."""
    cells = notebook["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def outputs(notebook: Notebook) -> list[dict[str, Any]]:
    """Return the outputs of all cells, in order."""
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


def text(notebook: Notebook) -> str:
    """Return all that the outputs say in words, without pictures."""
    parts = []
    for output in outputs(notebook):
        shown = [data for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
        parts += ["".join(part) for part in (output.get("text", ""), *shown)]
        parts += output.get("traceback", ())
    return BASE64.sub("", "\n".join(parts))


def figures(said: str) -> dict[str, tuple[float, float]]:
    """Return the key figures in a text: name to value and tolerance."""
    found = FIGURE.findall(said)
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names), f"a name stands twice: {names}"
    return {name: (float(value), float(tolerance)) for name, value, tolerance in found}


def differences(saved: str, new: str) -> list[str]:
    """Return what differs between the key figures of two texts by more than their tolerances."""
    before, after = figures(saved), figures(new)
    complaints = [f"{name}: in one of the two only" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        (value, tolerance), (now, _) = before[name], after[name]
        if not abs(now - value) <= tolerance:  # nan differs, too
            complaints.append(f"{name}: {value} was saved ± {tolerance}, and {now} comes out")
    return complaints


def problems(notebook: Notebook) -> list[str]:
    """Return why a notebook may not be saved as it is."""
    size, sources, said = len(dumps(notebook).encode()), code(notebook), text(notebook)
    found = [f"holds {what}" for what, pattern in REFUSED.items() if re.search(pattern, said)]
    if size > LARGEST:
        found.append(f"has {size} bytes; allowed are {LARGEST}")
    kinds = {output.get("name", output["output_type"]) for output in outputs(notebook)}
    found += [f"has an output of the kind {kind}" for kind in sorted(kinds & {"stderr", "error"})]
    for module in sorted(_imported(sources) - {*PACKAGES, *sys.stdlib_module_names}):
        found.append(f"imports {module}; allowed are {', '.join(PACKAGES)} and Python's own")
    if not sources or FULL not in sources[0].splitlines():
        found.append(f"its first cell of code has no line {FULL}")
    counts = [cell["execution_count"] for cell in notebook["cells"] if "execution_count" in cell]
    if counts != list(range(1, len(sources) + 1)):
        found.append(f"was not run from top to bottom: {counts}")
    if notebook["metadata"] != METADATA or any(cell["metadata"] for cell in notebook["cells"]):
        found.append("has metadata of the machine that ran it; make run-notebooks saves without")
    return found


def _imported(sources: list[str]) -> set[str]:
    """The packages that cells import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse("\n".join(sources))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def run_quickly(notebook: Notebook, name: str) -> None:
    """Run the reduced form in this process: the cells, one after the other, in one namespace."""
    sources, names = code(notebook), {"__name__": name}
    sources[0] = sources[0].replace(FULL, QUICK)
    for number, source in enumerate(sources, 1):
        exec(compile(source, f"{name}[{number}]", "exec"), names)


# --- With Jupyter's packages ----------------------------------------------------------------------

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(notebook: Notebook, folder: Path) -> Notebook:
    """Return the notebook as a fresh kernel fills it, which starts in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.reads(dumps(notebook), as_version=4)
    client = NotebookClient(
        node, timeout=None, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.resources = {"metadata": {"path": str(folder)}}
    # Optimized as a user's programs are, not as the tests' (conftest.py).
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    client.execute(env={**kept, "PYTHONPATH": str(ROOT)}, cleanup_kc=True)
    filled: Notebook = json.loads(nbformat.writes(node))
    filled["metadata"] = METADATA
    for cell in filled["cells"]:
        cell["metadata"] = {}
    for output in outputs(filled):
        if png := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = _smaller("".join(png))
    return filled


def _smaller(png: str) -> str:
    """A picture in base64 with 256 colours, which is a third of its size."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(256).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(files: list[str]) -> int:
    """Run notebooks anew, all of them by default, and save each."""
    import tempfile
    import time

    status = 0
    for path in [Path(file) for file in files] or FILES:
        begun, before = time.monotonic(), read(path)
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(before, Path(folder))
        path.write_text(dumps(notebook), encoding="utf-8")
        taken = time.monotonic() - begun
        print(f"{path.name}: {taken:.0f} s, {path.stat().st_size / 1e6:.2f} MB")
        for found in differences(text(before), text(notebook)):
            print(f"  changed: {found}")
        for found in problems(notebook):
            print(f"  refused: {found}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
