"""A table in a CSV that grows by lines, so that a benchmark goes on after an interruption, and the
folder it stands in."""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path


def folder(name: str) -> Path:
    """An argument's folder. It is made before anything is measured."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name!r}: {error.strerror}") from None
    return Path(name)


def read(path: Path) -> list[dict[str, str]]:
    """The lines of the CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, line: Mapping[str, str]) -> None:
    """Write a line after the others, the first one under its names, and print it."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*line])
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(*line.values(), flush=True)


def markdown(table: list[dict[str, str]]) -> str:
    """The lines as a table in Markdown."""
    names = [*table[0]] if table else []
    rows = [names, ["---"] * len(names), *([line[name] or "–" for name in names] for line in table)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
