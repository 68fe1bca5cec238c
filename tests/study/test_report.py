"""What a reader of a report may rely on: it is right, complete, alone, safe, and the same every time."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
import simulated_studies as simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import HomeostatError
from homeostat.page.svg import COLORS
from homeostat.study.factors import Factor
from homeostat.study.show import exhibits
from homeostat.study.show.remarks import remarks
from homeostat.study.show.report import render, write_report

INFO = {
    "title": "digits",
    "command": "homeostat study digits --seeds 5",
    "task": {"name": "digits", "examples": {"train": 1257, "valid": 270}, "shape": [1, 8, 8]},
    "environment": {"python": "3.11.2", "cores": 2},
    "base_recipe": 'model = "mlp"\n',
    "recommended_recipe": 'model = "mlp"\nnorm = "batch"\n',
    "started": "2025-11-21 08:02 UTC",
    "seconds": 161.3,
    "version": "0.1.0",
}
VOID = {"meta", "wbr", "br"}
PARTS = """html head meta title style body header main footer section aside nav p b a h1 h2 h3 ul li dl div dt dd span
    abbr small wbr table thead tbody tr th td figure figcaption details summary pre code svg g defs clippath text path
    use rect circle"""
ORDER = "treatments effects together interactions curves time recipe checks design reproduce words"


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text under each id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


@functools.cache
def unusual(name: str) -> str:
    """The page of an unusual study, of which the caller knows nothing more."""
    return render(*simulated.unusual()[name], {})


@pytest.fixture(scope="module")
def html() -> str:
    return render(*simulated.five(), INFO)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_first_thing_said_is_the_conclusion(html: str, page: Page) -> None:
    analysis, _ = simulated.five()
    headline = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.S)
    assert headline is not None
    assert analysis.summary.startswith(headline.group(1).rstrip("."))
    assert analysis.summary in page.words
    assert page.words.index(analysis.summary) < page.words.index("Treatments Effects")


def test_the_sections_come_in_the_order_in_which_a_reader_needs_them(page: Page) -> None:
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ORDER.split()
    assert page.attributes("href")[: len(sections)] == [f"#{name}" for name in sections]


def test_counts_warnings_and_everything_the_caller_knows_are_shown(page: Page) -> None:
    analysis, _ = simulated.five()
    for text in (
        "32 treatments × 5 seeds = 160 trials", "160 finished (2 diverged)", "took 2 min 41 s",
        *remarks(analysis),
        *analysis.recommendation.reasons, INFO["command"], 'norm = "batch"', "examples: training", "1257", "1, 8, 8",
        "homeostat 0.1.0", "2025-11-21 08:02 UTC",
    ):  # fmt: skip
        assert " ".join(text.split()) in page.words.replace("\u00a0", " ")


def page_words(html: str) -> list[str]:
    return re.findall(r"\w+", Page(html).words)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def rows_of(html: str, section: str) -> list[list[str]]:
    """The cells of the first table of a section as texts."""
    part = html[html.index(f'<section id="{section}">') :]
    part = part[: part.index("</table>")]
    body = part[part.index("<tbody>") :]
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        ]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)
    ]


def test_the_table_of_treatments_says_what_the_analysis_says(html: str) -> None:
    analysis, _ = simulated.five()
    rows = rows_of(html, "treatments")
    order = analysis.treatments["valid_accuracy"].sort_values(ascending=False)
    assert [int(row[0].split()[-1]) for row in rows] == order.index.tolist()
    best = analysis.treatments.loc[order.index[0]]
    _, _, *levels = rows[0][:7]
    assert levels == ["Yes" if best[name] != base else "No" for name, (base, _) in simulated.FIVE.items()]
    shown = [
        f"{100 * best[m]:.1f} [{100 * best[f'{m}_low']:.1f}, {100 * best[f'{m}_high']:.1f}]"
        for m in simulated.METRICS[:3]
    ]
    assert [rows[0][7], rows[0][8], rows[0][10]] == shown
    assert rows[0][11:] == ["5", "0", f"{best['seconds']:.1f} s"]
    base = next(row for row in rows if row[0].endswith("0") and "◇" in row[0])
    assert base[12] == "2"
    assert [row[0] for row in rows if "★" in row[0]] == [f"★ {analysis.recommendation.treatment}"]


def test_the_table_of_effects_says_what_the_analysis_says(html: str) -> None:
    analysis, _ = simulated.five()
    rows = rows_of(html, "effects")
    assert [row[0] for row in rows] == analysis.effects["label"].tolist()
    assert [row[-1] for row in rows] == analysis.effects["verdict"].map(exhibits.verdict).tolist()
    assert not set(page_words(html)) & {"strengthens", "weakens"}
    first = analysis.effects.iloc[0]
    assert number(rows[0][1]) == pytest.approx(100 * first["estimate"], abs=0.06)
    assert rows[0][3] == ("< 0.001" if first["p"] < 0.001 else f"{first['p']:.3f}")


def test_alone_on_average_and_together_stand_side_by_side(html: str) -> None:
    analysis, _ = simulated.five()
    rows = rows_of(html, "together")
    assert [row[0] for row in rows] == analysis.alone["label"].tolist()
    for cells, alone, together in zip(rows, analysis.alone["estimate"], analysis.together["estimate"], strict=True):
        assert number(cells[1].split()[0]) == pytest.approx(100 * alone, abs=0.06)
        assert number(cells[5].split()[0]) == pytest.approx(100 * together, abs=0.06)


def assert_stands_alone(html: str) -> Page:
    """No script, no inline style, nothing from elsewhere; one style sheet, which the policy names by its hash."""
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert set(tags) <= set(PARTS.split())
    assert tags.count("style") == 1
    assert not page.attributes("style")
    assert not page.attributes("src")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(link.startswith("#") for link in page.attributes("href"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "@import" not in style
    assert "url(" not in style
    return page


def test_the_page_stands_alone_under_its_own_policy(html: str) -> None:
    assert_stands_alone(html)


def test_a_screen_reader_finds_its_way(html: str, page: Page) -> None:
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in page.elements if tag == "th")
    figures = [a for tag, a in page.elements if tag == "svg" and a.get("class") != "strip"]
    assert len(figures) == 12  # six, each for a wide and a narrow page
    assert all(a["role"] == "img" and a["aria-label"] for a in figures)
    assert '<html lang="en">' in html


@pytest.mark.parametrize("name", simulated.unusual())
def test_every_study_gets_a_page(name: str) -> None:
    analysis, _ = simulated.unusual()[name]
    page = assert_stands_alone(unusual(name))
    assert " ".join(analysis.summary.split()[:5]) in page.words
    assert "nan" not in re.findall(r"[a-z]+", page.words.lower())


def test_without_a_result_nothing_is_recommended() -> None:
    for name in ("all diverged", "all failed", "nothing run"):
        html = unusual(name)
        assert "Nothing can be recommended before some trials give a result." in html
        assert "★</abbr>" not in html
        assert html.count('class="figure') == 0


def test_aliases_and_a_recommendation_that_was_not_run_are_said() -> None:
    analysis, _ = simulated.unusual()["fraction"]
    page = Page(unusual("fraction"))
    assert "What this design cannot tell apart" in page.words
    assert analysis.design.generators[0] in page.words
    if analysis.recommendation.treatment is None:
        assert "This treatment was not run" in page.words


def test_a_recommendation_that_was_not_run_has_a_row_that_says_so() -> None:
    analysis, _ = simulated.unusual()["fraction"]
    advice = analysis.recommendation
    assert advice.treatment is None
    first = rows_of(unusual("fraction"), "treatments")[0]
    assert first[0] == "★ –"
    assert [cell == "Yes" for cell in first[2:7]] == [name in advice.kept for name in simulated.FIVE]
    assert f"not run base +{100 * advice.gain.estimate:.1f}" in first
    assert "its change from the base is predicted" in Page(unusual("fraction")).words


def test_what_only_a_fraction_needs_is_told_of_fractions_alone(html: str) -> None:
    words = "can be told apart", "resolution", "Generators"
    assert not [word for word in words if word in Page(html[html.index("<main>") : html.index("<footer>")]).words]
    assert "III: a main effect is estimated together with interactions" in Page(unusual("fraction")).words


def test_where_the_two_factor_model_does_not_fit_the_report_says_so() -> None:
    analysis, curves = simulated.three_way()
    assert analysis.direct
    page = assert_stands_alone(render(analysis, curves, {}))
    assert (
        "The model of effects does not fit here, so alone and together compare the treatments themselves" in page.words
    )
    assert "does not fit (lack of fit: F(1, " in page.words
    assert analysis.warnings[0] in page.words
    means = analysis.treatments["valid_accuracy"]
    rows = rows_of(render(analysis, curves, {}), "together")
    for cells, row in zip(rows, analysis.alone.itertuples(), strict=True):
        pair = [analysis.design.find({**analysis.design.base, row.factor: level}) for level in (row.base, row.level)]
        assert number(cells[1].split()[0]) == pytest.approx(100 * (means[pair[1]] - means[pair[0]]), abs=0.06)


def test_a_single_epoch_is_no_learning_curve() -> None:
    analysis, curves = simulated.five()
    assert '<section id="curves">' not in render(analysis, curves[curves["epoch"] == 0], {})


def test_facts_are_written_for_people() -> None:
    task = {"target_unit": [403473.2125, 102683.7], "note": "", "empty": [], "split": "60/20/20 %, seed 0", "seed": 0}
    html = render(*simulated.unusual()["nothing run"], {"task": task, "environment": {"seed": 7, "ratio": 0.123456}})
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html[html.index('<section id="reproduce">') :]))
    assert facts["target unit"] == "mean 403473, deviation 102684"
    assert {"note", "empty"}.isdisjoint(facts)
    assert (facts["seed"], facts["ratio"]) == ("7", "0.1235")
    assert html.count("<dt>seed</dt>") == 1


def test_warnings_of_trials_that_differ_in_their_numbers_alone_are_told_once() -> None:
    text = "NoEffectWarning: clip_norm=1 never acted: the largest gradient norm was {}."
    found = remarks(simulated.warned({1: [text.format(0.822)], 3: [text.format(0.908)], 6: ["Odd: 1 of 3."]}))
    assert found[-2:] == [
        "2 of 12 trials, all with norm=none: clip_norm=1 never acted: the largest gradient norm was 0.822 to 0.908.",
        "1 of 12 trials, with norm=batch and dropout=0: Odd: 1 of 3.",
    ]
    twice = remarks(simulated.warned({0: [text.format(0.5), text.format(12)]}))
    assert "1 of 12 trials, with norm=none and dropout=0: " in twice[-1]
    assert "was 0.5 to 12." in twice[-1]


def test_of_many_treatments_the_best_are_in_sight_and_the_others_folded() -> None:
    analysis, _ = simulated.unusual()["sixty-four"]
    html = unusual("sixty-four")
    visible = rows_of(html, "treatments")
    roles = exhibits.roles(analysis)
    assert 20 <= len(visible) <= 22
    assert {str(number) for number in roles} <= {row[0].split()[-1] for row in visible}
    assert f"The other {64 - len(visible)} treatments" in html


def test_hostile_names_are_text() -> None:
    keys = ("title", "command", "base_recipe", "recommended_recipe", "started", "version")
    info: dict[str, object] = dict.fromkeys(keys, simulated.HOSTILE)
    info |= {"task": {simulated.HOSTILE: [simulated.HOSTILE]}, "environment": {"\x00\ud800": {"\x1b": "\u202e"}}}
    html = render(*simulated.unusual()["hostile"], info)
    page = assert_stands_alone(html)
    assert simulated.HOSTILE in page.words
    assert html.count("</script>") == 0
    assert not set("\x00\x1b\u202e\ud800") & set(html)
    assert "$\\alpha$" in page.words


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=2))
def test_no_text_can_become_markup(title: str, command: str, task: dict[str, str]) -> None:
    info = {
        "title": f"t{title}",
        "command": f"c{command}",
        "task": {"k": "v", **{f"k{k}": f"v{v}" for k, v in task.items()}},
    }
    page = assert_stands_alone(render(*simulated.unusual()["nothing run"], info))
    plain = dict.fromkeys(info["task"], "plain")
    other = Page(render(*simulated.unusual()["nothing run"], {"title": "t", "command": "c", "task": plain}))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in other.elements]


def test_the_same_study_gives_the_same_bytes_in_any_process(html: str) -> None:
    assert render(*simulated.five(), INFO) == html
    code = (
        "import sys, hashlib, simulated_studies as s; from homeostat.study.show.report import render\n"
        "from test_report import INFO\n"
        "sys.stdout.write(hashlib.sha256(render(*s.five(), INFO).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == hashlib.sha256(html.encode()).hexdigest()


def test_the_users_own_matplotlib_settings_change_nothing_and_are_left_alone(html: str) -> None:
    mine = {"font.size": 30.0, "axes.facecolor": "red", "svg.fonttype": "path", "text.usetex": False}
    with mpl.rc_context(mine):
        assert render(*simulated.five(), INFO) == html
        assert {name: mpl.rcParams[name] for name in mine} == mine


def test_figures_have_the_colors_of_the_page(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    light = dict(re.findall(r"--(\w+): (#\w+);", style[: style.index("@media")]))
    assert {name: light[name] for name in COLORS} == COLORS


def test_a_report_is_replaced_as_a_whole(tmp_path: Path) -> None:
    first, second = simulated.unusual()["all diverged"], simulated.unusual()["two trials"]
    assert write_report(*first, tmp_path, {}) == tmp_path / "report.html"
    path = write_report(*second, tmp_path, {})
    assert path.read_text(encoding="utf-8") == render(*second, {})
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(HomeostatError, match="missing"):
        write_report(*simulated.unusual()["all diverged"], missing, {})


def test_a_factor_is_a_switch_when_its_base_is_nothing() -> None:
    for base in (None, False, 0, 0.0, "none", "None", "off", "keep"):
        assert exhibits.is_switch(Factor("f", (base, "x")))
    for levels in (("he_normal", "x"), (1, 0), (0.1, 0.2), ("none", "x", "y"), ("batch", "none")):
        assert not exhibits.is_switch(Factor("f", levels))
