"""Finding the pieces, and every way in which a boot can go wrong: with stand-ins for QEMU."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from paravirt_mm_xen.live import (
    MissingPieceError,
    OperationTrace,
    Pieces,
    XenBootError,
    build,
    find_pieces,
    qemu,
)
from paravirt_mm_xen.live.build import build_guest, unpack_hypervisor
from paravirt_mm_xen.live.errors import BuildError
from paravirt_mm_xen.live.pieces import default_directory, directory_of
from paravirt_mm_xen.live.session import LiveXen

TRACE = OperationTrace("t", 1, (("unpin", 0),))
GREETING = "@guest xen=4.17.7 pages=9\n"


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def live(tmp_path: Path) -> LiveXen:
    """A session whose QEMU the test writes; nothing of it is real."""
    for name in ("xen.elf", "guest.elf"):
        (tmp_path / name).write_bytes(b"\x7fELF")
    pieces = Pieces(tmp_path / "qemu", tmp_path / "gcc", tmp_path / "xen.elf", tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    return LiveXen(pieces, work, tmp_path / "xen.elf", tmp_path / "guest.elf", seconds=20)


def answer(live: LiveXen, text: str, after: str = "") -> None:
    program(live.pieces.qemu, f"cat <<'END'\n{text}END\n{after}")


def test_a_good_conversation(live: LiveXen) -> None:
    answer(live, f"(XEN) hello\n{GREETING}#0 i\n@end\n")
    assert live.replay([TRACE]) == [(-22,)]
    assert (live.boots, live.version) == (1, "4.17.7")
    assert list(live.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("console", "says"),
    [
        (
            "(XEN) ****\n(XEN) Panic on CPU 0:\n(XEN) FATAL TRAP: vector = 2\n",
            "Xen panicked",
        ),
        (f"{GREETING}#0 \n(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\n", "crash"),
        (f"{GREETING}!the arena is used up at trace (0x0)\n", "the guest gave up"),
        ("", "QEMU ended with code 3"),
        ("".join(f"(XEN) line {n}\n" for n in range(40)), "QEMU ended with code 3"),
        (GREETING, "QEMU ended with code 3"),
        (f"{'z' * 200}\n", "QEMU ended with code 3"),
        (f"{'z' * 201}\n", "QEMU ended with code 3"),
    ],
    ids=["panic", "crash", "guest", "nothing", "much", "greeting", "line", "long line"],
)
def test_a_boot_that_ends_early_is_told_with_the_consoles_last_lines(
    live: LiveXen, console: str, says: str
) -> None:
    answer(live, f"{console} \n\n", "exit 3")  # an empty line tells nothing
    with pytest.raises(XenBootError, match=says) as error:
        live.replay([TRACE])
    assert error.value.console == tuple([line[:200] for line in console.splitlines()])[-15:]
    assert list(live.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\n", "the guest crashed"),
        ("(XEN) d0 L1TF-vulnerable L1e 000000000c010066 - Crashing\n", "the guest crashed"),
        ("(XEN) Panic on CPU 0:\n(XEN) x\n\n(XEN) Reboot in five seconds...\n", "Xen panicked"),
    ],
)
def test_nobody_waits_with_a_xen_that_waits_for_its_own_end(
    live: LiveXen, monkeypatch: pytest.MonkeyPatch, last: str, says: str
) -> None:
    monkeypatch.setattr(qemu, "_LOOK_SECONDS", 0.02)
    answer(live, f"{'x' * 5000}\n{GREETING}{last}", "exec sleep 60")
    started = time.monotonic()
    with pytest.raises(XenBootError, match=says):
        live.replay([TRACE])
    assert time.monotonic() - started < 10  # of 20
    # What a guest prints is no word of Xen's.
    live.seconds = 0.1
    answer(live, f"{GREETING}{last.replace('(XEN)', '')}", "exec sleep 60")
    with pytest.raises(XenBootError, match=r"no end after 0\.1 s"):
        live.replay([TRACE])


def test_an_end_without_a_greeting_is_refused(live: LiveXen) -> None:
    lines = [f"line {n}" for n in range(40)]
    answer(live, "\n".join([*lines, "@end\n"]))
    with pytest.raises(XenBootError, match="did not greet") as error:
        live.replay([TRACE])
    assert error.value.console == (*lines[-14:], "@end")


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_a_hang_is_killed_with_all_its_children(live: LiveXen, tmp_path: Path) -> None:
    live.seconds = 0.5
    answer(live, "(XEN) booting\n", f"sleep 60 & echo $! > '{tmp_path}/child'; wait")
    started = time.monotonic()
    with pytest.raises(XenBootError, match=r"no end after 0\.5 s") as error:
        live.replay([TRACE])
    assert time.monotonic() - started < 10
    assert error.value.console == ("(XEN) booting",)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(live.directory.iterdir()) == []


def test_a_hang_after_a_panic_is_the_panics(live: LiveXen) -> None:
    live.seconds = 0.5
    answer(live, "(XEN) Panic on CPU 0:\n", "exec sleep 60")
    started = time.monotonic()
    with pytest.raises(XenBootError, match="Xen panicked"):
        live.replay([TRACE])
    assert time.monotonic() - started < 20  # it does not sleep on


def test_a_qemu_that_cannot_start_is_told(live: LiveXen, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(XenBootError):
        live.replay([TRACE])
    monkeypatch.setattr(qemu, "die_with_parent", list)
    live.pieces.qemu.mkdir()
    with pytest.raises(XenBootError, match=r"/qemu cannot be started: .*Permission denied"):
        live.replay([TRACE])
    assert list(live.directory.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux)")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_qemu_does_not_outlive_its_parent(
    live: LiveXen, tmp_path: Path, number: signal.Signals
) -> None:
    pid = f"'{tmp_path}/pid'"
    program(live.pieces.qemu, f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60")
    code = (
        "from pathlib import Path; from paravirt_mm_xen.live import qemu;"
        f"d = Path({str(tmp_path)!r});"
        "qemu.run(qemu.XenBoot(d / 'qemu', d, d, d / 't', 1, 60), d / 'console')"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    try:
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.send_signal(number)
        parent.wait(20)
    finally:
        parent.kill()
        parent.wait()
    child = int((tmp_path / "pid").read_text())
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_commas_and_blanks_in_paths_do_not_reach_qemu() -> None:
    boot = qemu.XenBoot(Path("q"), Path("x"), Path("/a,b c/g,1"), Path("/a,b c/t"), 64, 1)
    words = boot.command()
    assert words[-1] == "g,,1,t"
    # Nothing of the host's in the machine; it ends where it would start again.
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= {*words}
    given = {one: two for one, two in itertools.pairwise(words) if one[0] == "-"}
    usual = {"-accel": "tcg", "-smp": "1", "-m": "256", "-display": "none", "-vga": "none"}
    usual |= {
        "-serial": "stdio",
        "-monitor": "none",
        "-cpu": qemu.CPU,
        "-kernel": str(Path("x").absolute()),
    }
    assert {name: given[name] for name in usual} == usual
    assert "dom0_mem=64M" in given["-append"]


# ---- pieces ----


def test_as_much_as_a_replay_takes(
    live: LiveXen, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = f"{build.MAX_HYPERVISOR >> 20} MiB of hypervisor, {qemu.MAX_CONSOLE >> 20} MiB of"
    row = f"\n| a replay under real Xen | {limits} console; {build.GCC_SECONDS} s for gcc |\n"
    assert row in (checkout / "SECURITY.md").read_text("utf-8")
    said = f"(XEN) hello\n{GREETING}#0 i\n@end\n"
    answer(live, said)
    monkeypatch.setattr(qemu, "MAX_CONSOLE", len(said))
    assert live.replay([TRACE]) == [(-22,)]
    monkeypatch.setattr(qemu, "MAX_CONSOLE", len(said) - 1)
    with pytest.raises(XenBootError, match=f"over {len(said) - 1} bytes on the console") as error:
        live.replay([TRACE])
    assert error.value.console == tuple(said.splitlines())
    assert list(live.directory.iterdir()) == []


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the two Debian packages unpack to, and a PATH with stand-ins for the programs."""
    root = tmp_path / "xen"
    (root / "boot").mkdir(parents=True)
    (root / "usr/include/xen").mkdir(parents=True)
    (root / "usr/include/xen/xen.h").touch()
    with gzip.open(root / "boot/xen-4.17-amd64.gz", "wb") as image:
        image.write(b"\x7fELF of Xen")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("qemu-system-x86_64", "gcc"):
        program(programs / name, "exit 1")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PARAVIRT_MM_XEN", raising=False)
    return root


