"""What is written down of a dom0's hypercalls, on a machine that is made by hand.

Layouts are those of the public interface: Xen's ``xen.h`` (struct mmu_update, mmuext_op,
multicall_entry), Multiboot 0.6.96 (struct mmap), Intel SDM volume 3 (entries of tables).
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from paravirt_mm import GdbError
from paravirt_mm_xen.dom0 import boot, kept
from paravirt_mm_xen.dom0.host import Host
from paravirt_mm_xen.dom0.recording import Dom0Recording, Kind, MappedRange, Request
from paravirt_mm_xen.live.errors import MissingPieceError, XenBootError

TEXT = 0xFFFF_FFFF_8100_0000
HYPERCALL, START, MAPPING, PANIC, BACK = (TEXT + n * 0x1000 for n in range(5))
BRK_END, BRK_TOP, OFFSET_BASE = 0xFFFF_FFFF_8200_0000, 0xFFFF_FFFF_8200_0008, 0xFFFF_FFFF_8200_0010
STACK, ARGUMENTS = 0xFFFF_FFFF_8300_0000, 0xFFFF_FFFF_8400_0000
M2P = 0xFFFF_8000_0000_0000
GAP = TEXT + 0x20_0000
SYMBOLS = {
    "xen_hypercall_pv": HYPERCALL,
    "init_mem_mapping": START,
    "init_memory_mapping": MAPPING,
    "panic": PANIC,
    "startup_xen": TEXT,
    "__bss_stop": 0xFFFF_FFFF_8280_0123,
    "pgt_buf_end": BRK_END,
    "pgt_buf_top": BRK_TOP,
}
HOST = Host(512, 65536)
FIRST_FRAME = 0x1000
"""Machine frame n + this one is the domain's page n + 0x200."""


def frame(number: int) -> int:
    return FIRST_FRAME + number


def page(number: int) -> int:
    return 0x200 + number


