"""``conduit reload``: have the running one start the next COMMAND, and tell whether it serves."""

from __future__ import annotations

from collections.abc import Sequence

from conduit.cli.control import NOBODY, ask
from conduit.cli.messages import CommandError, tell


def reload(control: str, command: Sequence[str], timeout: float | None) -> None:
    """Wait until the next generation serves; print its progress on standard output.

    Args:
        control: the path of the control socket.
        command: what to run; empty for the same as before.
        timeout: seconds that it has to be ready; None for the value given to `conduit run`.

    Raises:
        CommandError: it does not serve, and the old one goes on; or nobody serves there.
    """
    follow(control, "reload", command=list(command) or None, timeout=timeout)


def follow(control: str, kind: str, **fields: object) -> None:
    """Send a request, print the answers, and return after the last."""
    for answer in ask(control, kind, **fields):
        if code := answer.get("code"):
            # That one means that nobody serves.
            raise CommandError(answer["text"], 1 if code == NOBODY else code)
        tell(answer["text"])
