"""Pages of HTML that need no network: every text is escaped here, every picture is within."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from score_sde.display import SMALLEST, address
from score_sde.errors import DAMAGED, UserError

LARGEST = 520  # pixels of a picture's longer side; larger ones are reduced
FILM_LARGEST, FILM_PIXELS = 260, 1_200_000  # of a frame's longer side; of all frames
FILM_SECONDS = 3.0  # without the rest on its end

# Beside the escapes: nothing is loaded and no script runs.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --shade: #f3f5f7; --curve: #1f77b4 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #9aa4af;
  --line: #343b43; --shade: #1e2328; --curve: #5fadec } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2; margin: 0 0 .5rem }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 1.5rem }
h3 { font-size: 1rem; color: var(--soft) }
p { margin: .5rem 0; max-width: 44rem }
.runs { display: grid; gap: 0 2rem; grid-template-columns: repeat(var(--runs), minmax(0, 1fr)) }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start }
figure { margin: .75rem 0; min-width: min(100%, 16rem) }
figcaption, footer, .missing { color: var(--soft); font-size: .875rem }
figcaption { width: 0; min-width: min(100%, 36rem); padding-top: .25rem }
img { display: block; max-width: 100%; height: auto }
.pixels { image-rendering: pixelated }
svg { display: block; max-width: 100%; height: auto;
  font-family: "DejaVu Sans", Verdana, sans-serif }
svg text { fill: currentColor }
svg * { stroke-linejoin: round; stroke-linecap: butt }
code { font: .875em ui-monospace, monospace; background: var(--shade); padding: .1em .3em;
  border-radius: .2em }
table { border-collapse: collapse; margin: .75rem 0; font-size: .875rem }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0;
  border-bottom: 1px solid var(--line) }
th { font-weight: 600; overflow-wrap: break-word }
.wide { overflow-x: auto }
summary { cursor: pointer; padding: .25rem 0 }
@media (max-width: 48rem) { .runs { grid-template-columns: minmax(0, 1fr) } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
</header>
<main>
{sections}
</main>
<footer>
<p>{footer}</p>
</footer>
</body>
</html>
"""


def page(title: str, sections: Mapping[str, str], footer: str) -> str:
    """Return a page. Title and footer are texts; sections are HTML by their headings."""
    parts = (
        f"<section>\n<h2>{html.escape(heading)}</h2>\n{content}\n</section>"
        for heading, content in sections.items()
    )
    return _PAGE.format(
        policy=_POLICY,
        style=_STYLE,
        title=html.escape(title),
        sections="\n".join(parts),
        footer=html.escape(footer),
    )


def columns(contents: Sequence[tuple[str, str]]) -> str:
    """Columns of a heading and HTML, which stack where there is no room; one alone as it is."""
    if len(contents) == 1:
        return contents[0][1]
    cells = "\n".join(
        f"<div>\n<h3>{html.escape(heading)}</h3>\n{content}\n</div>"
        for heading, content in contents
    )
    return f'<div class="runs" style="--runs: {len(contents)}">\n{cells}\n</div>'


def paragraph(text: str, code: str = "", kind: str = "") -> str:
    """A paragraph of text, which may end in a command."""
    typed = f" <code>{html.escape(code)}</code>" if code else ""
    return f"<p{_class(kind)}>{html.escape(text)}{typed}</p>"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table whose rows begin with their headings. One that is too wide scrolls by itself."""
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    lines = [f"<thead><tr>{names}</tr></thead>"] if head else []
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(f'{each}')}</td>" for each in rest)
        lines.append(f'<tr><th scope="row">{html.escape(f"{first}")}</th>{cells}</tr>')
    return '<div class="wide">\n<table>\n{}\n</table>\n</div>'.format("\n".join(lines))


def details(summary: str, content: str) -> str:
    """HTML that a click shows."""
    return f"<details>\n<summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def figures(*parts: str) -> str:
    """Figures beside each other, as far as there is room."""
    return '<div class="figures">\n{}\n</div>'.format("\n".join(parts))


def figure(content: str, caption: str) -> str:
    """An element with a caption."""
    return f"<figure>\n{content}\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>"


def picture(path: Path, label: str, cell: tuple[int, int] | None = None, most: int = 0) -> str:
    """An image element of a picture's file, with as few pixels as show the same.

    Args:
        path: of the picture.
        label: what is seen, for those who do not see it.
        cell: height and width of an image in a grid that `display.grid` laid out; None: no grid.
        most: rows and columns of it that are shown; 0: all.
    """
    with _opened(path) as opened:
        image, zoom = _smallest(opened, cell, most, LARGEST if cell else max(opened.size))
    return _image(address(image, optimize=True), image.size, zoom, label)


def film(path: Path, label: str, cell: tuple[int, int]) -> str:
    """As `picture`, of a film by `pictures.save_gif`. Who wants no motion sees its end."""
    with _opened(path) as opened:
        number: int = getattr(opened, "n_frames", 1)
        last, zoom = _smallest(_at(opened, number - 1), cell, 0, FILM_LARGEST)
        count = max(2, min(number, FILM_PIXELS // (last.width * last.height)))
        chosen = np.linspace(0, number - 1, count).round().astype(int).tolist()
        frames = [_smallest(_at(opened, index), cell, 0, FILM_LARGEST)[0] for index in chosen]
    pause = round(FILM_SECONDS * 1000 / count)
    durations = [pause] * (count - 1) + [2000]  # milliseconds
    settings = {"append_images": frames[1:], "duration": durations, "loop": 0}
    still = f'media="(prefers-reduced-motion: reduce)" srcset="{address(last, optimize=True)}"'
    moving = _image(address(frames[0], "gif", save_all=True, **settings), last.size, zoom, label)
    return f"<picture>\n<source {still}>\n{moving}\n</picture>"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture; UserError where it cannot be read to its end."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except (*DAMAGED, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged, too large, or no picture"
        raise UserError(f"{path}: cannot be read ({reason})") from error


def _at(film: Image.Image, index: int) -> Image.Image:
    film.seek(index)
    return film


def _smallest(
    image: Image.Image, cell: tuple[int, int] | None, most: int, largest: int
) -> tuple[Image.Image, int]:
    """An image without the magnification of its grid, cut to `most` cells a side and reduced to
    `largest` pixels; and by how much it is magnified when shown."""
    pixels = np.asarray(image.convert("RGB"))
    zoom = math.ceil(SMALLEST / cell[0]) if cell else 1
    pixels = pixels[::zoom, ::zoom]
    if cell and most:
        pixels = pixels[: most * (cell[0] + 1) - 1, : most * (cell[1] + 1) - 1]
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    found = Image.fromarray(np.ascontiguousarray(pixels))
    factor = math.ceil(max(found.size) / largest)
    return (found.reduce(factor), 1) if factor > 1 else (found, zoom)


def _image(source: str, size: tuple[int, int], zoom: int, label: str) -> str:
    width, height = (zoom * side for side in size)
    shown = f'width="{width}" height="{height}" alt="{html.escape(label)}"'
    return f'<img{_class("pixels" if zoom > 1 else "")} src="{source}" {shown}>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
