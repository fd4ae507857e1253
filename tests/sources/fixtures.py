"""Where the logs are: short excerpts of every style."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def logs() -> Path:
    return Path(__file__).resolve().parents[1] / "data" / "logs"
