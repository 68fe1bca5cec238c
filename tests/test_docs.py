"""The pages of docs: their order, their examples, their links, and that what docstrings say is in them."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from homeostat.doctor.rules import RULES
from homeostat.doctor.show.rulebook import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in (DOCS / "parts").glob("*.md") if page.name != "README.md")
HEADINGS = [
    "What it does",
    "When it helps",
    "When it hurts",
    "Defaults",
    "In your own loop",
    "As a factor",
    "Sources",
    "Reference",
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_there_are_pages() -> None:
    assert len(PAGES) >= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_headings_stand_in_their_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    """The reference's examples are doctests of the source; here run those that only the page has."""
    prose = page.read_text(encoding="utf-8").partition("\n## Reference")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", prose, re.MULTILINE | re.DOTALL)
    code = "\n".join(block for block in blocks if ">>>" in block)
    examples = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
    assert examples.examples, "a page shows its part at work"
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=output.append)
    assert result.failed == 0, "".join(output)


@pytest.mark.parametrize(("name", "least"), [("claims", 3), ("designs", 20), ("doctor", 10), ("studies", 10)])
def test_the_examples_of_the_guides_run(name: str, least: int) -> None:
    prose = (DOCS / f"{name}.md").read_text(encoding="utf-8").partition("\n## Reference")[0]
    output: list[str] = []
    examples = doctest.DocTestParser().get_doctest(prose, {}, f"{name}.md", None, 0)
    result = doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=output.append)
    assert result.attempted > least
    assert result.failed == 0, "".join(output)


def test_every_rule_has_a_page_with_its_sections_in_their_order() -> None:
    for rule in RULES:
        text = (DOCS / "rules" / f"{rule.code}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {rule.code} `{rule.slug}`\n")
        assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == SECTIONS


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([\w./-]+\.\w+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_references_are_what_the_docstrings_say() -> None:
    run = subprocess.run(
        [sys.executable, str(DOCS / "reference.py"), "--check"], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}\nRun `make docs`."
