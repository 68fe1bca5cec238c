"""Text on a terminal as it is: no markup, no control characters, nothing that the terminal's encoding lacks."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from homeostat.page.text import clean

# For terminals whose encoding lacks these characters.
ASCII = str.maketrans({"→": "->", "×": "x", "▲": "^", "▼": "v", "○": "o", "─": "-", "│": "|", "•": "*", "★": "*"}) | {
    **str.maketrans({"−": "-", "–": "-", "·": ",", "…": "...", "²": "2", "∞": "inf", "◇": "o", "✖": "x", "\u00a0": " "})
}


class Printer:
    """Prints texts as they are: no markup, no control characters, nothing that the terminal's encoding lacks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        try:
            "→×▲○─│★−…✖".encode(console.encoding)
            self.unicode = not console.options.ascii_only
        except (UnicodeEncodeError, LookupError):
            self.unicode = False

    def plain(self, text: str) -> str:
        return self.code(re.sub(r"[ \t\r\n]+", " ", clean(text)).strip())

    def code(self, text: str) -> str:
        """The text with its spaces."""
        line = clean(text)
        if self.unicode:
            return line
        encoding = self.console.encoding if not self.console.options.ascii_only else "ascii"
        return line.translate(ASCII).encode(encoding, "replace").decode(encoding)

    def cell(self, text: str, style: str = "") -> Text:
        return Text(self.plain(text), style=style, overflow="fold")

    def text(self, text: str, style: str = "") -> None:
        self.console.print(self.cell(text, style))

    def say(self, text: str, style: str = "") -> None:
        """Print a text whose lines stay as they are, however narrow the terminal: they may be copied."""
        self.console.print(Text(self.code(text), style=style), soft_wrap=True)

    def heading(self, text: str) -> None:
        self.console.print()
        self.text(text, "bold")

    def item(self, mark: str, text: str, style: str = "") -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self.cell(mark, style), self.cell(text, style))
        self.console.print(grid)

    def table(self, table: Table) -> None:
        self.console.print(table)

    def more(self, count: int) -> None:
        """Say that a list goes on."""
        if count > 0:
            self.text(f"… {count:,} more in the report", "dim")
