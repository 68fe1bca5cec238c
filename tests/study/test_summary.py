"""The summary on a terminal: everything that matters, within the width, and nothing that the terminal would obey."""

from __future__ import annotations

import io

import pytest
import simulated_studies as simulated
from rich.cells import cell_len
from rich.console import Console

from homeostat.study.design import make_design
from homeostat.study.results.analysis import Analysis, analyze
from homeostat.study.show.remarks import remarks
from homeostat.study.show.summary import print_summary


def printed(analysis: Analysis, width: int, encoding: str = "utf-8", **settings: bool) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    print_summary(analysis, Console(file=file, width=width, **settings))
    file.flush()
    return raw.getvalue().decode(encoding)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_the_summary_says_what_to_do_and_why_within_the_width(width: int) -> None:
    analysis, _ = simulated.five()
    text = printed(analysis, width)
    assert words(text).startswith(words(analysis.summary))
    assert max(map(cell_len, text.splitlines())) <= width
    for sentence in (*remarks(analysis), *analysis.recommendation.reasons):
        assert words(sentence) in words(text) or width == 40


@pytest.mark.parametrize("width", [80, 120])
def test_effects_are_drawn_on_one_scale(width: int) -> None:
    analysis, _ = simulated.five()
    lines = printed(analysis, width).splitlines()
    best = next(line for line in lines if line.startswith("norm: none → batch"))
    worst = next(line for line in lines if line.startswith("norm × dropout"))
    assert best.rstrip().endswith("helps")
    assert worst.rstrip().endswith("worse together")
    zero = best.index("│")
    assert worst.index("│") == zero
    assert worst.index("▼") < zero < best.index("▲")


def test_the_table_holds_the_best_the_recommended_and_the_base() -> None:
    analysis, _ = simulated.five()
    text = printed(analysis, 120)
    assert f"★ {analysis.recommendation.treatment}" in text
    assert "◇ 0" in text
    best = analysis.treatments["valid_accuracy"].max()
    assert f"{100 * best:.1f} [" in text


def test_a_list_that_was_cut_says_how_much_is_left() -> None:
    analysis, _ = simulated.five()
    text = printed(analysis, 120)
    effects, treatments = text.split("Treatments, best first")
    told = sum(line.startswith(tuple(analysis.effects["label"])) for line in effects.splitlines())
    assert f"… {len(analysis.effects) - told} more in the report" in effects
    rows = [line for line in treatments.split("Recommendation")[0].splitlines() if " s" in line[-4:]]
    assert f"… {32 - len(rows)} more in the report" in treatments


def test_a_label_without_room_is_told_by_its_levels() -> None:
    text = printed(simulated.unusual()["less is better"][0], 80)
    assert "norm=group × lr=0.01" in text
    assert "norm: none → group × lr" not in text


def test_nothing_is_colored_where_nobody_sees_it_and_something_is_where_they_do() -> None:
    analysis, _ = simulated.five()
    assert "\x1b" not in printed(analysis, 80)
    assert "\x1b[" in printed(analysis, 80, force_terminal=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_terminal_without_unicode_gets_plain_letters(encoding: str) -> None:
    analysis, _ = simulated.five()
    text = printed(analysis, 100, encoding)
    assert "norm: none -> batch" in text
    assert "norm x dropout" in text
    assert "?" not in text


@pytest.mark.parametrize("name", simulated.unusual())
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_study_gets_a_summary(name: str, encoding: str) -> None:
    analysis, _ = simulated.unusual()[name]
    text = printed(analysis, 80, encoding)
    assert len(text) > 50
    assert not set(text) & set("\x00\x1b\u202e")


def test_names_are_text_and_not_markup() -> None:
    analysis, _ = simulated.unusual()["hostile"]
    assert "--> [bold]" in printed(analysis, 200)


def test_names_of_metrics_are_text_too() -> None:
    design = make_design(simulated.TWO, 3)
    table = simulated.trials(design).rename(columns={"valid_accuracy": "score\x1b[2J:x:"})
    text = printed(analyze(table, design, response="score\x1b[2J:x:"), 200)
    assert "score�[2J:x:" in text
    assert "\x1b" not in text
