"""Tables and amounts as docker prints them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ago", "cut", "render_table", "size", "terminal_columns"]

_GAP = "   "
_LEAST_COLUMN = 8


def render_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, columns: int | None = None
) -> str:
    """Headers and rows, one line each, the columns aligned; ends with a newline.

    With `columns`, the widest columns are cut until a line fits into that many characters.
    """
    lines = [[_one_line(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if columns is not None:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - columns
        while excess > 0 and max(widths) > _LEAST_COLUMN:
            widest = widths.index(max(widths))
            widths[widest] -= 1
            excess -= 1
    text = []
    for line in lines:
        cells = [cut(cell, width).ljust(width) for cell, width in zip(line, widths, strict=True)]
        text.append(_GAP.join(cells).rstrip() + "\n")
    return "".join(text)


def _one_line(cell: str) -> str:
    """`cell` with control characters shown rather than obeyed: images and commands are hostile."""
    if cell.isprintable():
        return cell
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cell)


def cut(text: str, width: int) -> str:
    """`text`, or its beginning and an ellipsis if it is longer than `width`."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def terminal_columns(stream: TextIO | None = None) -> int | None:
    """The width of the terminal that `stream` (stdout) is; None if it is none."""
    try:
        descriptor = (stream or sys.stdout).fileno()
        return os.get_terminal_size(descriptor).columns or None
    except (OSError, ValueError):  # not a terminal, or no descriptor at all
        return None


def ago(seconds: float) -> str:
    """A time span in docker's rough words: `5 seconds`, `About an hour`, `3 weeks`."""
    minutes, hours = int(seconds // 60), round(seconds / 3600)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{int(seconds)} second{'s' if seconds >= 2 else ''}"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for unit, unit_hours, until in (
        ("hours", 1, 48),
        ("days", 24, 24 * 14),
        ("weeks", 24 * 7, 24 * 60),
        ("months", 24 * 30, 24 * 365 * 2),
    ):
        if hours < until:
            return f"{hours // unit_hours} {unit}"
    return f"{hours // (24 * 365)} years"


def size(count: int | None) -> str:
    """`count` bytes in powers of 1000, as docker has it for disks: `7.83MB`; `--` if unknown."""
    if count is None:
        return "--"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g}{unit}"
