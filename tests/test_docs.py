"""The pages of docs/parts: their order, their examples, and that their reference is what the docstrings say."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_references_are_what_the_docstrings_say() -> None:
    run = subprocess.run(
        [sys.executable, str(DOCS / "reference.py"), "--check"], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}\nRun `make docs`."
