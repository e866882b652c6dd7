"""The signals that `conduit run` gets, as something to poll."""

from __future__ import annotations

import os
import signal
from typing import Self

_FORWARDED = (
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


class Signals:
    """The signals that came since the last `take`; context manager.

    Args:
        asked_for: a signal to handle even if this process was started with it ignored, as by nohup.
    """

    def __init__(self, asked_for: int = 0) -> None:
        self._heard = (signal.SIGCHLD, asked_for)

    def __enter__(self) -> Self:
        self._inside, self._outside = os.pipe()
        os.set_blocking(self._inside, False)
        os.set_blocking(self._outside, False)
        self._old_wakeup = signal.set_wakeup_fd(self._outside, warn_on_full_buffer=False)
        # A signal that is ignored here is ignored by COMMAND as well. SIGCONT does nothing:
        # it can be the ReloadSignal= of a unit with ExecReload=, for which systemd wants a handler.
        self._old_handlers = {
            number: signal.signal(number, lambda *_: None)
            for number in (*_FORWARDED, signal.SIGCHLD, signal.SIGCONT)
            if number in self._heard or signal.getsignal(number) != signal.SIG_IGN
        }
        # The parent may have blocked some.
        self._old_mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Python complains of a signal that comes just as the default is put back.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._old_handlers)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)
        os.close(self._inside)
        os.close(self._outside)

    def fileno(self) -> int:
        """Return the number of a pipe that is readable once a signal has come, SIGCHLD included."""
        return self._inside

    def take(self) -> list[int]:
        """Return the signals that came and must be forwarded, in order."""
        try:
            return [n for n in os.read(self._inside, 4096) if n in _FORWARDED]
        except BlockingIOError:
            return []
