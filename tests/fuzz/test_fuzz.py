"""A little of what ``make fuzz`` does, the same in every run; every input that it once found."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

import fuzz as fuzzer  # noqa: E402
from fuzz import LIMITS, case, fuzz, outcome  # noqa: E402
from targets import ON_PURPOSE, TARGETS, Target  # noqa: E402

from paravirt_mm.guard import Limits, call  # noqa: E402
from paravirt_mm.sources import read_boot_log  # noqa: E402

READERS = [name for name in TARGETS if " ".join(name.split()[:1]) not in (
    "compare", "run", "machines", "inspect", "verify", "oracle",
)]  # fmt: skip


def _search(name: str, count: int) -> None:
    told = list(fuzz(name, 1, 0, count, 300))
    found = [item for item in told if not isinstance(item, int)]
    assert not found, f"{found[0]}\n{found[0].what}"
    assert sum(item for item in told if isinstance(item, int)) == count


@pytest.mark.slow
def test_what_goes_wrong_is_found_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a process that dies and one that takes too long: each with its own number."""

    def act(path: Path, _: random.Random) -> None:
        match path.read_bytes()[0] % 16:
            case 0:
                raise ZeroDivisionError
            case 1:
                os._exit(3)
            case 2:
                while True:
                    pass

    def seeds() -> list[bytes]:
        return [bytes([value]) * 9 for value in range(16)]

    monkeypatch.setitem(TARGETS, "bad", Target("bad", seeds, act))
    monkeypatch.setattr(fuzzer, "LIMITS", Limits(cpu=0.05, wall=60.0))
    count = 60
    found = {
        item.number: item for item in fuzz("bad", 1, 0, count, 60) if not isinstance(item, int)
    }
    heads = [case(TARGETS["bad"], "bad", 1, number)[1][:1] for number in range(count)]
    words = {0: "ZeroDivisionError", 1: "exit code 3", 2: "longer than 0.05 s"}
    for number, head in enumerate(heads):
        if not head:
            assert "IndexError" in found.pop(number).what
        elif head[0] % 16 in words:
            finding = found.pop(number)
            assert words[head[0] % 16] in finding.what
            assert finding.data[:1] == head
    assert not found


@pytest.mark.parametrize("name", READERS)
def test_a_few(name: str) -> None:
    _search(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_some(name: str) -> None:
    _search(name, 150 if name in READERS else 20)  # `make fuzz` has the time for more


FOUND = sorted(path for path in (HERE / "found").iterdir() if "--" in path.name)


class First(random.Random):
    """No chance at all: of what there is the first is chosen, `incremental` under `native`."""

    def choice(self, seq: Any) -> Any:
        return seq[0]


@pytest.mark.parametrize(("kind", "seed"), [(First, 0), (random.Random, 0), (random.Random, 1)])
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_once(
    path: Path, kind: type[random.Random], seed: int, tmp_path: Path
) -> None:
    """``TARGET--WHAT``: spaces of the target's name are dashes there."""
    name = {each.replace(" ", "-"): each for each in TARGETS}[path.name.split("--")[0]]
    target = TARGETS[name]
    assert call(outcome, target, kind(seed), path.read_bytes(), tmp_path, limits=LIMITS) == ""


@given(st.lists(st.sampled_from(
    ["Linux version 3.6.0\n", "BIOS-e820: [mem 0x{:x}-0x{:x}] usable\n", "(XEN) {} ({})\n",
     " BIOS-e820: {:016x} - {:016x} (usable)\n", "last_pfn = 0x{:x} max {:x}\n", "\x00", "{}{}\r"]
).flatmap(lambda line: st.tuples(st.just(line), st.integers(0, 1 << 64), st.integers(0, 1 << 64))),
    max_size=12))  # fmt: skip
def test_any_lines(lines: list[tuple[str, int, int]]) -> None:
    import tempfile

    text = "".join(line.format(low, high) for line, low, high in lines)
    with tempfile.NamedTemporaryFile("w", suffix=".log", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        said = ""
        try:
            read_boot_log(file.name)
        except ON_PURPOSE as error:
            said = str(error)
        assert not said or Path(file.name).name in said


def test_a_case_is_its_numbers() -> None:
    """The same target, seed and number make the same input, everywhere."""
    for name, target in TARGETS.items():
        assert case(target, name, 3, 5)[1] == case(target, name, 3, 5)[1]
        assert len({case(target, name, 3, number)[1] for number in range(5)}) > 2, name


@pytest.mark.slow
def test_the_loop_reports_what_it_finds(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), "--seconds", "3", "--seed", "7", "--target",
         "iomem", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 findings, seed 7" in result.stdout
