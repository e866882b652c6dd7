"""QMP, which controls QEMU: a JSON object a line; ``getfd`` takes a descriptor that comes with it.

The protocol is that of https://www.qemu.org/docs/master/interop/qmp-spec.html.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from conduit import Conduit, Reader


def receive(reader: Reader) -> dict[str, Any]:
    """Receive one object; what ends a line is a newline, or a carriage return before it."""
    value: dict[str, Any] = json.loads(reader.receive_until(b"\n"))
    return value


def execute(link: Conduit, reader: Reader, command: str, *fds: int, **arguments: object) -> object:
    """Execute a command, with descriptors if it takes them, and return what it returns."""
    line = json.dumps({"execute": command, "arguments": arguments}) + "\n"
    link.transfer(*fds, data=line.encode(), keep=True)
    while True:
        answer = receive(reader)
        if "error" in answer:
            raise RuntimeError(answer["error"]["desc"])
        if "return" in answer:
            return answer["return"]
        # What else comes is an event.


def serve(link: Conduit) -> None:
    """Do what QEMU does with three commands."""
    with link, Reader(link) as reader:
        link.transfer(data=b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        while True:
            command = receive(reader)
            if command["execute"] == "quit":
                link.transfer(data=b'{"event": "SHUTDOWN"}\r\n{"return": {}}\r\n')
                return
            if command["execute"] == "getfd":
                (descriptor,) = reader.take_fds()
                print(command["arguments"]["fdname"], "is a", descriptor.kind)
                descriptor.close()
            link.transfer(data=b'{"return": {}}\r\n')


def main() -> None:
    ours, theirs = Conduit.pair()
    threading.Thread(target=serve, args=(theirs,)).start()
    fd = os.open(os.devnull, os.O_RDONLY)
    with ours, Reader(ours) as reader:
        print(*receive(reader))
        execute(ours, reader, "qmp_capabilities")
        execute(ours, reader, "getfd", fd, fdname="backing")
        print(execute(ours, reader, "quit"))
    os.close(fd)


if __name__ == "__main__":
    main()
