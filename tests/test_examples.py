"""The examples work, and what the documentation says of them is true."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from paravirt_mm import Registry, Scenario, bundled

BOTTOM_UP = Path(__file__).parents[1] / "examples" / "bottom_up"


@pytest.fixture(scope="module")
def with_bottom_up() -> Registry:
    path = BOTTOM_UP / "paravirt_mm_bottom_up.py"
    spec = importlib.util.spec_from_file_location("paravirt_mm_bottom_up", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    registry = Registry.discover()
    registry.add("bottom_up", module.BottomUp)
    assert not registry.broken
    return registry


@pytest.mark.parametrize("backend", ["native", "xen"])
def test_bottom_up_is_correct_and_lies_low(with_bottom_up: Registry, backend: str) -> None:
    run = Scenario.of(bundled("lenovo-x230-8g"), "bottom_up", backend).run(with_bottom_up)
    assert str(run.verdict) == "ok"
    if backend == "xen":
        assert run.figures["tables_below_16m"] > 0


def test_bottom_up_passes_its_own_conformance_test() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bottom_up.py"]
    result = subprocess.run(command, cwd=BOTTOM_UP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
