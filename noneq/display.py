"""Shows answers in a notebook: as HTML, which Jupyter asks for (`_repr_html_`)."""

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_ROWS, _COLUMNS = 10, 12  # of a table, and of notes; more are counted
_LIKELIEST = 3  # of probabilities
_WIDTH, _SCALE = 480, 4  # a picture is enlarged, but not beyond either


def picture(png: bytes, width: int, notes: Iterable[str]) -> str:
    """Return a picture, given as a PNG of `width` pixels, over notes on it."""
    scale = max(1, min(_SCALE, _WIDTH // width))
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    style = "image-rendering: pixelated; max-width: none"
    return f'<img src="{source}" width="{scale * width}" style="{style}">{_notes(notes)}'


def table(names: Sequence[str], rows: Sequence[Sequence[object]], notes: Iterable[str]) -> str:
    """Return the first rows and columns of a table over notes on it, with their number."""
    more = ["..."] if len(names) > _COLUMNS else []
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names[:_COLUMNS], *more])
    lines = [
        "".join(f"<td>{escape(text)}</td>" for text in [*map(cell, row[:_COLUMNS]), *more])
        for row in rows[:_ROWS]
    ]
    body = "".join(f"<tr><th>{i}</th>{line}</tr>" for i, line in enumerate(lines))
    cut = [f"{_ROWS} of {len(rows)} rows"] if len(rows) > _ROWS else []
    cut += [f"{_COLUMNS} of {len(names)} columns"] if more else []
    shown = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return shown + _notes([*filter(None, [", ".join(cut)]), *notes])


def cell(value: object) -> str:
    """Format a cell: five digits of a number; nothing for None and NaN, which are not measured."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    if isinstance(value, Mapping):
        likeliest = sorted(value.items(), key=lambda item: -item[1])[:_LIKELIEST]
        return ", ".join(f"{name} {share:.2f}" for name, share in likeliest)
    return "" if value is None else str(value)


def number(count: int, noun: str) -> str:
    """Return "1 sample", "2 samples"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _notes(notes: Iterable[str]) -> str:
    found = list(notes)
    more = [f"and {len(found) - _ROWS} more"] if len(found) > _ROWS else []
    return "".join(f"<div>{escape(note)}</div>" for note in [*found[:_ROWS], *more])
