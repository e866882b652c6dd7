"""The command line: ``conduit run``, ``connect``, ``send`` and ``receive``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from conduit import __version__
from conduit.cli import connect, receive, run, send
from conduit.cli.addresses import Address, parse_address
from conduit.cli.messages import CommandError, complain

_ADDRESSES = """\
ADDR is HOST:PORT, [IPV6]:PORT, udp:HOST:PORT, or a Unix socket: /PATH, ./PATH or @ABSTRACT.

COMMAND finds the sockets as systemd would pass them: from descriptor 3 on, in the order of
--listen, counted in LISTEN_FDS and named in LISTEN_FDNAMES ("unknown" without a NAME). It says
READY=1 to NOTIFY_SOCKET when it serves, unless --ready-after is given. The same line run again
takes the sockets over, and SIGTERM tells the old COMMAND to finish what it has begun.

The exit code is that of COMMAND, or 128 and the number of the signal that ended it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, the process's own if none is given, and return the exit code.

    A failure is one line on standard error.
    """
    logging.basicConfig(format="conduit: %(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What follows the first "--" is COMMAND's, whatever it looks like.
    end = words.index("--") if "--" in words else len(words)
    command = words[end + 1 :]
    parser = _parser()
    options, unknown = parser.parse_known_args(words[:end])
    if unknown:
        hint = ""
        if options.what in ("run", "receive") and not command and not unknown[0].startswith("-"):
            hint = "; a COMMAND stands after --"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if command and options.what not in ("run", "receive"):
        parser.error(f"{options.what} runs no COMMAND")
    try:
        if options.what == "run":
            if not command:
                parser.error("run needs a COMMAND, after --")
            return run.run(
                run.Options(
                    options.control,
                    _distinct(parser, options.listen),
                    command,
                    options.ready_after,
                    options.timeout,
                )
            )
        if options.what == "connect":
            connect.connect(options.host, options.port)
        elif options.what == "send":
            send.send(options.socket, options.file)
        else:
            receive.receive(options.socket, command)
    except CommandError as exc:
        complain(exc)
        return exc.code
    except OSError as exc:
        complain(exc)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conduit", description="Pass open descriptors between processes."
    )
    parser.add_argument("--version", action="version", version=f"conduit {__version__}")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    runs = commands.add_parser(
        "run",
        help="keep listening sockets and run a server on them, replaced without a gap",
        usage="conduit run --control PATH --listen [NAME=]ADDR ... [OPTION ...] -- COMMAND ...",
        epilog=_ADDRESSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs.add_argument(
        "--control",
        required=True,
        metavar="PATH",
        help="Unix socket by which a successor finds this run; @NAME is abstract",
    )
    runs.add_argument(
        "--listen",
        required=True,
        action="append",
        type=_address,
        metavar="[NAME=]ADDR",
        help="an address to listen on; can be given many times",
    )
    runs.add_argument(
        "--ready-after",
        type=_seconds,
        metavar="SECONDS",
        help="take COMMAND for ready when it has run so long, if it has not said so before",
    )
    runs.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="give COMMAND so long to be ready, and a successor too (default: 60)",
    )

    connect = commands.add_parser(
        "connect",
        help="connect to HOST PORT and pass the connection over standard output "
        "(OpenSSH: ProxyUseFdpass)",
    )
    connect.add_argument("host", metavar="HOST")
    connect.add_argument("port", metavar="PORT")

    send = commands.add_parser("send", help="pass an open file to whoever listens at SOCKET")
    send.add_argument("socket", metavar="SOCKET")
    send.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="standard input if missing or -"
    )

    receive = commands.add_parser(
        "receive",
        help="take one descriptor at SOCKET: COMMAND's standard input, or copied to "
        "standard output",
        usage="conduit receive SOCKET [-- COMMAND ...]",
    )
    receive.add_argument("socket", metavar="SOCKET")
    return parser


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _distinct(parser: argparse.ArgumentParser, addresses: list[Address]) -> list[Address]:
    seen: set[str] = set()
    for address in addresses:
        if address.key in seen:
            parser.error(f"--listen has {address.key} twice")
        seen.add(address.key)
    return addresses
