"""Deploy a WebSocket server under a thousand clients, and measure the pause that each saw.

    python benchmarks/websocket.py --table docs/websocket.csv --plot docs/websocket.svg

It wants wsproto. The server and the clients are those of examples/websocket. The server is replaced
ten times by handing the connections over, and ten times by closing them, after which each client
connects anew at once and sends again what was not answered. A pause is the longest time from a
message, or from a close that came before it, to the answer, of one client around one deploy.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "websocket"))
import deploy

WAYS = {"handed over": "#2a7", "closed": "#c54", "no deploy": "#999"}
SHARES = [*range(100), 99.9, 100]
"""Which of the pauses, in percent of all, from the shortest to the longest."""


class Figures(NamedTuple):
    """What the clients saw.

    Attributes:
        answers: to their messages.
        faults: clients with an answer that was lost, doubled, out of order or of another state.
        closed: connections that were closed.
        unsure: messages that were not answered then, and sent again.
        pauses: seconds, one for each client and deploy, sorted.
    """

    answers: int
    faults: int
    closed: int
    unsure: int
    pauses: list[float]

    def pause(self, share: float) -> float:
        """The longest pause of so many percent."""
        return self.pauses[min(int(len(self.pauses) * share / 100), len(self.pauses) - 1)]


async def measure(way: str, count: int, deploys: int) -> Figures:
    """Have so many clients see so many deploys."""
    options = ["--close"] if way == "closed" else []
    clients, pauses = await deploy.deploy(count, deploys, *options, replaces=way != "no deploy")
    return Figures(
        sum(client.answered for client in clients),
        sum(bool(client.fault) for client in clients),
        sum(client.closes for client in clients),
        sum(client.unsure for client in clients),
        sorted(pause for each in pauses for pause in each),
    )


def table(results: dict[str, Figures], count: int, deploys: int) -> str:
    """The results as a table in Markdown."""
    lines = [
        f"| {count} clients, {deploys} deploys | answers | not due | connections closed | "
        "messages unanswered then | median pause | 99 % | longest |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for way, figures in results.items():
        pauses = [f"{figures.pause(share) * 1000:.0f} ms" for share in (50, 99, 100)]
        lines.append("| " + " | ".join([way, *map(str, figures[:4]), *pauses]) + " |")
    return "\n".join(lines)


def plot(results: dict[str, Figures]) -> str:
    """The pauses as a drawing in SVG: how many percent of them are how long, at most."""
    left, top, width, height = 80, 50, 560, 300
    longest = max(figures.pauses[-1] for figures in results.values())
    decades = range(-3, math.ceil(math.log10(longest)) + 1)

    def place(share: float, seconds: float) -> str:
        x = left + width * share / 100
        part = (math.log10(max(seconds, 0.001)) + 3) / (decades[-1] + 3)
        return f"{x:.1f},{top + height * (1 - part):.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" '
        f'height="{top + height + 60}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="22" font-weight="bold">The pause that each client saw in a deploy</text>',
    ]
    for decade in decades:
        start, end = place(0, 10.0**decade), place(100, 10.0**decade)
        y = float(start.split(",")[1]) + 4
        out += [
            f'<polyline points="{start} {end}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{y:.1f}" text-anchor="end">{10 ** (decade + 3)} ms</text>',
        ]
    for share in range(0, 101, 25):
        x = left + width * share / 100
        out.append(
            f'<text x="{x:.1f}" y="{top + height + 20}" text-anchor="middle">{share} %</text>'
        )
    out.append(
        f'<text x="{left + width / 2}" y="{top + height + 44}" text-anchor="middle">'
        "of the clients and deploys had at most this pause</text>"
    )
    for way, figures in results.items():
        points = " ".join(place(share, figures.pause(share)) for share in SHARES)
        y = float(points.rsplit(",", 1)[1])
        out += [
            f'<polyline points="{points}" fill="none" stroke="{WAYS[way]}" stroke-width="2"/>',
            f'<text x="{left + width + 8}" y="{y + 4:.1f}" fill="{WAYS[way]}">{way}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    """Measure, print the table, and write what is asked for."""
    parser = argparse.ArgumentParser(description="Deploy a WebSocket server under its clients.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--deploys", type=int, default=10)
    parser.add_argument("--table", type=Path, metavar="FILE.csv")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    deploy.raise_limit_of_descriptors()
    results = {way: asyncio.run(measure(way, options.clients, options.deploys)) for way in WAYS}
    print(table(results, options.clients, options.deploys))
    if options.table:
        with options.table.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["way", "percent", "longest_pause"])
            for way, figures in results.items():
                writer.writerows([way, share, f"{figures.pause(share):.6f}"] for share in SHARES)
    if options.plot:
        options.plot.write_text(plot(results))


if __name__ == "__main__":
    main()
