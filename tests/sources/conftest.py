"""Where the logs are: short excerpts of every style here, the whole corpus beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "tests" / "data" / "logs"
SHARED = ROOT.parent / "shared"


@pytest.fixture
def logs() -> Path:
    return LOGS


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "corpus").is_dir():
        pytest.skip("../shared/corpus is not beside the checkout")
    return SHARED
