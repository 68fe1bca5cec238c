"""Every test here ends what it started."""

import objectives
import pytest


@pytest.fixture(autouse=True)
def closed_ledgers():
    yield
    objectives.close_all()
