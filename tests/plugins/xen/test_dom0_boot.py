"""Boots as dom0 that come to nothing: told in a line, with a stand-in for QEMU, and gone after."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paravirt_mm import GdbError
from paravirt_mm_xen.dom0 import boot
from paravirt_mm_xen.dom0.host import plain_host
from paravirt_mm_xen.live.errors import XenBootError


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "qemu-system-x86_64"


@contextmanager
def all_closed() -> Iterator[None]:
    """No descriptor stays open, also while an error still holds what failed."""
    there = set(os.listdir("/dev/fd"))
    yield
    assert set(os.listdir("/dev/fd")) == there


def started(qemu: Path, script: str, seconds: float = 30) -> boot._Machine:
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    work = qemu.parent / "work"
    return boot._Machine(qemu, work / "xen.elf", work, plain_host(), seconds, "")


@pytest.mark.parametrize(
    ("script", "seconds", "says"),
    [
        (
            "echo warning >&2; "
            "echo \"qemu-system-x86_64: cannot set up guest memory 'pc.ram': "
            'Cannot allocate memory" >&2; echo >&2',
            30,
            "QEMU: cannot set up guest memory 'pc.ram': Cannot allocate memory: take a machine "
            "with less RAM",
        ),
        ("exec sleep 60", 0.2, r"within 0.2 s: it hangs, or needs more time \(linux:timeout="),
        ("exit 3", 30, "QEMU closed its gdb connection"),
        ("printf '%0300d' 0 >&2; exit 3", 30, "QEMU: 0{199}…$"),
    ],
)
def test_qemu_that_does_not_start(stand_in: Path, script: str, seconds: float, says: str) -> None:
    with all_closed(), pytest.raises(XenBootError) as raised:
        started(stand_in, script, seconds)
    assert raised.value.reason.startswith("QEMU did not start: ")
    assert re.search(says, raised.value.reason)
    assert "\n" not in raised.value.reason


def test_what_is_no_program_is_told(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "die_with_parent", list)
    stand_in.mkdir()
    says = "qemu-system-x86_64 cannot be started: "
    with all_closed(), pytest.raises(XenBootError, match=says) as raised:
        boot._Machine(stand_in, stand_in, stand_in.parent / "work", plain_host(), 1, "")
    assert "Permission denied" in raised.value.reason


def test_what_xen_said_last_is_why(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, *_: object) -> None: ...

    monkeypatch.setattr(boot, "GdbClient", Client)
    words = "Domain 0 allocation is too small for kernel image"
    with all_closed(), started(stand_in, "exec sleep 60") as machine:
        log = stand_in.parent / "work" / "console.log"
        assert machine.why(GdbError("closed")) == "closed"
        log.write_text(f"(XEN) Panic on CPU 0:\n(XEN) {words}\n(XEN) ****\n")
        assert machine.why(GdbError("closed")) == f"Xen gave up: {words}"
        log.write_text(f"(XEN) Panic on CPU 12:\n(XEN) {'x' * 300}\n(XEN) ****\n")
        assert machine.why(GdbError("closed")) == f"Xen gave up: {'x' * 199}…"
        log.write_text(f"(XEN) Panic on CPU 0:\n(XEN) {words}\n(XEN) ****\n")
        assert machine.tail() == ("(XEN) Panic on CPU 0:", f"(XEN) {words}", "(XEN) ****")
        log.write_text("".join(f"(XEN) line {n}\r\n" for n in range(20)))
        assert machine.tail() == tuple(f"(XEN) line {n}" for n in range(8, 20))
        log.write_text(f"(XEN) {'x' * 300}\n")
        assert [len(line) for line in machine.tail()] == [200]
        process = machine._process
    assert process.returncode == -9
