"""The machine that this runs on, from whatever may be read of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from paravirt_mm import InputError, bundled
from paravirt_mm.cli import here

LOG = """\
[    0.000000] Linux version 6.1.0 (x)
[    0.000000] BIOS-provided physical RAM map:
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000001fffffff] usable
"""


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system of which nothing may be read."""
    monkeypatch.setattr(here, "MEMMAP", tmp_path / "memmap")
    monkeypatch.setattr(here, "IOMEM", tmp_path / "iomem")
    monkeypatch.setattr(here, "LOGS", (tmp_path / "log",))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_nothing_may_be_read(nothing: Path) -> None:
    with pytest.raises(InputError, match=r"dmesg.*no such program.*there is none.*there is none"):
        here.this_machine()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (f"#!/bin/sh\necho '{LOG}'\nexit 1\n", "it may not be read"),  # as to unprivileged users
        ("#!/no/such/shell\n", "No such file or directory"),
    ],
    ids=["it fails", "it cannot be run"],
)
def test_a_program_that_fails_is_no_source(nothing: Path, program: str, reason: str) -> None:
    (nothing / "dmesg").write_text(program)
    (nothing / "dmesg").chmod(0o755)
    with pytest.raises(InputError, match=rf"^here: .*: kernel log \(dmesg\): {reason}; kernel log"):
        here.this_machine()


def test_the_log_of_this_boot_alone_comes_before_that_of_many() -> None:
    assert [path.name for path in here.LOGS] == ["dmesg", "kern.log"]


def test_a_log_comes_first(nothing: Path) -> None:
    program = nothing / "dmesg"
    program.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'E'\n{LOG}E\n")
    program.chmod(0o755)
    machine, source = here.this_machine()
    assert (machine.name, source) == ("here", "kernel log (dmesg)")
    assert machine.memory_map.ram().end == 0x20000000


def test_a_log_whose_beginning_is_gone_is_passed_over(nothing: Path) -> None:
    program = nothing / "dmesg"
    program.write_text("#!/bin/sh\necho '[ 99.0] usb 1-1: new device'\n")
    program.chmod(0o755)
    folder = nothing / "memmap"
    for number, entry in enumerate(bundled("qemu-512m").memory_map):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "start").write_text(f"{entry.start:#x}\n")
        (folder / str(number) / "end").write_text(f"{entry.end - 1:#x}\n")
        word = "System RAM" if entry.type == 1 else "Reserved"
        (folder / str(number) / "type").write_text(f"{word}\n")
    machine, source = here.this_machine()
    assert source.startswith("firmware map")
    assert machine.memory_map.ram() == bundled("qemu-512m").memory_map.ram()
    assert source in machine.provenance.title
