"""``conduit reload``: have the running one start the next COMMAND, and tell whether it serves."""

from __future__ import annotations

from collections.abc import Sequence

from conduit.cli.control import NOBODY, ask
from conduit.cli.messages import CommandError, tell


def reload(control: str, command: Sequence[str], timeout: float | None) -> None:
    """Wait until the next generation serves; what is told meanwhile goes to standard output.

    Args:
        control: where the running one is found.
        command: what it is to run; the same as before if there are no words.
        timeout: seconds that it has to be ready; what the running one was told, if None.

    Raises:
        CommandError: it does not serve, and the old one goes on; or nobody serves there.
    """
    follow(control, "reload", command=list(command) or None, timeout=timeout)


def follow(control: str, kind: str, **fields: object) -> None:
    """Ask, tell what is answered, and return once it is done."""
    for answer in ask(control, kind, **fields):
        if code := answer.get("code"):
            # That one means that nobody serves.
            raise CommandError(answer["text"], 1 if code == NOBODY else code)
        tell(answer["text"])
