"""``conduit status``: who serves, since when, on which sockets, and who drains."""

from __future__ import annotations

import json
import time
from typing import Any

from conduit.cli.control import ask, checked, unclear
from conduit.cli.messages import plain, show


def status(control: str, as_json: bool) -> None:
    """Print the status of the running one: a table, or one line of JSON.

    Args:
        control: the path of its control socket.
        as_json: for programs.

    Raises:
        CommandError: nobody serves there, or who does tells what is no status.
        OSError: it cannot be printed.
    """
    for answer in ask(control, "status"):
        told = {name: value for name, value in answer.items() if name != "kind"}
        if as_json:
            show(json.dumps(told))
            continue
        try:
            lines = table(checked(control, told))
        except (OverflowError, ValueError, OSError) as exc:
            # A time that is none.
            raise unclear(control, told) from exc
        show(*lines)


def table(told: dict[str, Any]) -> list[str]:
    """Return the status as a table for people, line by line."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["since"]))
    lines = [
        f"conduit {told['version']} (pid {told['pid']}) at {told['control']} since {since}, "
        f"{told['reloads']} reloads, {told['restarts']} restarts",
    ]
    if told.get("predecessor"):
        lines.append(f"taken over from pid {told['predecessor']}, which drains")
    lines.append("")
    generations = [
        (
            str(each["number"]),
            each["state"],
            f"{each['seconds']:.0f}",
            str(each["pid"]),
            " ".join(each["command"]),
        )
        for each in told["generations"]
    ]
    sockets = [
        (each["name"], each["type"], each["address"], str(each.get("queue")).replace("None", "-"))
        for each in told["sockets"]
    ]
    lines += _aligned(("GENERATION", "STATE", "SECONDS", "PID", "COMMAND"), *generations)
    lines += ["", *_aligned(("SOCKET", "TYPE", "ADDRESS", "WAITING"), *sockets)]
    return lines


def _aligned(*words: tuple[str, ...]) -> list[str]:
    rows = [tuple(map(plain, row)) for row in words]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
