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
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "websocket"))
import deploy
from drawing import Axis, decades, lines

WAYS = {"handed over": "ours", "closed": "other", "no deploy": "floor"}
"""And the kind of line that stands for each."""
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
    series = {
        way: [(share, max(figures.pause(share) * 1000, 1.0)) for share in SHARES]
        for way, figures in results.items()
    }
    longest = [points[-1][1] for points in series.values()]
    drawing = lines(
        "The pause that each client saw in a deploy",
        Axis({share: f"{share} %" for share in range(0, 101, 25)},
             "of the clients and deploys had at most this pause", log=False),
        decades("the pause", [1.0, *longest], "{:,.0f} ms".format),
        series, kinds=[WAYS[way] for way in series], dots=False,
    )  # fmt: skip
    return str(drawing)


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
