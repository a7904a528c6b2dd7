"""The man pages, in the language of man(7): one of pgstash, and one of each command.

They have the texts of ``--help``, and the page of pgstash has all settings and exit statuses too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import typer.main

from pgstash import cli

FOLDER = "docs/reference/man"


def man_pages(
    mark: str, settings: Iterable[tuple[str, str]], statuses: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """Return the text of each page, by its path in the repository.

    ``settings`` and ``statuses`` are names and what they mean, in Markdown.
    """
    program: Any = typer.main.get_command(cli._cli)  # noqa: SLF001 - the program to describe
    commands: dict[str, Any] = program.commands
    pages = {"pgstash": _page_of_program(program, settings, statuses)}
    for name, command in commands.items():
        pages[f"pgstash-{name}"] = _page_of_command(f"pgstash {name}", command)
    return {
        f"{FOLDER}/{name}.1": "\n".join([f'.\\" {mark}', *lines]) + "\n"
        for name, lines in pages.items()
    }


def _page_of_program(
    program: Any,  # noqa: ANN401 - classes of typer that it does not export
    settings: Iterable[tuple[str, str]],
    statuses: Iterable[tuple[str, str]],
) -> list[str]:
    summary, *rest = program.help.split("\n\n")
    lines = [*_head("pgstash", summary), *_synopsis("pgstash", program)]
    lines += [".SH DESCRIPTION", *_paragraphs(rest), *_options("SH", "pgstash", program)]
    lines += [".SH COMMANDS"]
    for name, command in program.commands.items():
        lines += _item(f"\\fBpgstash\\-{_text(name)}\\fR(1)", _summary(command))
    lines += [".SH ENVIRONMENT"]
    for name, meaning in settings:
        lines += _item(f"\\fB{_text(name)}\\fR", meaning)
    lines += [".SH EXIT STATUS"]
    for status, meaning in statuses:
        lines += _item(f"\\fB{_text(status)}\\fR", meaning)
    return lines


def _page_of_command(path: str, command: Any) -> list[str]:  # noqa: ANN401 - see above
    lines = _head(path.replace(" ", "-"), _summary(command))
    inner = getattr(command, "commands", {})
    for name in inner or [""]:
        lines += _synopsis(f"{path} {name}".rstrip(), inner.get(name, command))
    lines += [".SH DESCRIPTION", *_paragraphs(command.help.split("\n\n"))]
    if not inner:
        lines += _options("SH", path, command)
    for name, each in inner.items():
        lines += [f'.SH "{path} {name}"', *_paragraphs(each.help.split("\n\n"))]
        lines += _options("SS", f"{path} {name}", each)
    return [*lines, ".SH SEE ALSO", ".BR pgstash (1)"]


def _head(name: str, summary: str) -> list[str]:
    title = f'.TH "{_text(name.upper())}" "1" "" "pgstash" "pgstash"'
    return [title, ".SH NAME", f"{_text(name)} \\- {_text(summary.rstrip('.'))}", ".SH SYNOPSIS"]


def _synopsis(path: str, command: Any) -> list[str]:  # noqa: ANN401 - see above
    pieces = " ".join(command.collect_usage_pieces(_context(path, command)))
    return [f".B {_text(path)}", _text(pieces), ".br"]


def _context(path: str, command: Any) -> Any:  # noqa: ANN401 - see above
    names = ["-h", "--help"]
    return command.context_class(command, info_name=path, help_option_names=names)


def _options(level: str, path: str, command: Any) -> Iterator[str]:  # noqa: ANN401 - see above
    context = _context(path, command)
    records = (each.get_help_record(context) for each in command.get_params(context))
    yield f".{level} OPTIONS"
    for label, meaning in (record for record in records if record):
        yield from _item(f"\\fB{_text(label)}\\fR", meaning)


def _summary(command: Any) -> str:  # noqa: ANN401 - see above
    paragraph: str = command.help.split("\n\n")[0]
    return " ".join(paragraph.split())


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield ".PP"
        yield _text(" ".join(text.split()))


def _item(label: str, meaning: str) -> list[str]:
    return [".TP", label, _text(meaning)]


def _text(text: str) -> str:
    """Return Markdown as roff: code in bold, and nothing that begins a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text
