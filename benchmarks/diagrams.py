"""Draw what needs no measurement: the way of a descriptor, and the conversation of a takeover.

python benchmarks/diagrams.py docs
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from drawing import WIDTH, Drawing

CONVERSATION = (
    ("successor", "hello"),
    ("predecessor", "welcome"),
    ("predecessor", "sockets, items, state"),
    ("predecessor", "control"),
    ("successor", "received"),
    ("", "serves on|starts to serve; both accept now"),
    ("successor", "ready"),
    ("predecessor", "sockets, items, state"),
    ("predecessor", "confirmed"),
    ("successor", "done"),
    ("", "closes the control socket, drains|in charge: answers successors"),
    ("predecessor", "over"),
)
"""The side that speaks and what it says, or what each side does meanwhile."""

PARTS = ("", "objects", "Conduit", "Send", "_syscalls")
"""The parts of conduit, from the user's object to the kernel."""

SENDER = (
    "file, socket, int",
    "flushes, puts back what|was read ahead",
    "the queue of senders",
    "one message, in one call|or in several",
    "sendmsg(2)",
)
RECEIVER = (
    "file, socket, int",
    "mode, family, timeout",
    "one owner: a Descriptor",
    "",
    "recvmsg(2)",
)
"""What each part does there; nothing where it has nothing to do."""


def way() -> Drawing:
    """Draw the way of a descriptor through the parts of two processes."""
    top, step, height, width = 60, 64, 40, 178
    left, right = 16.0, WIDTH - 16.0 - width
    kernel = top + step * len(PARTS)
    drawing = Drawing("The way of a descriptor", kernel + height + 16)
    for x, name in ((left, "the sender"), (right, "the receiver")):
        drawing.text(x + width / 2, 50, name, "floor", "middle")
    for row, part in enumerate(PARTS):
        drawing.text(WIDTH / 2, top + step * row + 25, part, "ours", "middle", mono=True, bold=True)
    drawing.box(left, kernel, WIDTH - 2 * left, height, "third")
    drawing.text(WIDTH / 2, kernel + 25, "the kernel: a message on its way", "third", "middle")
    for x, does in ((left, SENDER), (right, RECEIVER)):
        middle = x + width / 2
        tops: list[float] = []
        for row, words in enumerate(does):
            if not words:
                continue
            y = top + step * row
            tops.append(y)
            drawing.box(x, y, width, height, "ours" if row else "ink")
            several = words.split("|")
            for index, text in enumerate(several):
                down = y + (25 if len(several) == 1 else 17 + 16 * index)
                drawing.text(middle, down, text, anchor="middle", size=12)
        for above, below in itertools.pairwise([*tops, kernel]):
            ends = (middle, above + height), (middle, below)
            drawing.arrow(*(ends if x == left else ends[::-1]))
    return drawing


def conversation() -> Drawing:
    """Draw what predecessor and successor say to each other, from above to below."""
    left, right, top, step, pause = 90, WIDTH - 90, 76, 34, 44
    bottom = top + sum(step if side else pause for side, _ in CONVERSATION) + 24
    drawing = Drawing("The conversation of a takeover", bottom + 52)
    drawing.text(left, 52, "predecessor", "ours", "middle", bold=True)
    drawing.text(right, 52, "successor", "third", "middle", bold=True)
    drawing.text(left, 68, "serves", "floor", "middle", size=12)
    drawing.text(right, 68, "starts", "floor", "middle", size=12)
    for x in (left, right):
        drawing.line([(x, top), (x, bottom)], "faint", 2)
    y = top
    for side, words in CONVERSATION:
        if not side:
            here, there = words.split("|")
            drawing.text(left + 10, y + 22, here, "ours", size=12)
            drawing.text(right - 10, y + 38, there, "third", "end", size=12)
            y += pause
            continue
        y += step
        ends = (left, y), (right, y)
        drawing.arrow(
            *(ends if side == "predecessor" else ends[::-1]),
            kind="ours" if side == "predecessor" else "third",
        )
        drawing.text(WIDTH / 2, y - 6, words, anchor="middle", mono=True)
    y = bottom + 18
    drawing.text(left, y, "drains, ends", "floor", "middle", size=12)
    drawing.text(right, y, "serves", "floor", "middle", size=12)
    drawing.text(WIDTH / 2, y + 20, "The line stays open between the two while the old one drains.",
                 anchor="middle", size=12)  # fmt: skip
    return drawing


DIAGRAMS = {"way.svg": way, "conversation.svg": conversation}


def main() -> None:
    """Write each into a directory."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of the documentation.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    for name, draw in DIAGRAMS.items():
        (directory / name).write_text(str(draw()))


if __name__ == "__main__":
    main()
