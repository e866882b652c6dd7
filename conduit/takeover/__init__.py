"""Zero-downtime restart: a new process takes over the sockets of the running one.

The protocol between the two is written down in ``docs/takeover.md``. Each file does one thing:

- `protocol` says what may be said next, without input or output;
- `holdings` is what is handed over, as messages and back;
- `talk` moves the messages of one conversation over a conduit, and never waits;
- `inheritance` is the successor's side: it receives what the predecessor has;
- `succession` is the predecessor's side: it answers successors, whenever one says something;
- `watch` polls conduits, which another thread may close during the wait;
- `sockets` opens sockets and recognises them;
- `room` raises the soft limit of open files where it has to;
- `spares` keeps second names of Unix sockets, to put a removed path back;
- `takeover` is the class that programs use.
"""

from conduit.takeover.takeover import Takeover

__all__ = ["Takeover"]
