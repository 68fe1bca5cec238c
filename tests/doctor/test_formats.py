"""What other programs may rely on: strict JSON, valid SARIF, and files of accepted findings."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import invented_examinations as invented
import pytest

from homeostat.doctor.finding import Finding
from homeostat.doctor.show.accepted import read_accepted, write_accepted
from homeostat.doctor.show.exhibits import jsonable, number
from homeostat.doctor.show.formats import Place, as_json, as_sarif
from homeostat.errors import HomeostatError, InvalidValue


def strict(text: str):
    def refuse(constant: str):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("kind", invented.KINDS)
def test_json_is_strict_and_complete(kind: str) -> None:
    examination = invented.examination(kind)
    found = strict(as_json(examination, target="my.train:training"))
    assert found["verdict"] == examination.verdict
    assert [entry["fingerprint"] for entry in found["findings"]] == [f.fingerprint for f in examination.findings]
    assert found["environment"]["homeostat"]


def test_json_says_numbers_as_numbers_and_what_is_not_finite_as_text() -> None:
    first = strict(as_json(invented.examination()))["findings"][0]
    assert first["evidence"]["top_eigenvalue"] == 160.0
    assert first["proof"] == {
        "change": "learning rate 0.5 → 0.05", "metric": "accuracy", "before": "nan", "after": 0.91, "steps": 470,
    }  # fmt: skip
    assert jsonable({"a": [math.inf, (1, None)], "b": Path("x")}) == {"a": ["inf", [1, None]], "b": "x"}


def test_accepted_findings_are_marked_in_json() -> None:
    found = strict(as_json(invented.examination(), accepted={"SIG901:body.1.act"}))["findings"]
    assert [entry["accepted"] for entry in found] == [False, True, False]


@pytest.mark.parametrize("kind", invented.KINDS)
def test_sarif_has_what_the_schema_requires(kind: str) -> None:
    """The required properties and value sets of sarif-schema-2.1.0.json, errata 01, for the objects that are used."""
    examination = invented.examination(kind)
    log = strict(as_sarif(examination, invented.RULES, place=Place("a b/train.py", 12), accepted=()))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "homeostat"
    assert re.fullmatch(r"\d+\.\d+\.\d+", driver["semanticVersion"])
    for rule in driver["rules"]:
        assert rule["id"]
        assert rule["fullDescription"]["text"]
        assert re.match(r"[a-z]+:\S+$", rule["helpUri"])
    assert len(run["results"]) == len(examination.findings)
    for result, finding in zip(run["results"], examination.findings, strict=True):
        assert result["message"]["text"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        assert result["partialFingerprints"] == {"codeAndLayer/v1": finding.fingerprint}
        assert all(isinstance(text, str) for text in result["partialFingerprints"].values())
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "a%20b/train.py"
        assert location["physicalLocation"]["region"]["startLine"] == 12
        names = [place["fullyQualifiedName"] for place in location.get("logicalLocations", [])]
        assert names == ([finding.layer] if finding.layer else [])


def test_sarif_says_levels_evidence_and_what_is_accepted() -> None:
    results = strict(as_sarif(invented.examination(), invented.RULES, accepted={"SIG901:body.1.act"}))["runs"][0][
        "results"
    ]
    assert [result["level"] for result in results] == ["error", "warning", "note"]
    assert results[0]["properties"]["evidence"]["limit"] == 0.0125
    assert [result["baselineState"] for result in results] == ["new", "unchanged", "new"]
    assert results[1]["suppressions"] == [{"kind": "external", "status": "accepted"}]
    plain = strict(as_sarif(invented.examination(), invented.RULES))["runs"][0]["results"]
    assert "suppressions" not in plain[1]
    assert "locations" not in plain[0]


def test_sarif_messages_hold_no_links_or_placeholders_by_accident() -> None:
    examination = invented.examination()
    examination.findings = (Finding("SIG901", "x", "warning", (), "shape [1](2) of {0}", ""),)
    result = strict(as_sarif(examination, invented.RULES))["runs"][0]["results"][0]
    assert result["message"]["text"] == r"shape \[1\](2) of {{0}}"


def test_what_was_accepted_is_read_again_and_remarks_are_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "ci" / "accepted.json"
    assert write_accepted(path, [invented.FAST, invented.DEAD, invented.DEAD, invented.REMARK]) == 2
    assert read_accepted(path) == {"OPT901:", "SIG901:body.1.act"}
    before = path.read_bytes()
    write_accepted(path, [invented.DEAD, invented.FAST])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["", "[]", '{"accepted": 3}', '{"accepted": [{"slug": "x"}]}', '{"accepted": ["x"]}']
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(InvalidValue, match="--write-baseline"):
        read_accepted(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(HomeostatError, match=r"cannot read .*--write-baseline makes the file"):
        read_accepted(tmp_path / "none.json")


def test_numbers_are_written_for_people() -> None:
    assert [number(x) for x in (0.0, 123456.0, 0.1 + 0.2, -1e-7)] == ["0", "123,456", "0.3", "−1e−7"]
