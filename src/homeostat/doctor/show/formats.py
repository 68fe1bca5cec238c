"""An examination as JSON and as SARIF 2.1.0, for other programs. Nothing is random.

SARIF: OASIS, Static Analysis Results Interchange Format, version 2.1.0, 2020. A finding's place is a layer, which is a
logical location; the function that made the training is its physical one, where it is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from homeostat import __version__, environment
from homeostat.doctor.finding import Finding, Severity
from homeostat.doctor.rule import Rule
from homeostat.doctor.show.exhibits import jsonable, standing
from homeostat.doctor.show.rulebook import RulePage, markdown, page_of

if TYPE_CHECKING:
    from homeostat.doctor.examine import Examination

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
_PAGES = f"pkg:generic/homeostat@{__version__}#docs/rules/"  # a package URL: the rule's page in this version's sources


@dataclass(frozen=True)
class Place:
    """Where the training is made, in the user's own code."""

    path: str
    """Relative to where the command was run, with "/"."""
    line: int


def as_json(examination: Examination, *, target: str | None = None, accepted: Iterable[str] = ()) -> str:
    """The examination as a JSON object; a number that is not finite becomes a text such as "nan".

    Args:
        target: what was examined.
        accepted: fingerprints of findings that are marked as accepted.
    """
    known = frozenset(accepted)
    content = {
        "homeostat": __version__,
        "target": target,
        "verdict": examination.verdict,
        "seconds": examination.seconds,
        "steps": examination.steps,
        "standing": asdict(standing(examination)),
        "findings": [
            _finding(finding) | {"accepted": finding.fingerprint in known} for finding in examination.findings
        ],
        "notes": list(examination.notes),
        "environment": environment.describe(),
    }
    return f"{json.dumps(jsonable(content), indent=2, ensure_ascii=False, allow_nan=False)}\n"


def as_sarif(
    examination: Examination,
    rules: Sequence[type[Rule]],
    *,
    place: Place | None = None,
    accepted: Iterable[str] | None = None,
) -> str:
    """The examination as a SARIF log with one run.

    Args:
        rules: all rules, which the log describes.
        place: where the training is made.
        accepted: fingerprints of findings that are suppressed; None where no such list was asked for.
    """
    pages = [page_of(rule) for rule in rules]
    index = {page.code: number for number, page in enumerate(pages)}
    driver = {
        "name": "homeostat",
        "semanticVersion": __version__,
        "rules": [_descriptor(page, index) for page in pages],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(finding, index, place, accepted) for finding in examination.findings],
        "properties": {"verdict": examination.verdict, **asdict(standing(examination))},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return f"{json.dumps(jsonable(log), indent=2, ensure_ascii=False, allow_nan=False)}\n"


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "slug": finding.slug,
        "severity": finding.severity,
        "causes": finding.causes,
        "layer": finding.layer,
        "message": finding.message,
        "remedy": finding.remedy,
        "evidence": finding.evidence,
        "proof": None if finding.proof is None else asdict(finding.proof),
        "consequence_of": finding.consequence_of,
        "fingerprint": finding.fingerprint,
    }


def _descriptor(page: RulePage, known: Iterable[str]) -> dict[str, Any]:
    sections = dict(page.sections)
    full = " ".join(sections.get("What it checks", page.summary).split()) or page.summary
    return {
        "id": page.code,
        "name": "".join(word.capitalize() for word in page.slug.split("-")),
        "shortDescription": {"text": page.summary or page.slug},
        "fullDescription": {"text": full or page.slug},
        "help": {
            "text": "\n\n".join(f"{head}\n{body}" for head, body in page.sections),
            "markdown": markdown(page, ()),
        },
        "helpUri": f"{_PAGES}{page.code}.md",
        "properties": {"tags": list(page.causes)},
    }


def _result(
    finding: Finding, index: dict[str, int], place: Place | None, accepted: Iterable[str] | None
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "level": _LEVELS[finding.severity],
        "message": {"text": _message(f"{finding.message} {finding.remedy}".strip())},
        "partialFingerprints": {"codeAndLayer/v1": finding.fingerprint},
        "properties": {key: value for key, value in _finding(finding).items() if key not in ("code", "message")},
    }
    if finding.code in index:
        result["ruleIndex"] = index[finding.code]
    location: dict[str, Any] = {}
    if place is not None:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": quote(place.path)},
            "region": {"startLine": place.line},
        }
    if finding.layer is not None:
        location["logicalLocations"] = [_layer(finding.layer)]
    if location:
        result["locations"] = [location]
    if accepted is not None:
        known = finding.fingerprint in set(accepted)
        result["baselineState"] = "unchanged" if known else "new"
        result["suppressions"] = [{"kind": "external", "status": "accepted"}] if known else []
    return result


def _message(text: str) -> str:
    """A plain text as a SARIF message: brackets would make links and braces placeholders (sections 3.11.5, 3.11.6)."""
    return re.sub(r"[\\\[\]]", r"\\\g<0>", text).replace("{", "{{").replace("}", "}}")


def _layer(name: str) -> dict[str, str]:
    return {"name": name.rpartition(".")[2], "fullyQualifiedName": name, "kind": "member"}
