"""The pages of the command line, from the parser that reads it."""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Iterator
from typing import Any
from unittest import mock

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from conduit.__main__ import main


class _FoundParser(Exception):  # noqa: N818
    """Carries the parser out of a command that was about to use it."""


def parser_of(command: Any) -> argparse.ArgumentParser:
    """Return the parser that a command makes for its arguments, wherever it makes it."""

    def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise _FoundParser(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            command(["--help"])
        except _FoundParser as found:
            parser: argparse.ArgumentParser = found.args[0]
            return parser
    raise LookupError("the command made no parser")


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Go through the commands of a parser: the name, what it does, its own parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.dest, choice.help or "", action.choices[choice.dest]


def described(name: str, what: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Write one command in reStructuredText."""
    yield f".. program:: {parser.prog}"
    yield ""
    description = parser.description or what
    yield escaped(description[:1].upper() + description[1:].removesuffix(".") + ".")
    yield ""
    # One line, as it would be typed.
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split()).replace(" [-h]", "")
    yield from [".. code-block:: text", "", f"    {usage}", ""]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
            continue
        metavar = action.metavar or action.dest.upper()
        value = "" if action.nargs == 0 else f" {metavar}"
        names = ", ".join(f"{option}{value}" for option in action.option_strings) or metavar
        yield f".. option:: {names}"
        yield ""
        text = parser._get_formatter()._expand_help(action) if action.help else ""
        yield f"    {escaped(text)}"
        yield ""
    for paragraph in (parser.epilog or "").split("\n\n"):
        for indented, lines in itertools.groupby(
            paragraph.splitlines(), lambda line: line.startswith(" ")
        ):
            if indented:
                block = textwrap.indent(textwrap.dedent("\n".join(lines)), "    ")
                yield from [".. code-block:: text", "", *block.splitlines(), ""]
            else:
                yield from [escaped(" ".join(lines)), ""]


def escaped(text: str) -> str:
    """Return text that reStructuredText reads as nothing but text, with quoted code and options."""
    text = re.sub(r"([\\*_|]|--(?= ))", r"\\\1", text)
    text = re.sub(r"`([^`]*)`", r"``\1``", text)
    return re.sub(r"(?<!\S)(--[a-z-]+)", r"``\1``", text)


class CommandLine(SphinxDirective):
    """``.. command-line::`` is a section for each command, from the parser of ``conduit``."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        sections: list[nodes.Node] = []
        for name, what, parser in commands(parser_of(main)):
            section = nodes.section(ids=[f"conduit-{name}"], names=[f"conduit {name}"])
            self.state.document.note_explicit_target(section)
            section += nodes.title("", "", nodes.literal("", f"conduit {name}"))
            lines = StringList(list(described(name, what, parser)), source=f"conduit {name}")
            self.state.nested_parse(lines, 0, section)
            sections.append(section)
        return sections


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call the above."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
