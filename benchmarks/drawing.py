"""Drawings for the documentation: SVG in the light or the dark colours of whoever looks at it.

A drawing is 520 wide, so that it is still readable on a telephone, and has its own background.
What is drawn has a kind, which decides its colour; lines of different kinds are dashed differently
as well, for those who cannot tell the colours apart, and for paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 520
KINDS = ("ours", "other", "floor", "third", "fourth")
"""Kinds of what is compared, in the order in which a chart gives them to its series."""

_COLOURS = {
    "ink": ("#24292f", "#e6e6e6"),
    "faint": ("#d5d9de", "#45484d"),
    "paper": ("#ffffff", "#17181a"),
    "ours": ("#0b8457", "#4cc793"),
    "other": ("#c0392b", "#f0857a"),
    "floor": ("#6a737d", "#a5adb6"),
    "third": ("#2563b8", "#82b1f5"),
    "fourth": ("#a06a00", "#e0b050"),
}
_DASHES = {"other": "7 3", "floor": "2 3", "third": "9 3 2 3", "fourth": "4 4"}
_STYLE = (
    "".join(f".{kind}{{color:{light}}}" for kind, (light, _) in _COLOURS.items())
    + "@media(prefers-color-scheme:dark){"
    + "".join(f".{kind}{{color:{dark}}}" for kind, (_, dark) in _COLOURS.items())
    + "}"
)

Point = tuple[float, float]


class Drawing:
    """A sheet to draw on; ``str()`` of it is the file."""

    def __init__(self, title: str, height: float) -> None:
        self.height = height
        self._title = title
        self._parts: list[str] = []
        self.text(12, 24, title, bold=True)

    def text(
        self, x: float, y: float, text: str, kind: str = "ink", anchor: str = "start", *,
        bold: bool = False, size: float = 13, mono: bool = False,
    ) -> None:  # fmt: skip
        """Write a line of text that starts, ends or has its middle there."""
        extra = ' font-weight="bold"' if bold else ""
        extra += ' font-family="monospace"' if mono else ""
        extra += f' font-size="{size:g}"' if size != 13 else ""
        self._parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra} '
            f'fill="currentColor">{escape(text)}</text>'
        )

    def line(self, points: Iterable[Point], kind: str = "ink", width: float = 1) -> None:
        """Draw a line through some points."""
        dash = f' stroke-dasharray="{_DASHES[kind]}"' if kind in _DASHES else ""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline class="{kind}" points="{places}" fill="none" stroke="currentColor" '
            f'stroke-width="{width:g}" stroke-linejoin="round"{dash}/>'
        )

    def arrow(self, start: Point, end: Point, kind: str = "ink", width: float = 1.5) -> None:
        """Draw a straight arrow."""
        (x, y), (to_x, to_y) = start, end
        angle = math.atan2(to_y - y, to_x - x)
        self.line([start, (to_x - 6 * math.cos(angle), to_y - 6 * math.sin(angle))], kind, width)
        head = [end] + [
            (to_x - 9 * math.cos(angle + turn), to_y - 9 * math.sin(angle + turn))
            for turn in (0.4, -0.4)
        ]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in head)
        self._parts.append(f'<polygon class="{kind}" points="{places}" fill="currentColor"/>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Draw a filled rectangle."""
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="2" fill="currentColor"/>'
        )

    def box(self, x: float, y: float, width: float, height: float, kind: str = "ink") -> None:
        """Draw the outline of a rectangle."""
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="4" fill="none" stroke="currentColor"/>'
        )

    def __str__(self) -> str:
        """The file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
                f'height="{self.height:g}" viewBox="0 0 {WIDTH} {self.height:g}" role="img" '
                'font-family="system-ui, sans-serif" font-size="13">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{_STYLE}</style>",
                '<rect class="paper" width="100%" height="100%" rx="6" fill="currentColor"/>',
                *self._parts,
                "</svg>",
                "",
            ]
        )


class Bar(NamedTuple):
    """One row of a bar chart.

    Attributes:
        label: what stands before the bar.
        value: how long the bar is.
        text: what stands behind the bar.
        kind: one of `KINDS`.
        group: what stands above the first of several rows that have the same.
    """

    label: str
    value: float
    text: str
    kind: str
    group: str = ""


def bars(title: str, rows: Sequence[Bar], mark: float | None = None) -> Drawing:
    """Draw a row for each bar, and a line at the value ``mark``."""
    step, top = 26, 40
    left = 20 + max(_width(row.label) for row in rows)
    room = WIDTH - left - 20 - max(_width(row.text) for row in rows)
    longest = max([row.value for row in rows] + [mark or 0])
    groups = [(name, [*some]) for name, some in itertools.groupby(rows, lambda row: row.group)]
    bottom = top + step * (len(rows) + sum(bool(name) for name, _ in groups))
    drawing = Drawing(title, bottom + 8)
    at = left + room * (mark or 0) / longest
    if mark is not None:
        drawing.line([(at, top - 4), (at, bottom)], "floor")
    y = float(top)
    for name, some in groups:
        if name:
            drawing.text(12, y + 16, name, bold=True, size=12)
            y += step
        for row in some:
            end = left + max(2.0, room * row.value / longest)
            drawing.text(left - 8, y + 14, row.label, anchor="end")
            drawing.bar(left, y, end - left, 19, row.kind)
            # Beside the mark's line, not on it.
            crosses = mark is not None and 0 <= at - end < _width(row.text) + 10
            drawing.text((at if crosses else end) + 6, y + 14, row.text)
            y += step
    return drawing


class Axis(NamedTuple):
    """Where values are, what is written at some of them, and what they are.

    Attributes:
        ticks: values with what is written there; the first and the last are the ends.
        name: what is measured, with its unit.
        log: whether equal ratios are equal lengths.
    """

    ticks: Mapping[float, str]
    name: str
    log: bool = True

    def place(self, value: float) -> float:
        """The part of the axis that is before a value, from 0 to 1."""
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = min(self.ticks), max(self.ticks)
        value = min(max(value, low), high)
        return (scale(value) - scale(low)) / (scale(high) - scale(low))


def decades(name: str, values: Iterable[float], write: Callable[[float], str]) -> Axis:
    """Return an axis with a tick at each power of ten, wide enough for all values."""
    values = list(values)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = [10.0**exponent for exponent in range(low, max(high, low + 1) + 1)]
    return Axis({tick: write(tick) for tick in ticks}, name)


def lines(
    title: str, x: Axis, y: Axis, series: Mapping[str, Sequence[Point]],
    kinds: Sequence[str] = KINDS, *, dots: bool = True,
) -> Drawing:  # fmt: skip
    """Draw a line for each series, and their names above."""
    legend: list[tuple[float, float, str, str]] = []
    across, down = 12.0, 46.0
    for (name, _), kind in zip(series.items(), itertools.cycle(kinds), strict=False):
        if across > 12 and across + 34 + _width(name) > WIDTH - 8:
            across, down = 12.0, down + 20
        legend.append((across, down, name, kind))
        across += 34 + _width(name) + 18
    left = 20 + max(_width(text) for text in y.ticks.values())
    top, width, height = down + 34, WIDTH - left - 24, 240
    drawing = Drawing(title, top + height + 52)
    for at, at_y, name, kind in legend:
        drawing.line([(at, at_y - 4), (at + 28, at_y - 4)], kind, 2)
        drawing.text(at + 34, at_y, name)
    drawing.text(12, top - 12, y.name, "floor", size=12)

    def place(point: Point) -> Point:
        return left + width * x.place(point[0]), top + height * (1 - y.place(point[1]))

    first, last = min(x.ticks), max(x.ticks)
    for value, text in y.ticks.items():
        start, end = place((first, value)), place((last, value))
        drawing.line([start, end], "faint")
        drawing.text(left - 8, start[1] + 4, text, anchor="end")
    for value, text in x.ticks.items():
        at, _ = place((value, min(y.ticks)))
        drawing.line([(at, top + height), (at, top + height + 5)], "faint")
        drawing.text(at, top + height + 20, text, anchor="middle")
    drawing.text(left + width / 2, top + height + 42, x.name, "floor", "middle", size=12)
    for (_, points), (_, _, _, kind) in zip(series.items(), legend, strict=True):
        places = [place(point) for point in points]
        drawing.line(places, kind, 2)
        if dots:
            for at, at_y in places:
                drawing.bar(at - 2.5, at_y - 2.5, 5, 5, kind)
    return drawing


def _width(text: str) -> float:
    """About how wide a text is; no font is at hand to ask."""
    return sum(9.4 if each.isupper() or each == "_" else 6.9 for each in text)
