"""An ASGI application on granian, on the socket that was passed: granian has no option for that."""

from app import listener
from granian import Granian
from granian.constants import Interfaces
from granian.net import SocketHolder


def take() -> None:
    server._shd = SocketHolder(sock.fileno(), False, 2048)
    server._sso = None


if __name__ == "__main__":
    sock = listener()
    sock.set_inheritable(True)
    server = Granian("app:asgi", interface=Interfaces.ASGI, log_level="warning")
    server._init_shared_socket = take
    server.serve()
