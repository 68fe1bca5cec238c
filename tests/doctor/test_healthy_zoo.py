"""Healthy models of well-known shapes raise no warning, on data that can be learned and on data that cannot."""

import pytest
from healthy_models import ZOO, healthy_training

from homeostat.doctor.examine import examine


@pytest.mark.parametrize("labels", ["learnable", "random"])
@pytest.mark.parametrize("name", ZOO)
def test_no_warning(name, labels):
    examination = examine(healthy_training(name, labels), budget=8)
    assert [str(finding) for finding in examination.findings if finding.severity != "info"] == []
    assert [note for note in examination.notes if "could not be examined" in note] == []
