"""What a reader of the doctor's page may rely on: it says everything, stands alone, is safe, and is always the same."""

from __future__ import annotations

import functools
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import invented_examinations as invented
import numpy as np
import pytest

from homeostat.doctor.show import heatmap
from homeostat.doctor.show.report import VITALS, layer_rows, render, write_report
from homeostat.page.svg import COLORS

INFO = {
    "title": "my_project.train:training",
    "command": "homeostat examine my_project.train:training --out report.html",
    "version": "0.1.0",
    "environment": {"python": "3.11.2", "cores": "2"},
}
REPAIRS = ("proved", "single", "better", "nothing")
VOID = {"meta", "wbr", "br"}


class Page(HTMLParser):
    """Elements with their attributes, and all the text; every element must be closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


@functools.cache
def html_of(kind: str) -> str:
    if kind in REPAIRS:
        repair = invented.repair(kind)
        return render(repair.before, invented.RULES, INFO, repair)
    return render(invented.examination(kind), invented.RULES, INFO)


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', html)


def test_the_first_thing_said_is_the_verdict() -> None:
    headline = re.search(r"<h1[^>]*>(.*?)</h1>", html_of("ill"), re.S)
    assert headline is not None
    assert unescape(headline[1]) == invented.examination("ill").verdict


def test_every_finding_is_there_with_evidence_remedy_and_proof() -> None:
    words = Page(html_of("ill")).words
    for finding in invented.examination("ill").findings:
        assert finding.message in words
        assert finding.remedy in words
    for text in (
        "top eigenvalue 160",
        "accuracy diverged → 0.91 after 470 steps",
        "explained by OPT901",
        "lr too high",
    ):
        assert text in words
    assert words.index("Errors") < words.index("Warnings") < words.index("Remarks")


def test_the_key_numbers_are_score_baseline_steps_and_time() -> None:
    key = html_of("ill")[html_of("ill").index('<dl class="key">') :]
    names = re.findall(r'<dt>(.*?)</dt><dd><span class="big">(.*?)</span><span class="small">(.*?)</span>', key)
    assert names[:4] == [
        ("Accuracy", "0.31", "after 470 of 940 steps"),
        ("Best baseline", "0.93", "nearest neighbors"),
        ("Steps trained", "470", "of the training’s 940"),
        ("Time", "12 s", "on copies"),
    ]


def test_a_finding_links_to_the_page_of_its_rule_which_is_embedded() -> None:
    page = Page(html_of("ill"))
    assert {"#rule-OPT901", "#rule-SIG901"} <= set(page.attributes("href"))
    assert "Cohen et al. 2021, arXiv:2103.00065." in page.words


def test_sections_are_left_out_where_there_is_nothing_to_show() -> None:
    assert sections(html_of("ill")) == ["findings", "learning", "vitals", "training", "rules", "words"]
    assert sections(html_of("unwatched")) == ["findings", "learning", "training", "rules", "words"]
    assert sections(html_of("empty")) == ["findings", "rules", "words"]
    assert sections(html_of("proved"))[0] == "repair"
    healthy = html_of("healthy")
    assert "Nothing was found" in healthy
    assert "This training is ill" not in healthy


def test_a_repair_shows_changes_as_lines_and_the_interval_of_the_gain() -> None:
    repair = invented.repair("proved")
    page = Page(html_of("proved"))
    for change in repair.changes:
        assert change.what in page.words
        for line in change.diff.splitlines():
            assert line in page.words
    low, high = repair.proof.gain.low, repair.proof.gain.high
    assert f"95 % interval +{low:.3g} to +{high:.3g}" in page.words
    rows = re.findall(
        r'<tr><th scope="row">(\d)</th><td class="num">(.*?)</td><td class="num">(.*?)</td>', html_of("proved")
    )
    assert rows == [("0", "0.31", "0.951"), ("1", "0.28", "0.944"), ("2", "0.33", "0.953")]
    assert "one pair has no interval" in html_of("single")
    assert "Nothing was changed" in html_of("nothing")


def test_accepted_findings_are_folded_away_and_not_counted() -> None:
    html = render(invented.examination(), invented.RULES, {**INFO, "accepted": {"SIG901:body.1.act"}})
    assert "1 error, 1 remark · 1 accepted" in Page(html).words
    assert html.index("<summary>1 accepted") < html.index("71 % of the units")


@pytest.mark.parametrize("kind", [*invented.KINDS, *REPAIRS])
def test_the_page_stands_alone_and_is_well_made(kind: str) -> None:
    html = html_of(kind)
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "link", "object", "form"}
    assert not page.attributes("style")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.attributes("href")} <= set(ids)
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert not re.search(r"\bnan\b", page.words)
    assert all(a.get("scope") in {"col", "row"} for tag, a in page.elements if tag == "th")
    assert all(a["role"] == "img" and a["aria-label"] for tag, a in page.elements if tag == "svg")
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert all(low >= high - 1 for high, low in zip(headings[1:], headings, strict=False))


def test_what_cannot_be_seen_can_be_read_in_a_table() -> None:
    rows = layer_rows(invented.vitals())
    assert [name for name, _ in rows] == list(invented.LAYERS)
    words = Page(html_of("ill")).words
    for name, cells in rows:
        assert f"{name} {' '.join(f'{first} → {last}' for first, last in cells)}" in words
    dead = list(VITALS).index("dead")
    assert rows[0][1][dead] == ("–", "–")
    assert rows[-1][1][0][1] == "∞"  # the head's output is not finite at the end


def test_the_heat_map_has_a_panel_per_vital_and_says_what_is_missing() -> None:
    picture = html_of("ill")[html_of("ill").index('class="figure heat wide"') :].partition("</svg>")[0]
    for text in (*VITALS.values(), *invented.LAYERS, "not finite", "none"):
        assert text in picture
    assert "var(--heat-0" in picture
    assert "var(--heat-8" in picture


def test_colors_follow_the_logarithm() -> None:
    values = 10.0 ** np.array([[-4.0, -3.01, -2.0, -1.0, -0.001]])
    scale = heatmap._scale(heatmap.Panel("x", values))
    classes = scale.classes(values)[0].tolist()
    assert (scale.low, scale.high) == (1e-4, 1.0)
    assert classes == sorted(classes)
    assert (classes[0], classes[-1]) == (0, len(heatmap.HEAT) - 1)
    share = heatmap._scale(heatmap.Panel("dead", values, share=True))
    assert share.classes(np.array([0.0, 0.5, 1.0])).tolist() == [0, 4, 8]


def test_of_many_layers_and_steps_so_many_are_drawn_as_can_be_read() -> None:
    html = html_of("deep")
    assert "20 layers between those shown are in the table only" in Page(html).words
    assert len(html) < 300_000
    grouped = heatmap._grouped(np.array([[1.0, 5.0, np.nan, np.nan]]), [np.array([0, 1]), np.array([2, 3])])
    assert grouped[0, 0] == 5.0
    assert np.isnan(grouped[0, 1])


def test_figures_have_the_colors_of_the_page_in_every_theme() -> None:
    html = html_of("ill")
    style = html[html.index("<style>") : html.index("</style>")]
    light = dict(re.findall(r"--([\w-]+): (#\w+);", style))
    blocks = re.split(r"@media (?=\(prefers|print)", style[style.index("What only the doctor's page") :])
    assert len(blocks) == 3
    for block in blocks:
        assert {f"heat-{n}" for n in range(len(heatmap.HEAT))} <= set(re.findall(r"--([\w-]+): #", block))
    first = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[0]))
    assert [first[f"heat-{n}"] for n in range(len(heatmap.HEAT))] == list(heatmap.HEAT)
    assert set(COLORS) <= set(light)


def test_hostile_texts_are_text() -> None:
    html = html_of("hostile")
    assert invented.HOSTILE in Page(html).words
    assert "<script" not in html
    assert not set("\x00\x1b") & set(html)


def test_the_same_examination_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, invented.examination(), invented.RULES, INFO)
    assert path.read_text(encoding="utf-8") == html_of("ill")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
