"""What a reader at a terminal may rely on: all findings and changes, in any width and encoding; rules as pages."""

from __future__ import annotations

import io

import invented_examinations as invented
import pytest
from rich.console import Console

from homeostat.doctor.show.rulebook import SECTIONS, families, markdown, page_of, pages_for
from homeostat.doctor.show.table import print_examination, print_families, print_page, print_repair
from homeostat.errors import InvalidValue


def printed(show, *args, width: int = 100, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")
    show(*args[:1], Console(file=stream, width=width), *args[1:])
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("kind", invented.KINDS)
@pytest.mark.parametrize(("width", "encoding"), [(120, "utf-8"), (40, "utf-8"), (80, "ascii")])
def test_the_terminal_shows_every_finding_in_any_width(kind: str, width: int, encoding: str) -> None:
    examination = invented.examination(kind)
    text = printed(print_examination, examination, width=width, encoding=encoding)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    if kind not in ("hostile", "deep"):
        words = "".join(text.split())
        for finding in examination.findings:
            assert finding.code in words
            assert "".join(finding.message.split()) in words or width > 70


def test_the_terminal_says_the_remedy_the_evidence_and_what_was_tried() -> None:
    text = " ".join(printed(print_examination, invented.examination(), width=160).split())
    for part in (
        "Divide the learning rate by 10",
        "top eigenvalue 160",
        "accuracy diverged → 0.91",
        "✖ error",
        "1 remark",
    ):
        assert part in text


def test_accepted_findings_are_counted_and_not_shown() -> None:
    text = printed(print_examination, invented.examination(), {"SIG901:body.1.act"})
    assert "body.1.act" not in text.replace("body.0.act", "").replace("since step", "").split("Explained")[0]
    assert "1 accepted, not shown" in text


def test_a_repair_prints_lines_to_apply() -> None:
    text = printed(print_repair, invented.repair(), width=120)
    assert "-optimizer = SGD(model.parameters(), lr=0.5)" in text
    assert "+optimizer = SGD(model.parameters(), lr=0.05)" in text
    assert "He initialization (body.0.linear, body.1.linear)" in text
    assert "shuffle the training data" in text
    assert "Better by 2 changes, and still ill" in printed(print_repair, invented.repair("better"), width=120)
    assert "No repair was found" in printed(print_repair, invented.repair("nothing"))


def test_a_rules_docstring_is_its_page() -> None:
    page = page_of(invented.Dead)
    assert [heading for heading, _ in page.sections] == list(SECTIONS)
    assert page.summary == "Units whose output is the same for every example carry nothing and learn nothing."
    assert dict(page.sections)["Threshold and its source"] == "Half of the units (invented for a test)."
    fast = dict(page_of(invented.TooFast).sections)
    assert fast["What it checks"].split("\n\n") == [
        "The loss along the step, against its curvature.", "Two times the learning rate's limit is too much.",
    ]  # fmt: skip
    text = markdown(page, ("SIG901", "OPT901"))
    assert text.startswith("# SIG901 `dead-half`\n")
    assert "see [OPT901](OPT901.md)" in text
    shown = printed(print_page, page)
    assert "Why it hurts" in shown


def test_rules_are_found_by_code_beginning_and_name() -> None:
    assert [page.code for page in pages_for("sig901", invented.RULES)] == ["SIG901"]
    assert [page.code for page in pages_for("too-fast", invented.RULES)] == ["OPT901"]
    with pytest.raises(InvalidValue, match=r"explain: unknown code 'SIG9O1'\. Did you mean 'SIG901'"):
        pages_for("SIG9O1", invented.RULES)
    found = families(invented.RULES)
    assert [family.letters for family in found] == ["SIG", "OPT"]
    assert "dead-half" in printed(print_families, found)