def test_xen_is_found_where_it_is_named(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = find_pieces(unpacked)
    assert pieces.hypervisor == unpacked / "boot/xen-4.17-amd64.gz"
    monkeypatch.setenv("PARAVIRT_MM_XEN", str(unpacked))
    assert find_pieces() == pieces


def test_a_version_is_that_of_a_folder_beside_the_usual_one(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `tools/fetch-xen.sh VERSION` unpacks it; the usual one, if it holds that version."""
    monkeypatch.setenv("PARAVIRT_MM_XEN", str(unpacked))
    assert directory_of(None) is None
    assert directory_of("4.17") == unpacked
    assert directory_of("4.14") == unpacked.with_name("xen-4.14")
    unpacked.with_name("xen-4.17").mkdir()
    assert directory_of("4.17") == unpacked.with_name("xen-4.17")
    monkeypatch.setenv("PARAVIRT_MM_XEN", "")
    assert directory_of("4.14") == default_directory().with_name("xen-4.14")
    for path in ("some/where", "4", "4.17.1"):
        assert directory_of(path) == Path(path)
    monkeypatch.chdir(unpacked)
    Path("4.14").mkdir()
    assert directory_of("4.14") == Path("4.14")


def test_a_folder_is_no_hypervisor(unpacked: Path) -> None:
    (unpacked / "boot/xen-4.99-amd64").mkdir()
    (unpacked / "boot/xen-4.14-amd64.gz").touch()  # of several it is the newest
    assert find_pieces(unpacked).hypervisor == unpacked / "boot/xen-4.17-amd64.gz"


def test_xen_is_found_in_the_cache(unpacked: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache/paravirt-mm/xen"
    cache.parent.mkdir(parents=True)
    unpacked.rename(cache)
    assert find_pieces().headers == cache / "usr/include"


@pytest.mark.parametrize(
    ("lost", "package"),
    [
        ("boot/xen-4.17-amd64.gz", "xen-hypervisor-4.17-amd64"),
        ("usr/include/xen/xen.h", "libxen-dev"),
        ("../bin/gcc", "gcc"),
        ("../bin/qemu-system-x86_64", "qemu-system-x86"),
    ],
)
def test_a_missing_piece_names_its_package(
    unpacked: Path, lost: str, package: str, tmp_path: Path
) -> None:
    (unpacked / lost).unlink()
    with pytest.raises(MissingPieceError, match=package):
        find_pieces(unpacked)
    unpacked.rename(tmp_path / "elsewhere")
    cache = tmp_path / "cache/paravirt-mm/xen"
    cache.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").rename(cache)
    with pytest.raises(MissingPieceError, match=package):
        find_pieces()


def test_the_hypervisor_is_unpacked(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unpack_hypervisor(find_pieces(unpacked), tmp_path).read_bytes() == b"\x7fELF of Xen"
    monkeypatch.setattr(build, "MAX_HYPERVISOR", len(b"\x7fELF of Xen"))
    assert unpack_hypervisor(find_pieces(unpacked), tmp_path).read_bytes() == b"\x7fELF of Xen"
    monkeypatch.setattr(build, "MAX_HYPERVISOR", len(b"\x7fELF of Xen") - 1)
    with pytest.raises(MissingPieceError, match="has more than 10 bytes"):
        unpack_hypervisor(find_pieces(unpacked), tmp_path)


# A packed file holds the time of day unless told otherwise, and the ids must not.
@pytest.mark.parametrize(
    "content",
    [b"", b"MZ", b"\x1f\x8b damaged", gzip.compress(b"no ELF", mtime=0)],
    ids=["empty", "MZ", "damaged gzip", "gzip of no ELF"],
)
def test_a_damaged_hypervisor_is_refused(unpacked: Path, tmp_path: Path, content: bytes) -> None:
    (unpacked / "boot/xen-4.17-amd64.gz").write_bytes(content)
    with pytest.raises(MissingPieceError, match=r"xen-4\.17-amd64\.gz"):
        unpack_hypervisor(find_pieces(unpacked), tmp_path)


def test_a_compiler_that_fails_is_quoted(unpacked: Path, tmp_path: Path) -> None:
    pieces = find_pieces(unpacked)
    program(pieces.gcc, "echo 'main.c:1: error: no' >&2; exit 1")
    with pytest.raises(BuildError, match="error: no"):
        build_guest(pieces, tmp_path)
    program(pieces.gcc, "printf 'a%03999dzz' 0 >&2; exit 1")
    with pytest.raises(BuildError) as error:  # of what it says it is the end that counts
        build_guest(pieces, tmp_path)
    assert str(error.value) == f"gcc failed:\n{'0' * 3998}zz"


def test_nothing_is_left_when_opening_fails(unpacked: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("paravirt-mm-xen-*"))
    with pytest.raises(BuildError), LiveXen.open(unpacked):
        pass
    assert set(Path(tempfile.gettempdir()).glob("paravirt-mm-xen-*")) <= before


def test_what_the_guest_is_compiled_with(unpacked: Path, tmp_path: Path) -> None:
    """A kernel: no library, no red zone (Xen pushes frames right below rsp), no vector registers
    (nobody saves them), high addresses that are fixed when it is linked.
    """
    told = tmp_path / "told"
    program(tmp_path / "bin/gcc", f"printf '%s\\n' \"$@\" > '{told}'")
    image = build_guest(find_pieces(unpacked), tmp_path, ("-DEXTRA",))
    words = told.read_text().splitlines()
    assert {
        "-ffreestanding", "-nostdlib", "-static", "-mno-red-zone", "-mgeneral-regs-only",
        "-mcmodel=kernel", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fcf-protection=none",
        "-fno-asynchronous-unwind-tables", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-DEXTRA",
        "-Wl,-z,noexecstack,-z,max-page-size=4096", "-Wl,--build-id=none,--no-warn-rwx-segments",
    } <= {*words}  # fmt: skip
    assert words[words.index("-o") + 1] == str(image)
    assert words[words.index("-isystem") + 1] == str(unpacked / "usr/include")
    sources = [Path(word).name for word in words[words.index("-o") + 2 :]]
    assert sources == sorted(sources)
    assert {"main.c"} < {*sources}
    assert any(word.startswith("-Wl,-T,") and word.endswith("guest.ld") for word in words)
