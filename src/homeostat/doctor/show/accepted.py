"""Findings that are known and accepted: a file beside the code, so that continuous integration fails for new ones only.

Nothing is random.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from homeostat.doctor.finding import Finding, at_least
from homeostat.errors import HomeostatError, invalid
from homeostat.training.export import write_file

_KEY = "accepted"


def read_accepted(path: Path) -> frozenset[str]:
    """The fingerprints of the findings that the file accepts.

    Raises: HomeostatError if it cannot be read; InvalidValue if it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return frozenset(str(entry["fingerprint"]) for entry in found[_KEY])
    except (OSError, UnicodeDecodeError) as error:
        cure = "--write-baseline makes the file."
        raise HomeostatError(f"--baseline: cannot read {str(path)!r}: {error}. {cure}") from None
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        cure = f"It was read as JSON and failed: {type(error).__name__}: {error}. --write-baseline makes it anew."
        raise invalid("--baseline", "the file", "be one that --write-baseline wrote", str(path), cure) from None


def write_accepted(path: Path, findings: Iterable[Finding]) -> int:
    """Write a file that accepts these findings, remarks excepted, which never count; returns how many.

    Raises: HomeostatError if it cannot be written.
    """
    counted = {finding.fingerprint: finding for finding in findings if at_least(finding.severity, "warning")}
    entries = [
        {"fingerprint": key, "slug": finding.slug, "severity": finding.severity, "message": finding.message}
        for key, finding in sorted(counted.items())
    ]
    note = "Findings that homeostat examine --baseline does not count. Only the fingerprints are read."
    text = json.dumps({"note": note, _KEY: entries}, indent=2, ensure_ascii=False)
    write_file(path, f"{text}\n".encode())
    return len(entries)
