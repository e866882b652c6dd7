"""The command line: its arguments, and the call of the command they name."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from conduit import __version__
from conduit.cli.addresses import Address, parse_address
from conduit.cli.messages import CommandError, Log, complain

_WITH_COMMAND = ("run", "receive", "reload")

_SIGNALS = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH")

_RUN = """\
ADDR is HOST:PORT, [IPV6]:PORT, udp:HOST:PORT, or a Unix socket: /PATH, ./PATH or @ABSTRACT.
:PORT and [::]:PORT are all addresses of both families.

COMMAND finds the sockets as systemd would pass them: from descriptor 3 on, in the order of
--listen, counted in LISTEN_FDS and named in LISTEN_FDNAMES ("unknown" without a NAME). In the words
of COMMAND, {fd} is the number of the first socket, and {NAME} of the one of that name.

COMMAND is ready when it says READY=1 to NOTIFY_SOCKET and has the sockets, or when it is seen
waiting for connections on each of them. Only then is the one before it told to finish: by `conduit
reload`, or by the same line run again, which takes the sockets over.

The exit code is that of COMMAND, or 128 and the number of the signal that ended it.

examples:
  conduit run --control /run/app/control --listen :8000 -- gunicorn app:app
  conduit run --control ./control --listen 127.0.0.1:8000 -- uvicorn app:app --fd {fd}
  conduit run --control /control --listen :80 --reload-signal HUP -- ./server"""

_RELOAD = """\
The running one starts the next COMMAND, waits until it serves, and has the old one finish. The exit
code is 0 once it serves. Otherwise the old one goes on serving; 3 means that nothing serves.

examples:
  conduit reload --control /run/app/control
  conduit reload --control /run/app/control -- /opt/app-2/bin/serve"""

_STATUS = """\
The exit code is 3 if nothing serves.