class Gdb:
    """QEMU's gdb stub, as far as it is asked."""

    def __init__(self, stops: list[dict[str, int]]) -> None:
        self.stops = iter(stops)
        self.now: dict[str, int] = {}
        self.breakpoints: set[int] = set()
        self.memory: dict[int, bytes] = {}
        self.physical: dict[int, bytes] = {}
        self.is_physical = False
        self.did: list[Any] = []
        self.directory: Path | None = None

    def insert_breakpoint(self, address: int) -> None:
        self.breakpoints.add(address)

    def remove_breakpoint(self, address: int) -> None:
        self.breakpoints.remove(address)

    def resume(self) -> None:
        # QEMU has read its files: whoever is killed from now on leaves nothing.
        assert self.directory is not None
        assert not self.directory.exists()
        self.now = {"rsp": STACK, "rcx": 0x77, "rdx": 0, **next(self.stops, {"rip": BACK})}
        for name in ("rax", "rdi", "rsi"):
            self.now.setdefault(name, 0)
        if place := self.now.pop("then", 0):  # what the guest has written there meanwhile
            self.memory[place] = self.memory[place + (1 << 40)]

    def registers(self) -> Mapping[str, int]:
        assert self.now["rip"] in self.breakpoints or not TEXT <= self.now["rip"] < GAP
        return dict(self.now)

    def read_register(self, name: str) -> int:
        return frame(0) << 12 | 0x18 if name == "cr3" else self.now[name]

    def write_register(self, name: str, value: int) -> None:
        self.did.append((name, value))

    def step(self) -> None:
        self.did.append("step")

    def command(self, text: str) -> str:
        address, size = (int(part, 16) for part in text[1:].split(","))
        assert text[0] == "m"
        assert size <= 0x700
        for start, data in (self.physical if self.is_physical else self.memory).items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size].hex()
        return "E14"

    def expect_ok(self, text: str) -> None:
        if text.startswith("Qqemu.PhyMemMode:"):
            self.is_physical = text.endswith("1")
        elif text.startswith("Z"):
            self.did.append(text)
        else:
            where, data = text[1:].split(":")
            address, size = (int(part, 16) for part in where.split(","))
            assert (text[0], size) == ("M", len(data) // 2)
            self.did.append((address, bytes.fromhex(data)))


def hypercall(number: int, first: int = 0, second: int = 0, third: int = 0) -> dict[str, int]:
    # The upper half of rax is nothing's.
    named = {"rax": 0xABCD << 32 | number, "rdi": first, "rsi": second, "rdx": third}
    return {"rip": HYPERCALL, **named}


def tables(gdb: Gdb) -> None:
    """An L4 in frame 0; the direct map at slot 273 with an L3, three L2 and two L1; the kernel's
    own mapping at 511 shares one of them."""
    entries: dict[int, dict[int, int]] = {
        0: {0: 20, 255: 21, 258: 22, 272: 23, 273: 1, 400: 24, 401: 25, 511: 10},
        1: {0: 2, 1: 5, 511: 6},
        2: {0: 3, 5: 4},
        10: {510: 11},
        11: {0: 3},
        **{number: {} for number in (5, 6, 20, 21, 23, 24, 25)},
    }
    for number, slots in entries.items():
        words = [0] * 512
        for slot, child in slots.items():
            words[slot] = frame(child) << 12 | 0x8000_0000_0000_0067
        if number == 1:
            words[2] = frame(30) << 12 | 0xE7  # a page of 1 GiB
            words[3] = frame(31) << 12 | 0x66  # absent
        gdb.physical[frame(number) << 12] = struct.pack("<512Q", *words)


def machine_to_physical(gdb: Gdb) -> None:
    numbers = [page(number) for number in range(0x100)]
    numbers[9], numbers[12] = 0x5555_5555_5555_5555, 1 << 40  # nobody's
    numbers[13] = (1 << 40) - 1
    gdb.memory[M2P + FIRST_FRAME * 8] = struct.pack("<256Q", *numbers)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Record stops: ``record(stops, memory, symbols=..., host=...)``; also what gdb was told."""

    def run(
        stops: list[dict[str, int]],
        memory: Mapping[int, bytes] | None = None,
        *,
        symbols: Mapping[str, int] = SYMBOLS,
        host: Host | None = HOST,
        console: str = "(XEN) Xen version 4.17.7 (Debian)\nLinux version\n",
    ) -> tuple[Dom0Recording, Gdb]:
        gdb = Gdb(stops)
        tables(gdb)
        machine_to_physical(gdb)
        gdb.memory |= {
            HYPERCALL: bytes([0x51, 1, 2, 3, 4]),  # push %rcx
            STACK: struct.pack("<Q", BACK),
            BRK_END: struct.pack("<QQQ", 0x2800, 0x2840, 0xFFFF_8900_0000_0000),
            **(memory or {}),
        }

        class Machine:
            def __init__(self, _qemu: Path, _xen: Path, directory: Path, *_: object) -> None:
                self.gdb = gdb
                gdb.directory = directory
                assert (directory / "vmlinux").read_bytes() == b"unpacked"

            def __enter__(self) -> Machine:
                return self

            def __exit__(self, *_: object) -> None: ...

            def console(self) -> str:
                return console

            def tail(self) -> tuple[str, ...]:
                return ("last words",)

            def why(self, error: GdbError) -> str:
                return str(error)

        kernel = SimpleNamespace(
            symbols=dict(symbols), release="6.1.0", version="6.1.0 (somebody)",
            physical_range=(0x100_0000, 0x300_0000), unpacked=lambda: b"unpacked",
        )  # fmt: skip
        xen = tmp_path / "xen.elf"
        xen.write_bytes(bytes(24) + struct.pack("<I", 0x20_0000) + bytes(8))
        monkeypatch.setattr(boot.Kernel, "load", lambda _: kernel)
        monkeypatch.setattr(boot, "unpack_hypervisor", lambda *_: xen)
        monkeypatch.setattr(boot, "_Machine", Machine)
        pieces: Any = SimpleNamespace(qemu=tmp_path / "qemu")
        return boot.record(tmp_path / "vmlinuz", pieces, host), gdb

    return run


BEGIN = {"rip": START}


def entry(number: int, flags: int) -> int:
    return frame(number) << 12 | flags


def updates(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def operations(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<I4xQQ", *pair, 0x99) for pair in pairs)


def calls(*entries: tuple[int, ...]) -> bytes:
    return b"".join(
        struct.pack("<QQ6Q", number, 0xFFFF, *arguments, *[0] * (6 - len(arguments)))
        for number, *arguments in entries
    )


def test_each_request_is_written_down_in_the_domains_own_numbers(record: Any) -> None:
    first, second, third, fourth = (ARGUMENTS + n * 0x1000 for n in range(4))
    memory = {
        first: updates(
            (frame(3) << 12 | 511 << 3 | 2, entry(7, 0x8010_0000_0000_0163)),
            (frame(2) << 12 | 5 << 3, 0),
        ),
        second: operations((0, frame(4)), (10, 0xABC), (4, frame(8)), (5, 0x999), (14, frame(1))),
        third: calls(
            (1, fourth, 1, 0, 0x7FF0),
            (14, 0x1234_5000, entry(6, 0x61)),
            (13, fourth, 1),
            (17, 1, 2),
            (26, second, 1),
        ),
        fourth: updates((frame(1) << 12 | 8, entry(0x7F, 0x67))),
    }
    recording, gdb = record(
        [
            hypercall(1, first, 2),
            hypercall(14, 0xFFFF_8880_0000_3000, entry(9, 0x61)),
            BEGIN,
            {"rip": MAPPING, "rdi": 0, "rsi": 0x1000_0000},
            hypercall(26, second, 1 << 31 | 5, 0x55),
            hypercall(17, 6, 7),  # of another kind
            {"rip": MAPPING, "rdi": 0x1000_0000, "rsi": 0x1000_5000},
            hypercall(13, third, 5),
            hypercall(14, 0x7000, 0),
        ],
        memory,
    )
    update, flip, operate = Kind.MMU_UPDATE, Kind.UPDATE_VA_MAPPING, Kind.MMUEXT_OP
    assert recording.calls == (
        Request(update, 0, page(3), 511, 1, page(7), 0x8010_0000_0000_0163),
        Request(update, 0, page(2), 5, 2, -1, 0),
        Request(flip, 1, target=-1, flags=0x61, va=0xFFFF_8880_0000_3000),  # nobody's frame
        Request(operate, 2, page(4), command="PIN_L1_TABLE"),
        Request(operate, 2, -1, command="TLB_FLUSH_ALL"),
        Request(operate, 2, page(8), command="UNPIN_TABLE"),
        Request(operate, 2, -1, command="NEW_BASEPTR"),  # where there is no such frame
        Request(operate, 2, page(1), command="command 14"),
        Request(update, 3, page(1), 1, 3, page(0x7F), 0x67),
        Request(flip, 3, target=page(6), flags=0x61, va=0x1234_5000),
        Request(operate, 3, page(4), command="PIN_L1_TABLE"),
        Request(flip, 4, target=-1, flags=0, va=0x7000),
    )
    assert recording.begin == 3
    assert recording.mappings == (
        MappedRange(0, 0x1000_0000, 3), MappedRange(0x1000_0000, 0x1000_5000, 8)
    )  # fmt: skip
    assert recording.image == (
        0x100_0000, 0x280_0123, 0x2800 << 12, 0x2840 << 12, 0x300_0000
    )  # fmt: skip
    assert (recording.kernel, recording.xen) == ("6.1.0 (somebody)", "4.17.7")
    assert (recording.host_mib, recording.dom0_mib, recording.pages) == (512, 256, 65536)
    assert recording.log == ("(XEN) Xen version 4.17.7 (Debian)", "Linux version")
    assert recording.panic is None
    # The push under the breakpoint is carried out by hand, what is under another one by a step.
    push = [(STACK - 8, struct.pack("<Q", 0x77)), ("rsp", STACK - 8), ("rip", HYPERCALL + 1)]
    assert gdb.did == [*push * 2, "step", *push * 2, "step", *push * 2]
    assert gdb.breakpoints == {HYPERCALL, MAPPING, PANIC, BACK}


@pytest.mark.parametrize("moved", [False, True])
def test_tables_that_stand_in_the_end(record: Any, moved: bool) -> None:
    """Of the direct map, wherever it begins (4.20 and later say so), by level."""
    symbols = {**SYMBOLS, "page_offset_base": OFFSET_BASE} if moved else SYMBOLS
    recording, _ = record([BEGIN], symbols=symbols)
    slot = 0xFFFF_8900_0000_0000 >> 39 & 511
    assert slot == 274
    gib = 1 << 30
    shift = (273 - slot if moved else 0) << 39
    of_the_map = [
        (3, page(1), 0), (2, page(2), 0), (2, page(5), gib), (2, page(6), 511 * gib),
        (1, page(3), 0), (1, page(4), 5 << 21),
    ]  # fmt: skip
    # Slot 400 is the last one of 64 TiB from 273 on, slot 401 from 274 on.
    last = (3, page(25 if moved else 24), 127 << 39)
    others = [(3, page(24), 126 << 39)] if moved else []
    expected = [] if shift else of_the_map
    assert sorted(recording.tables) == sorted([*expected, last, *others])


def test_stubs_of_the_hypercall_page(record: Any) -> None:
    """Each moves its number to eax, behind two pushes: 32 bytes a stub."""
    old = {name: at for name, at in SYMBOLS.items() if name != "xen_hypercall_pv"}
    stubs = {number: HYPERCALL + 32 * number + 3 for number in (1, 13, 14, 26)}
    memory = {at: b"\xb8" + struct.pack("<I", number) for number, at in stubs.items()}
    memory[HYPERCALL + 8 * 32] = bytes(8)
    arguments = {
        ARGUMENTS: updates((frame(3) << 12, entry(7, 0x63))),
        ARGUMENTS + 0x1000: operations((1, frame(5))),
        ARGUMENTS + 0x2000: calls((14, 0x2000, entry(5, 0x61))),
    }
    stops = [
        BEGIN,
        {"rip": stubs[1], "rdi": ARGUMENTS, "rsi": 1},
        {"rip": stubs[14], "rdi": 0x1000, "rsi": entry(4, 0x61)},
        {"rip": stubs[26], "rdi": ARGUMENTS + 0x1000, "rsi": 1},
        {"rip": stubs[13], "rdi": ARGUMENTS + 0x2000, "rsi": 1},
    ]
    recording, gdb = record(stops, memory | arguments, symbols={**old, "hypercall_page": HYPERCALL})
    assert [(call.kind, call.hypercall) for call in recording.calls] == [
        (Kind.MMU_UPDATE, 0), (Kind.UPDATE_VA_MAPPING, 1), (Kind.MMUEXT_OP, 2),
        (Kind.UPDATE_VA_MAPPING, 3),
    ]  # fmt: skip
    assert recording.calls[2].command == "PIN_L2_TABLE"
    assert recording.begin == 0
    assert gdb.did == [
        did for number in (1, 14, 26, 13) for did in (("rax", number), ("rip", stubs[number] + 5))
    ]


def test_where_the_code_is_known_hypercalls_stop_behind_a_watched_word(record: Any) -> None:
    """Without a breakpoint, a register that is written or a step: each costs QEMU its code."""
    symbols = {**SYMBOLS, "_etext": GAP, "__start_rodata": GAP + 0x4000}
    memory = {
        HYPERCALL: bytes.fromhex("5141530f05"), GAP: bytes(0x4000),
        ARGUMENTS: operations((1, frame(5))),
    }  # fmt: skip
    behind = {"rip": GAP + 0x3000 + 10}
    stops = [
        hypercall(26, ARGUMENTS, 1),  # comes again, led
        hypercall(26, ARGUMENTS, 1) | behind,
        BEGIN,
        hypercall(14, 0x1000, entry(4, 0x61)) | behind,
    ]
    recording, gdb = record(stops, memory, symbols=symbols)
    assert [(call.kind, call.pfn) for call in recording.calls] == [
        (Kind.MMUEXT_OP, page(5)), (Kind.UPDATE_VA_MAPPING, -1)
    ]  # fmt: skip
    assert recording.begin == 1
    (code, _), (entry_at, _), watch = gdb.did
    assert (code, entry_at, watch) == (GAP + 0x3000, HYPERCALL, f"Z2,{GAP + 0x2000:x},8")
    assert gdb.breakpoints == {MAPPING, PANIC, BACK}
    # Where the code is another it is looked at once, and breakpoints go on.
    recording, gdb = record([*stops[:1], BEGIN], memory | {GAP: b"\x90" * 0x4000}, symbols=symbols)
    assert len(recording.calls) == 1
    assert HYPERCALL in gdb.breakpoints


@pytest.mark.parametrize("bit", [28, 38, 39])
def test_frames_of_40_bits_are_looked_up(record: Any, bit: int) -> None:
    """Above bit 51 of an entry there are flags, which are no part of it."""
    high = 1 << bit | 0x80
    memory = {
        M2P + high * 8: struct.pack("<128Q", *range(0x700, 0x780)),
        ARGUMENTS: updates((frame(1) << 12, (high + 0x7F) << 12 | 0x8010_0000_0000_0063)),
        ARGUMENTS + 0x1000: operations((0, high + 6)),
    }
    flip, update, pin = (
        record([BEGIN, stop], memory)[0].calls[0]
        for stop in (
            hypercall(14, 0x1000, (high + 0x7F) << 12 | 0xFFF0_0000_0000_0061),
            hypercall(1, ARGUMENTS, 1),
            hypercall(26, ARGUMENTS + 0x1000, 1),
        )
    )
    assert record([BEGIN, hypercall(14, 0x1000, 1 << 52 | 0x61)], memory)[0].calls[0].target == -1
    assert (flip.target, update.target, pin.pfn) == (0x77F, 0x77F, 0x706)
    assert (flip.flags, update.flags) == (0xFFF0_0000_0000_0061, 0x8010_0000_0000_0063)


def test_a_host_that_nobody_names_has_as_much_as_a_dom0_needs(record: Any) -> None:
    recording, _ = record([BEGIN], host=None, console="no word of Xen's\n")
    assert (recording.host_mib, recording.dom0_mib, recording.e820) == (1024, 512, ())
    assert recording.xen == ""


def test_tables_that_no_other_refers_to_have_numbers_too(record: Any) -> None:
    """Built, and given back before the end: level 0."""
    memory = {ARGUMENTS: updates((frame(0x90) << 12 | 8, 0))}
    recording, _ = record([BEGIN, hypercall(1, ARGUMENTS, 1)], memory)
    assert recording.calls == (Request(Kind.MMU_UPDATE, 0, page(0x90), 1, 0, -1, 0),)


def test_tables_of_the_kernels_own_mapping_have_levels(record: Any) -> None:
    """Of the last entry of the root, too."""
    memory = {ARGUMENTS: updates(*((frame(n) << 12, 0) for n in (0, 10, 11, 3)))}
    recording, _ = record([BEGIN, hypercall(1, ARGUMENTS, 4)], memory)
    assert [call.level for call in recording.calls] == [4, 3, 2, 1]


def test_any_other_instruction_is_carried_out_by_a_step(record: Any) -> None:
    _, gdb = record([BEGIN, hypercall(14)], {HYPERCALL: bytes([0x90] * 5)})
    assert gdb.did == ["step"]


def test_other_requests_at_the_same_place_are_another_call(record: Any) -> None:
    first, second = updates((frame(3) << 12, 0)), updates((frame(3) << 12 | 8, 0))
    stop = hypercall(1, ARGUMENTS, 1)
    stops = [BEGIN, stop, {**stop, "then": ARGUMENTS}]
    memory = {ARGUMENTS: first, ARGUMENTS + (1 << 40): second}
    recording, _ = record(stops, memory)
    assert [call.index for call in recording.calls] == [0, 1]


def test_a_stop_that_comes_back_is_one_call(record: Any) -> None:
    """An interrupt takes the processor away from a breakpoint and brings it back."""
    once = hypercall(14, 0x1000, entry(3, 0x61))
    for change, times in (
        ({}, 1), ({"rdi": 0x2000}, 2), ({"rsi": 0}, 2), ({"rsp": STACK + 8}, 2), ({"rcx": 1}, 2)
    ):  # fmt: skip
        recording, _ = record([BEGIN, once, {**once, **change}])
        assert len(recording.calls) == times


def test_as_many_requests_as_are_read(record: Any) -> None:
    many = updates(*((frame(3) << 12 | n % 512 << 3, 0) for n in range(1024)))
    recording, _ = record([BEGIN, hypercall(1, ARGUMENTS, 1024)], {ARGUMENTS: many})
    assert [call.index for call in recording.calls] == [*range(512)] * 2
    with pytest.raises(XenBootError, match=r"6.1.0: a hypercall with 1025 requests"):
        record([BEGIN, hypercall(1, ARGUMENTS, 1025)], {ARGUMENTS: many})


def test_limits_are_those_of_the_security_policy(checkout: Path) -> None:
    seconds = f"{boot.SECONDS:g} s ({kept.SECONDS:g} s as a row of a comparison)"
    limits = f"{seconds}, {boot.MAX_STOPS:,} stops, {boot.MAX_REQUESTS} requests of one call"
    row = f"\n| a boot of a dom0 that is recorded | {limits} |\n"
    assert row in (checkout / "SECURITY.md").read_text("utf-8")
    # The row must be told of as one that came to nothing, not end with the whole scenario.
    assert kept.SECONDS < boot.SECONDS


def test_boots_that_do_not_get_there(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {ARGUMENTS: b"memory conflicts with E820 map\n\0more".ljust(200)}
    stop = {"rip": PANIC, "rdi": ARGUMENTS}
    recording, _ = record([BEGIN, hypercall(14), stop, hypercall(14, 1)], words)
    assert recording.panic == "memory conflicts with E820 map"
    assert len(recording.calls) == 1
    for stops, says in (
        ([stop], "panic before init_mem_mapping: memory conflicts with E820 map"),
        ([{"rip": 0x1234}], "stopped at 0x1234, where no breakpoint is"),
        ([hypercall(1, 0x5000, 1)], "no memory at 0x5000: 'E14'"),
    ):
        with pytest.raises(XenBootError, match=says):
            record(stops, words)
    monkeypatch.setattr(boot, "MAX_STOPS", 3)
    assert len(record([BEGIN, hypercall(14)])[0].calls) == 1
    with pytest.raises(XenBootError, match="did not end after 3 stops"):
        record([BEGIN, hypercall(14), hypercall(14, 1)])


def test_a_map_is_exchanged_before_xen_begins(record: Any) -> None:
    """The loader's information names it at 44: its length, then where it is."""
    e820 = tuple((n << 20, (n << 20) + 0x1000 * (n + 1), 1 + n % 2) for n in range(50))
    host = Host(512, 65535, e820)
    recording, gdb = record([{"rip": 0x20_0000, "rbx": 0xDEAD_0000_9001}, BEGIN], host=host)
    assert recording.e820 == e820
    assert (recording.pages, recording.dom0_mib) == (65535, 255)  # whole MiB of them
    given = b"".join(struct.pack("<IQQI", 20, low, high - low, kind) for low, high, kind in e820)
    (first, one), (second, two), told = gdb.did
    assert (first, one + two, second) == (0x10000, given, 0x10000 + len(one))
    assert len(one) == 0x400
    assert told == (0x9001 + 44, struct.pack("<II", 50 * 24, 0x10000))
    assert 0x20_0000 not in gdb.breakpoints


def without(names: str) -> Iterator[tuple[str, dict[str, int]]]:
    for name in names.split():
        yield name, {key: at for key, at in SYMBOLS.items() if key != name}


@pytest.mark.parametrize(
    ("name", "symbols"),
    [
        *without("init_mem_mapping init_memory_mapping panic __bss_stop pgt_buf_end pgt_buf_top"),
        *without("startup_xen"),
        ("hypercall_page", dict(without("xen_hypercall_pv"))["xen_hypercall_pv"]),
    ],
)
def test_kernels_that_cannot_be_a_dom0(record: Any, name: str, symbols: dict[str, int]) -> None:
    with pytest.raises(MissingPieceError, match=f"6.1.0 has no {name}"):
        record([BEGIN], symbols=symbols)
    fewer = {key: at for key, at in symbols.items() if key not in ("startup_xen", "pgt_buf_top")}
    first = min(name, "pgt_buf_top", key=[*boot._NEEDED, "startup_xen", "hypercall_page"].index)
    with pytest.raises(MissingPieceError, match=f"6.1.0 has no {first}"):
        record([BEGIN], symbols=fewer)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, {}),
        ({"gbpages": False}, {"-cpu": "max,-smap,-pdpe1gb"}),
        ({"initrd": 5000}, {"-initrd": "vmlinux {} mem=1G,initrd"}),
        (
            {"mib": 700, "e820": ((0, 4096, 1),)},
            {"-m": "700", "-append": "{} no-real-mode e820-mtrr-clip=no"},
        ),
    ],
    ids=["plain", "1 GiB pages", "initrd", "map"],
)
def test_what_qemu_is_started_with(
    change: dict[str, Any],
    differs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boot, "GdbClient", lambda *_: None)
    monkeypatch.setattr(boot, "die_with_parent", list)
    qemu, work = tmp_path / "qemu", tmp_path / "work"
    write = "printf '%s\\n' \"$@\" > $0.new; mv $0.new $0.args; exec sleep 60"
    qemu.write_text(f"#!/bin/sh\n{write}\n")
    qemu.chmod(0o755)
    work.mkdir()
    host = attrs.evolve(Host(512, 65536), **change)
    with boot._Machine(qemu, work / "xen.elf", work, host, 30, "mem=1G"):
        told = tmp_path / "qemu.args"
        while not told.exists():
            time.sleep(0.002)
        words = told.read_text().splitlines()
    if host.initrd:
        assert (work / "initrd").stat().st_size == 5000
    given = {one: two for one, two in itertools.pairwise(words) if one[0] == "-"}
    xen = (
        "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=error dom0=pv "
        "dom0_mem=262144K,max:262144K dom0_max_vcpus=1"
    )
    linux = "earlyprintk=xen console=hvc0 ignore_loglevel nokaslr"
    expected = {
        "-accel": "tcg", "-cpu": "max,-smap,+pdpe1gb", "-smp": "1", "-m": "512",
        "-kernel": "xen.elf", "-append": xen, "-initrd": f"vmlinux {linux} mem=1G",
        "-serial": "file:console.log", "-gdb": "chardev:gdb", "-display": "none",
    }  # fmt: skip
    changed = {
        key: value.format(xen if key == "-append" else linux) for key, value in differs.items()
    }
    assert {key: given[key] for key in expected} == {**expected, **changed}
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(words)
