"""Texts on a terminal are shown as they are, whatever they look like and whatever the terminal can show."""

from __future__ import annotations

import io

from rich.console import Console

from homeostat.page.terminal import Printer


def printed(text: str, encoding: str = "utf-8", **options) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")
    Printer(Console(file=stream, width=60, **options)).text(text)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_what_looks_like_markup_is_text() -> None:
    assert printed("[red]no[/red] [bold]") == "[red]no[/red] [bold]\n"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in printed("a\x1b[31mb\x00")


def test_a_terminal_without_unicode_gets_its_nearest() -> None:
    assert printed("0.5 → 0.05, 2 × 3 −1 … 名", "ascii") == "0.5 -> 0.05, 2 x 3 -1 ... ?\n"


def test_what_is_said_keeps_its_lines_and_has_no_pictures_and_no_commands() -> None:
    stream = io.StringIO()
    text = f"  {'long ' * 20}:x:\n[red]\x1b]0;owned\x07\x1b[2J"
    Printer(Console(file=stream, width=40, force_terminal=True)).say(text)
    assert stream.getvalue() == f"  {'long ' * 20}:x:\n[red]�]0;owned��[2J\n"
