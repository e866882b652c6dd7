"""``conduit stop``: end the running one, and wait until it has finished what it has begun."""

from __future__ import annotations

from conduit.cli.reload import follow


def stop(control: str) -> None:
    """Return once it has ended.

    Args:
        control: the path of the control socket.

    Raises:
        CommandError: nobody serves there.
    """
    follow(control, "stop")