examples:
  conduit status --control /run/app/control
  conduit status --control /run/app/control --json"""

_STOP = """\
example:
  conduit stop --control /run/app/control"""

_CONNECT = """\
example, in ~/.ssh/config:
  ProxyCommand conduit connect %h %p
  ProxyUseFdpass yes"""

_SEND = """\
examples:
  conduit send ./socket notes.txt
  tail -f log | conduit send ./socket"""

_RECEIVE = """\
examples:
  conduit receive ./socket >copy
  conduit receive ./socket -- wc -l"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, the process's own if none is given, and return the exit code.

    A failure is one line on standard error.
    """
    logging.basicConfig(handlers=[Log()], level=logging.WARNING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What follows the first "--" is COMMAND's, whatever it looks like.
    end = words.index("--") if "--" in words else len(words)
    command = words[end + 1 :]
    parser = _parser()
    options, unknown = parser.parse_known_args(words[:end])
    if unknown:
        hint = ""
        if options.what in _WITH_COMMAND and not command and not unknown[0].startswith("-"):
            hint = "; COMMAND comes after --"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if command and options.what not in _WITH_COMMAND:
        parser.error(f"{options.what} takes no COMMAND")
    if options.what == "run" and not command:
        parser.error("run needs a COMMAND, after --")
    try:
        return _call(parser, options, command)
    except CommandError as exc:
        complain(exc)
        return exc.code
    except (OSError, UnicodeError) as exc:
        # Text that the locale has no bytes for, as well.
        complain(exc)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _call(parser: argparse.ArgumentParser, options: argparse.Namespace, command: list[str]) -> int:
    """Run the command. Nothing is imported for the other commands."""
    if options.what == "run":
        return _run(parser, options, command)
    if options.what == "reload":
        from conduit.cli.reload import reload

        reload(options.control, command, options.timeout)
    elif options.what == "status":
        from conduit.cli.status import status

        status(options.control, options.json)
    elif options.what == "stop":
        from conduit.cli.stop import stop

        stop(options.control)
    elif options.what == "connect":
        from conduit.cli.connect import connect

        connect(options.host, options.port)
    elif options.what == "send":
        from conduit.cli.send import send

        send(options.socket, options.file)
    else:
        from conduit.cli.receive import receive

        receive(options.socket, command)
    return 0


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace, command: list[str]) -> int:
    from conduit.cli import plan
    from conduit.cli.run import Options, check, run

    if options.reload_signal in (signal.SIGTERM, signal.SIGINT, options.stop_signal):
        parser.error("--reload-signal: this signal ends `conduit run`")
    timeout = options.timeout
    if isinstance(options.ready, float):
        # Not before the SECONDS after which COMMAND counts as ready.
        timeout = max(timeout, options.ready + plan.GRACE)
    asked = Options(
        options.control,
        _distinct(parser, options.listen),
        command,
        plan.Policy(
            timeout,
            options.restart,
            options.stop_signal,
            options.reload_signal,
            options.drain_timeout,
        ),
        options.ready,
        not options.no_listen_pid,
        options.mode,
        (options.owner, options.group),
        options.backlog,
        options.fdstore,
    )
    if options.check:
        check(asked)
        return 0
    return run(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conduit", description="Pass open descriptors between processes."
    )
    parser.add_argument("--version", action="version", version=f"conduit {__version__}")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_run(commands)
    reload = _command(
        commands,
        "reload",
        "have a running `conduit run` replace COMMAND, and tell whether the new one serves",
        _RELOAD,
        usage="conduit reload --control PATH [--timeout SECONDS] [-- COMMAND ...]",
    )
    _add_control(reload)
    reload.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="how long COMMAND may take to be ready (default: what `conduit run` was told)",
    )
    status = _command(
        commands,
        "status",
        "show what serves, since when, on which sockets, and what drains",
        _STATUS,
    )
    _add_control(status)
    status.add_argument("--json", action="store_true", help="for programs")
    stop = _command(
        commands, "stop", "end a running `conduit run`, and wait until it has finished", _STOP
    )
    _add_control(stop)

    connect = _command(
        commands,
        "connect",
        "connect to HOST PORT and pass the connection over standard output "
        "(OpenSSH: ProxyUseFdpass)",
        _CONNECT,
    )
    connect.add_argument("host", metavar="HOST")
    connect.add_argument("port", metavar="PORT")

    send = _command(commands, "send", "pass an open file to whoever listens at SOCKET", _SEND)
    send.add_argument("socket", metavar="SOCKET")
    send.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="standard input if missing or -"
    )

    receive = _command(
        commands,
        "receive",
        "take one descriptor at SOCKET: COMMAND's standard input, or copied to standard output",
        _RECEIVE,
        usage="conduit receive SOCKET [-- COMMAND ...]",
    )
    receive.add_argument("socket", metavar="SOCKET")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    does: str,
    more: str,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=does,
        usage=usage,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_control(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--control",
        required=True,
        metavar="PATH",
        help="Unix socket by which a running `conduit run` is found; @NAME is abstract",
    )


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    runs = _command(
        commands,
        "run",
        "keep listening sockets and run a server on them, replaced without a gap",
        _RUN,
        usage="conduit run --control PATH [--listen [NAME=]ADDR ...] [OPTION ...] -- COMMAND ...",
    )
    _add_control(runs)
    add = runs.add_argument
    add(
        "--listen",
        default=[],
        action="append",
        type=_address,
        metavar="[NAME=]ADDR",
        help="an address to listen on; can be given many times (default: what the service manager "
        "passed, or else all that the running one has)",
    )
    add(
        "--ready",
        type=_ready,
        default="either",
        metavar="WHAT",
        help="what shows that COMMAND is ready: notify (it says READY=1), accepting (it is seen "
        "waiting on each socket), or SECONDS that it has run, which show nothing (default: the "
        "first two, whichever comes first)",
    )
    add(
        "--ready-after",
        dest="ready",
        type=_seconds,
        metavar="SECONDS",
        help="as --ready SECONDS: a guess, for what can be seen in no other way",
    )
    add(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long COMMAND, or a successor, may take to be ready (default: 60)",
    )
    add(
        "--restart",
        choices=("no", "on-failure", "always"),
        default="no",
        help="start COMMAND again when it ends by itself, after a pause that grows from 0.1 to 30 "
        "seconds; connections wait meanwhile (default: no)",
    )
    add(
        "--stop-signal",
        type=_signal,
        default=signal.SIGTERM,
        metavar="SIGNAL",
        help="what tells COMMAND to finish: QUIT for nginx, USR1 for HAProxy (default: TERM)",
    )
    add(
        "--reload-signal",
        type=_signal,
        default=0,
        metavar="SIGNAL",
        help="does what `conduit reload` does, and is not passed on (HUP, say)",
    )
    add(
        "--drain-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="kill a COMMAND that was told to finish, and has not after so long (default: 10 if it "
        "goes on accepting, otherwise never)",
    )
    add(
        "--no-listen-pid",
        action="store_true",
        help="leave LISTEN_PID out, for a COMMAND behind a wrapper that forks",
    )
    add("--mode", type=_mode, default=0o600, help="of Unix sockets, octal (default: 600)")
    add("--owner", type=_user, default=-1, metavar="USER", help="of Unix sockets")
    add("--group", type=_group, default=-1, metavar="GROUP", help="of Unix sockets")
    add(
        "--backlog",
        type=_backlog,
        default=4096,
        metavar="NUMBER",
        help="connections that may wait (default: 4096)",
    )
    add(
        "--fdstore",
        action="store_true",
        help="have systemd keep the sockets: connections wait while this is restarted, and after a "
        "crash (the unit needs FileDescriptorStoreMax=)",
    )
    add("--check", action="store_true", help="tell what would happen, and do nothing")


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except (ValueError, OSError) as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _ready(text: str) -> str | float:
    return text if text in ("either", "notify", "accepting") else _seconds(text)


def _signal(text: str) -> int:
    name = text.upper().removeprefix("SIG")
    if name not in _SIGNALS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(_SIGNALS)}")
    return signal.Signals[f"SIG{name}"]


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode, such as 660")
    return mode


def _id(text: str) -> int:
    # The highest id is (uid_t)-1, which stands for no user.
    return _whole(text, (1 << 32) - 2)


def _backlog(text: str) -> int:
    return _whole(text, (1 << 31) - 1)


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most}")
    return int(text)


def _user(text: str) -> int:
    import pwd

    try:
        return _id(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError as exc:
        raise argparse.ArgumentTypeError(f"there is no user {text!r}") from exc


def _group(text: str) -> int:
    import grp

    try:
        return _id(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError as exc:
        raise argparse.ArgumentTypeError(f"there is no group {text!r}") from exc


def _distinct(parser: argparse.ArgumentParser, addresses: list[Address]) -> list[Address]:
    seen: set[str] = set()
    for address in addresses:
        if address.key in seen:
            parser.error(f"--listen has {address.key} twice")
        seen.add(address.key)
    return addresses
