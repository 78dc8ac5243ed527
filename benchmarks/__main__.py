"""Run a benchmark by its name: `python -m benchmarks systems --help`."""

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Run the named file of this folder with the arguments that follow."""
    names = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in names:
        sys.exit(f"error: benchmark {name!r}: allowed are {', '.join(names)}")
    sys.path.insert(0, str(FOLDER))  # as of `python benchmarks/NAME.py`
    sys.argv = [str(FOLDER / f"{name}.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
