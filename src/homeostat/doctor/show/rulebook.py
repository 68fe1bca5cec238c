"""The rules as pages: what `homeostat explain` prints, docs/rules holds and a report embeds, from the docstrings alone.

Nothing is random.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from homeostat.doctor.rule import Rule
from homeostat.doctor.show.exhibits import sentence
from homeostat.doctor.show.selection import codes_beginning

SECTIONS = (
    "What it checks",
    "Why it hurts",
    "Threshold and its source",
    "False alarms",
    "Repair and its safety",
    "References",
)
TITLES = {
    "INI": "initial weights",
    "SIG": "signals on their way through the network",
    "GRD": "gradients",
    "NRM": "normalization",
    "OPT": "the optimizer and its settings",
    "LOS": "the loss, and the outputs it is given",
    "DAT": "data, labels and augmentation",
    "GEN": "generalization, and the length of the training",
}
"""What the letters of the codes stand for."""

_HEADING = re.compile(
    rf"^(?:#+ *|\*\*)?({'|'.join(SECTIONS)})(?:\*\*)?[ \t]*(?:[:.—–-][ \t]*|\n-+[ \t]*$|$)", re.MULTILINE
)


@dataclass(frozen=True)
class RulePage:
    """The documentation of one rule."""

    code: str
    slug: str
    summary: str
    """The first paragraph, on one line."""
    sections: tuple[tuple[str, str], ...]
    """Headings, in the order of `SECTIONS`, and their texts, in which an empty line parts paragraphs."""
    causes: tuple[str, ...]
    requires: tuple[str, ...]

    @property
    def name(self) -> str:
        """Code and slug."""
        return f"{self.code} {self.slug}"


@dataclass(frozen=True)
class Family:
    """The rules whose codes begin with the same letters."""

    letters: str
    title: str
    """What they are about."""
    pages: tuple[RulePage, ...]


def page_of(rule: type[Rule]) -> RulePage:
    """The page that a rule's docstring makes."""
    text = inspect.cleandoc(rule.__doc__ or "")
    found = list(_HEADING.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    bodies = {match[1]: _tidy(text[match.end() : end]) for match, end in zip(found, ends, strict=True)}
    summary = " ".join(text[: found[0].start() if found else len(text)].split("\n\n")[0].split())
    sections = tuple((heading, bodies[heading]) for heading in SECTIONS if bodies.get(heading))
    return RulePage(rule.code, rule.slug, summary, sections, rule.causes, rule.requires)


def families(rules: Iterable[type[Rule]]) -> list[Family]:
    """The rules by the letters of their codes, families in the order in which they come, rules by number."""
    grouped: dict[str, list[type[Rule]]] = {}
    for rule in rules:
        grouped.setdefault(rule.code.rstrip("0123456789"), []).append(rule)
    return [
        Family(
            letters,
            TITLES.get(letters, letters),
            tuple(page_of(rule) for rule in sorted(members, key=lambda rule: rule.code)),
        )
        for letters, members in grouped.items()
    ]


def pages_for(asked: str, rules: Iterable[type[Rule]]) -> list[RulePage]:
    """The pages for a code, the beginning of codes, or a slug.

    Raises: InvalidValue if there are none, with the nearest code.
    """
    pages = {rule.code: page_of(rule) for rule in rules}
    named = [page for page in pages.values() if page.slug == asked.strip().lower()]
    return named or [pages[code] for code in codes_beginning("explain", asked, pages)]


def markdown(page: RulePage, known: Iterable[str]) -> str:
    """The page as Markdown, with links to the pages of the rules it names.

    Args:
        known: codes that have a page beside this one.
    """
    others = set(known) - {page.code}

    def linked(text: str) -> str:
        return re.sub(r"\b[A-Z]{3}\d{3}\b", lambda m: f"[{m[0]}]({m[0]}.md)" if m[0] in others else m[0], text)

    facts = [f"Causes: {', '.join(f'`{cause}`' for cause in page.causes)}."] if page.causes else []
    facts += [f"Explained by: {', '.join(page.requires)}, where one of them stands."] if page.requires else []
    parts = [f"# {page.code} `{page.slug}`", page.summary, " ".join(facts)]
    for heading, body in page.sections:
        parts += [f"## {heading}", body]
    return "\n\n".join([parts[0], *(linked(part) for part in parts[1:] if part)]) + "\n"


def _tidy(text: str) -> str:
    """A section's text with its common indentation taken off, however its first line stands."""
    first, _, rest = text.strip("\n").partition("\n")
    return sentence(f"{first.strip()}\n{textwrap.dedent(rest)}".strip())
