"""Write the reference of docs/doctor.md and every page in docs/parts from the docstrings, their index, and docs/rules.

Such a page ends with `<!-- reference: dotted.name ... -->`; what follows is made here. The pages of
docs/rules are the docstrings of the doctor's rules. `make docs` runs it; with --check it only says which pages are out
of date, and exits with 1 if any is.
"""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from homeostat.doctor.rules import RULES
from homeostat.doctor.show.rulebook import families
from homeostat.doctor.show.rulebook import markdown as markdown_of_rule

DOCS = Path(__file__).parent
PAGES, RULE_PAGES, GUIDE = DOCS / "parts", DOCS / "rules", DOCS / "doctor.md"
_RULES_HEAD = (
    "What the doctor looks for. A code stays what it is: its letters say what the rule is about. "
    "`homeostat explain CODE` prints the same page. [The guide](../doctor.md) says how findings come about."
)
_MARK = re.compile(r"<!-- reference:(?P<names>[^>]*)-->\n?")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Source|Example|Yields):", re.MULTILINE)


def main(check: bool) -> int:
    """Bring all pages up to date, or count those that are not."""
    pages = sorted(page for page in PAGES.glob("*.md") if page.name != "README.md")
    wanted = {page: with_reference(page.read_text(encoding="utf-8")) for page in pages}
    wanted[PAGES / "README.md"] = index(wanted)
    wanted[GUIDE] = with_reference(GUIDE.read_text(encoding="utf-8"))
    wanted |= rule_pages()
    stale = [page for page, text in wanted.items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    left_over = [page for page in RULE_PAGES.glob("*.md") if page not in wanted]
    for page in stale + left_over:
        made = "removed" if page in left_over else "written"
        print(f"{'out of date' if check else made}: docs/{page.relative_to(DOCS)}")
        if check:
            continue
        if page in left_over:
            page.unlink()
        else:
            page.parent.mkdir(exist_ok=True)
            page.write_text(wanted[page], encoding="utf-8")
    return int(check and bool(stale or left_over))


def with_reference(page: str) -> str:
    """The page with its reference made anew."""
    mark = _MARK.search(page)
    if mark is None:
        raise SystemExit(f"No <!-- reference: ... --> in the page that begins with {page[:40]!r}.")
    entries = [entry(name) for name in mark["names"].split()]
    return "\n".join([page[: mark.start()].rstrip(), "", mark[0].strip(), "", *entries])


def index(pages: dict[Path, str]) -> str:
    """A table of the pages with their first sentences."""
    rows = []
    for page, text in pages.items():
        title, _, rest = text.partition("\n")
        sentence = " ".join(rest.strip().split("\n\n")[0].split())
        rows.append(f"| [{title.lstrip('# ')}]({page.name}) | {sentence} |")
    head = "Each page says what a part does, when it helps and when it hurts, and how to use it alone or as a factor."
    return "\n".join(["# The parts", "", head, "", "| part | what it is |", "|---|---|", *rows, ""])


def rule_pages() -> dict[Path, str]:
    """A page for each of the doctor's rules, and the list of them by family."""
    codes = [rule.code for rule in RULES]
    grouped = families(RULES)
    pages = {
        RULE_PAGES / f"{page.code}.md": markdown_of_rule(page, codes) for family in grouped for page in family.pages
    }
    lines = ["# The rules", "", _RULES_HEAD, ""]
    for family in grouped:
        lines += [f"## {family.letters}: {family.title}", "", "| rule | what it is |", "|---|---|"]
        lines += [f"| [{page.code}]({page.code}.md) `{page.slug}` | {page.summary} |" for page in family.pages]
        lines.append("")
    return {**pages, RULE_PAGES / "README.md": "\n".join(lines)}


def entry(name: str) -> str:
    """One function or class: signature, docstring, and a class's public methods."""
    thing = find(name)
    lines = [f"### `{_called(name)}`", "", "```text", signature(name, thing), "```", "", markdown(thing), ""]
    if inspect.isclass(thing):
        for method_name, method in vars(thing).items():
            documented = not method_name.startswith("_") and inspect.isfunction(method) and method.__doc__
            if documented and method_name != "forward":
                lines += [f"**`.{signature(method_name, method)}`**", "", markdown(method), ""]
    return "\n".join(lines)


def find(name: str) -> Any:
    """The object that a dotted name means: a module's attribute, or one of its classes' methods."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part)
        return thing
    raise SystemExit(f"There is no {name}.")


def signature(name: str, thing: Any) -> str:
    """name(arguments), without types: the docstring gives them with their meaning."""
    parameters = inspect.signature(thing).parameters.values()
    shown = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"{name.rpartition('.')[2]}{inspect.Signature([p for p in shown if p.name != 'self'])}"


def markdown(thing: Any) -> str:
    """A docstring as Markdown: sections become bold words with lists, examples become code."""
    text = inspect.cleandoc(thing.__doc__ or "")
    starts = [match.start() for match in _SECTION.finditer(text)]
    cuts = [0, *starts, len(text)] if not starts or starts[0] else [*starts, len(text)]
    pieces = [text[begin:end].rstrip() for begin, end in pairwise(cuts)]
    return "\n\n".join(_piece(piece) for piece in pieces if piece)


def _piece(text: str) -> str:
    section = _SECTION.match(text)
    if section is None:
        return text
    body = text[section.end() :].strip("\n")
    if section[1] == "Example":
        return f"**Example**\n\n```python\n{inspect.cleandoc(body)}\n```"
    if section[1] in ("Args", "Attributes"):
        items = re.split(r"\n(?=    \S)", "\n" + body)
        return f"**{section[1]}**\n\n" + "\n".join(f"- {_as_item(item)}" for item in items if item.strip())
    return f"**{section[1]}**: " + " ".join(body.split())


def _as_item(text: str) -> str:
    names, colon, meaning = " ".join(text.split()).partition(": ")
    return f"`{names}`: {meaning}" if colon else names


def _called(name: str) -> str:
    """The name as a user writes it."""
    if name.startswith("homeostat.doctor."):
        return f"hs.{name.rpartition('.')[2]}"
    return name.replace("homeostat.parts.", "").replace("homeostat.training.", "").replace("homeostat.", "")


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
