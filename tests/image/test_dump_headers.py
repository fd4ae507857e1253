"""Headers of cores at every limit: the last that counts, and the first that does not."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paravirt_mm import InputError
from paravirt_mm.image import dump as reader, elf
from paravirt_mm.image.contents import Image
from paravirt_mm.image.dump import Dump, open_dump
from paravirt_mm.image.elf import control_registers, core_header, stream_core
from paravirt_mm.image.walker import canonical
from paravirt_mm.machine.paging import I386, I386_PAE, MODES, X86_64, X86_64_LA57

PAGE = 4096


def note(name: bytes, content: bytes, kind: int = 0) -> bytes:
    label = name + b"\0"
    return (
        struct.pack("<III", len(label), len(content), kind)
        + label + bytes(-len(label) % 4) + content + bytes(-len(content) % 4)
    )  # fmt: skip


def cpu(cr0: int, cr3: int, cr4: int, size: int = 440) -> bytes:
    state = bytearray(440)
    struct.pack_into("<5Q", state, 392, cr0, 0, 0, cr3, cr4)
    return note(b"QEMU", bytes(state[:size]))


def core(
    loads: list[tuple[int, int, int]],
    notes: bytes = b"",
    *,
    machine: int = 62,
    extended: bool = False,
    entry: int = 56,
    wide: bool = True,
) -> bytes:
    """A core with segments (physical address, offset, length); page ``n`` of it holds ``n``.

    Narrow ones have the fields of 64-bit ones in 4 bytes each, flags behind the sizes.
    """
    count = len(loads) + 1
    table = PAGE
    sections = 8 * PAGE if extended else 0
    header = bytes([*b"\x7fELF", 1 + wide, 1, 1]).ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", 4, machine, 1, 0, table, sections, 0, 64,
        entry, 0xFFFF if extended else count, 64, 1, 0,
    )  # fmt: skip
    data = bytearray(b"".join(bytes([n]) * PAGE for n in range(16)))
    data[: len(header)] = header
    rows = [(4, 6 * PAGE, 0, 0, len(notes), 0, 4)]
    seen = 1 << 40 if wide else 0xC000_0000
    rows += [(1, at, physical + seen, physical, size, size, 0) for physical, at, size in loads]
    headers = [
        struct.pack("<IIQQQQQQ", kind, 5, *numbers, align)
        if wide
        else struct.pack("<8I", kind, *numbers, 5, align)
        for kind, *numbers, align in rows
    ]
    body = b"".join(each.ljust(entry, b"\0") for each in headers)
    data[table : table + len(body)] = body
    data[6 * PAGE : 6 * PAGE + len(notes)] = notes
    if extended:
        data[sections : sections + 64] = struct.pack(
            "<IIQQQQIIQQ" if wide else "<IIIIIIIIII24x", 0, 0, 0, 0, 0, 0, 0, count, 0, 0
        )
    return bytes(data)


Open = Callable[[bytes], Dump]


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    dumps: list[Dump] = []

    def write(data: bytes) -> Dump:
        path = tmp_path / f"core{len(dumps)}"
        path.write_bytes(data)
        dumps.append(open_dump(path))
        return dumps[-1]

    yield write
    for each in dumps:
        each.close()
        each.close()  # does no harm


ONE = [(0x1000, 10 * PAGE, PAGE)]


def test_pages_are_read_where_they_are_said_to_lie(opened: Open) -> None:
    dump = opened(core([(0x5000, 11 * PAGE, 2 * PAGE), *ONE, (0x9000, 14 * PAGE, 100)]))
    assert [(s.start, s.end, s.offset) for s in dump.segments] == [
        (0x1000, 0x2000, 10 * PAGE),
        (0x5000, 0x7000, 11 * PAGE),
        (0x9000, 0x9064, 14 * PAGE),
    ]
    assert dump.segments[0].virtual == 0x1000 + (1 << 40)
    for address, size, seen in [
        (0x1000, 1, b"\n"), (0x1FFF, 1, b"\n"), (0x1FFF, 2, None), (0xFFF, 1, None),
        (0x5FFF, 2, b"\v\f"), (0x6FFF, 1, b"\f"), (0x7000, 1, None), (0x9063, 1, b"\x0e"),
        (0x9063, 2, None), (0x1000, 0, b""),
    ]:  # fmt: skip
        assert dump.read(address, size) == seen
    assert dump.problems == ()


@pytest.mark.parametrize(("wide", "section"), [(True, 64), (False, 40)])
def test_cores_of_both_widths(opened: Open, wide: bool, section: int) -> None:
    """System V ABI: Elf64_Shdr has 64 bytes, Elf32_Shdr 40; the number of segments may be its."""
    loads = [(0x5000, 3 * PAGE, PAGE), (0x8000, 2 * PAGE, 5)]
    data = core(loads, note(b"VMCOREINFO", b"a=1"), wide=wide, entry=64, extended=True)
    for read in (opened(data), opened(data[: 8 * PAGE + section])):
        assert [(s.start, s.end, s.offset, s.virtual) for s in read.segments] == [
            (physical, physical + size, at, physical + (1 << 40 if wide else 0xC000_0000))
            for physical, at, size in loads
        ]
        assert (dict(read.facts), read.problems) == ({"a": "1"}, ())
    assert opened(data[: 8 * PAGE + section - 1]).problems[0] == (
        "the number of program headers is not in the file"
    )
    many = bytearray(data)
    many[8 * PAGE + (47 if wide else 31)] = 1  # the highest byte of sh_info
    assert opened(bytes(many)).problems[0] == ("16777219 program headers; only 1048576 are read")


def test_only_segments_that_are_loaded_are_memory(opened: Open) -> None:
    """System V ABI: PT_LOAD is 1; PT_NULL, PT_DYNAMIC or a vendor's own may lie there, too."""
    load = struct.pack("<II", 1, 5)
    for kind in (0, 2, 3, 0x6474_E551):
        other = core([(0x3000, 11 * PAGE, PAGE)]).replace(load, struct.pack("<II", kind, 5))
        with pytest.raises(InputError, match="holds no memory"):
            opened(other)


def test_a_file_that_became_shorter(opened: Open) -> None:
    dump = opened(core(ONE))
    assert dump.read(0x1000, PAGE) == b"\n" * PAGE
    os.truncate(dump.path, 11 * PAGE - 1)
    assert dump.read(0x1000, PAGE) is None
    assert dump.read(0x1000, PAGE - 1) == b"\n" * (PAGE - 1)


def test_limits_are_those_of_the_security_policy(opened: Open) -> None:
    """`SECURITY.md` promises: 1,048,576 segments, 16 MiB of notes, 64 MiB read at once."""
    assert (reader.MAX_SEGMENTS, reader.MAX_NOTES, reader.MAX_READ) == (
        1_048_576, 16 << 20, 64 << 20,
    )  # fmt: skip
    assert (reader.MAX_NOTE_COUNT, reader.MAX_FACTS, reader.MAX_PROBLEMS) == (100_000, 10_000, 100)


def test_memory_that_is_there_twice_or_not_at_all(opened: Open) -> None:
    """The first piece counts where two overlap; one that another covers is none."""
    dump = opened(
        core(
            [(0x1000, 9 * PAGE, 2 * PAGE), (0x2000, 12 * PAGE, 2 * PAGE), (0x1000, 15 * PAGE, PAGE)]
        )
    )
    assert [(s.start, s.end, s.offset, s.virtual - (1 << 40)) for s in dump.segments] == [
        (0x1000, 0x2000, 15 * PAGE, 0x1000),
        (0x2000, 0x3000, 10 * PAGE, 0x2000),
        (0x3000, 0x4000, 13 * PAGE, 0x3000),
    ]
    assert dump.problems == ("2 segments overlap others; the first one is used",)
    nothing = opened(core([(0x1000, 9 * PAGE, 2 * PAGE), (0x1800, 12 * PAGE, 0)]))
    assert ([(s.start, s.end) for s in nothing.segments], nothing.problems) == (
        [(0x1000, 0x3000)], ()
    )  # fmt: skip
    cut = opened(
        core([(0x1000, 15 * PAGE, PAGE), (0x8000, 15 * PAGE + 96, PAGE), (0x20000, 17 * PAGE, 5)])
    )
    assert [(s.start, s.end) for s in cut.segments] == [(0x1000, 0x2000), (0x8000, 0x8FA0)]
    assert cut.problems == (
        "truncated: of memory 0x8000-0x9000 only 0xfa0 bytes are in the file",
        "truncated: of memory 0x20000-0x20005 only 0x0 bytes are in the file",
    )
    with pytest.raises(InputError, match="holds no memory"):
        opened(core([(0x1000, 16 * PAGE, PAGE)]))
    with pytest.raises(InputError, match="holds no memory"):
        opened(core([(0x1000, 10 * PAGE, 0)]))


def test_how_much_is_read_at_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = opened(core(ONE))
    monkeypatch.setattr(reader, "MAX_READ", 100)
    assert dump.read(0x1000, 100) == b"\n" * 100
    for size in (101, -1):
        with pytest.raises(ValueError, match=f"read of {size} bytes"):
            dump.read(0x1000, size)


def test_as_many_segments_as_are_read(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = [(0x1000 * n, 10 * PAGE, PAGE) for n in range(1, 4)]
    monkeypatch.setattr(reader, "MAX_SEGMENTS", 4)
    assert opened(core(loads)).problems == ()
    monkeypatch.setattr(reader, "MAX_SEGMENTS", 3)
    dump = opened(core(loads))
    assert dump.problems == ("4 program headers; only 3 are read",)
    assert len(dump.segments) == 2


@pytest.mark.parametrize("entry", [56, 64])
def test_how_many_headers_there_are(opened: Open, entry: int) -> None:
    """Where the number does not fit it stands in the first section's header."""
    assert opened(core(ONE, extended=True, entry=entry)).problems == ()
    assert opened(core(ONE, extended=True, entry=entry)).segments[0].start == 0x1000
    lost = core(ONE, extended=True, entry=entry)
    with pytest.raises(InputError, match="holds no memory"):
        opened(lost[: 8 * PAGE + 63])
    with pytest.raises(InputError, match="has program headers of 55 bytes"):
        opened(core(ONE).replace(struct.pack("<HHH", 64, 56, 2), struct.pack("<HHH", 64, 55, 2)))
    short = core([(0x1000, 0, PAGE), (0x3000, 0, PAGE)], entry=entry)
    dump = opened(short[: PAGE + 2 * entry + 55])
    assert dump.problems[0] == "the file ends inside its program headers"
    assert len(dump.segments) == 1


def test_notes_as_far_as_they_are_read(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = note(b"VMCOREINFO", b"a=1\nb=2\na=3\nno fact\n") + note(b"OTHER", b"c=1\n")
    both = facts + note(b"PARAVIRT_MM", b"d=4=5\n")
    assert dict(opened(core(ONE, both)).facts) == {"a": "1", "b": "2", "d": "4=5"}
    monkeypatch.setattr(reader, "MAX_NOTES", len(both))
    assert opened(core(ONE, both)).problems == ()
    monkeypatch.setattr(reader, "MAX_NOTES", len(both) - 1)
    assert "the notes are truncated" in opened(core(ONE, both)).problems
    monkeypatch.undo()
    monkeypatch.setattr(reader, "MAX_NOTE_COUNT", 3)
    assert "d" in opened(core(ONE, both)).facts
    monkeypatch.setattr(reader, "MAX_NOTE_COUNT", 2)
    assert "d" not in opened(core(ONE, both)).facts
    monkeypatch.undo()
    for facts_read in (1, 2, 3):
        monkeypatch.setattr(reader, "MAX_FACTS", facts_read)
        assert [*opened(core(ONE, both)).facts] == ["a", "b", "d"][:facts_read]
    monkeypatch.undo()
    # A name ends with its first NUL, or where it is said to: "QEMU" without one is a name, too.
    bare = struct.pack("<III", 4, 440, 0) + b"QEMU" + cpu(1 << 31, 0x1000, 0)[20:]
    assert opened(core(ONE, bare)).cr3 == 0x1000
    assert opened(core(ONE, note(b"QEMU\0x", cpu(1 << 31, 0x1000, 0)[20:]))).cr3 == 0x1000
    assert opened(core(ONE, note(b"QEMUx", cpu(1 << 31, 0x1000, 0)[20:]))).cr3 is None
    dump = opened(core(ONE, facts + note(b"PARAVIRT_MM", b"d=4567")[:-4]))
    assert dump.problems == ("a note is truncated",)


def test_as_many_problems_as_are_told(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_PROBLEMS", 2)
    loads = [(0x1000 * n, 16 * PAGE - 1, PAGE) for n in range(2, 6)]
    problems = opened(core([*ONE, loads[0], *loads])).problems
    assert [problem[:30] for problem in problems] == [
        "truncated: of memory 0x2000-0x",
        "truncated: of memory 0x3000-0x",
        "and more",
    ]


PG = 1 << 31


@pytest.mark.parametrize(
    ("notes", "machine", "cr3", "mode"),
    [
        (cpu(PG, 0x1FFF, 0), 62, 0x1000, X86_64),
        (cpu(PG, 0x1FFF, 1 << 12), 62, 0x1000, X86_64_LA57),
        (cpu(PG, 0x1FFF, 1 << 5), 3, 0x1FE0, I386_PAE),
        (cpu(PG, 0x1FFF, 0), 3, 0x1000, I386),
        (cpu(PG - 1, 0x1FFF, 0), 3, None, None),
        (cpu(PG, 0x1000, 0, 432), 62, 0x1000, X86_64),
        (cpu(PG, 0x1000, 0, 428), 62, None, None),
        (cpu(PG, 0x1000, 0) + cpu(PG, 0x2000, 0), 62, 0x1000, X86_64),
        (note(b"PARAVIRT_MM", b"mode=i386\ncr3=0x3000\n") + cpu(PG, 0x1000, 0), 62, 0x3000, I386),
        (note(b"PARAVIRT_MM", b"mode=i386\ncr3=0\n"), 62, 0, I386),
        (note(b"PARAVIRT_MM", b"mode=i386\ncr3=0x10000000000000\n"), 62, None, I386),
        (note(b"PARAVIRT_MM", b"mode=i386\ncr3=0xfffffffffffff\n"), 62, (1 << 52) - 1, I386),
        (note(b"PARAVIRT_MM", b"mode=i386\ncr3=-1\n"), 62, None, I386),
        (note(b"PARAVIRT_MM", b"mode=none\ncr3=0x3000\n") + cpu(PG, 0x1000, 0), 62, 0x1000, X86_64),
        (note(b"VMCOREINFO", b"SYMBOL(swapper_pg_dir)=c1000000\n"), 3, 0x1000000, I386),
        (
            note(b"VMCOREINFO", b"SYMBOL(swapper_pg_dir)=c1000000\nCONFIG_X86_PAE=y\n"),
            3, 0x1000000, I386_PAE,
        ),
        (note(b"VMCOREINFO", b"SYMBOL(swapper_pg_dir)=bfffffff\n"), 3, None, I386),
        (
            note(
                b"VMCOREINFO",
                b"SYMBOL(swapper_pg_dir)=ffffffff81000000\nNUMBER(phys_base)=-16777216\n",
            ),
            62, 0, X86_64,
        ),
        *(
            (
                note(
                    b"VMCOREINFO",
                    b"SYMBOL(swapper_pg_dir)=ffffffff80000000\nNUMBER(phys_base)=%d\n" % root,
                ),
                62, root if root < 1 << 52 else None, X86_64,  # addresses have 52 bits at the most
            )
            for root in ((1 << 52) - 4096, 1 << 52)
        ),
        (b"", 62, None, None),
    ],
)  # fmt: skip
def test_where_the_root_is(
    opened: Open, notes: bytes, machine: int, cr3: int | None, mode: Any
) -> None:
    dump = opened(core(ONE, notes, machine=machine))
    assert (dump.cr3, dump.mode) == (cr3, mode)


def test_a_raw_file_is_all_memory(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"x" * 100)
    with open_dump(path, 0x1000) as dump:
        assert [(s.start, s.end, s.offset, s.virtual) for s in dump.segments] == [
            (0x1000, 0x1064, 0, 0)
        ]
        assert (dump.cr3, dump.mode, dict(dump.facts)) == (None, None, {})
    with open_dump(path) as dump:
        assert dump.read(0, 100) == b"x" * 100


# -- the headers that are written ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cr4"), [("i386", 0x90), ("i386-pae", 0xB0), ("x86_64", 0xB0), ("x86_64-la57", 0x10B0)]
)
def test_control_registers_of_a_mode(name: str, cr4: int) -> None:
    """CR0: PE, WP, PG; CR4: PSE and PGE, with PAE and LA57 where the mode has them."""
    assert control_registers(MODES[name]) == (0x8001_0001, cr4)


@pytest.mark.parametrize(
    ("name", "machine", "status", "pid"),
    [("i386", 3, 144, 24), ("i386-pae", 3, 144, 24), ("x86_64", 62, 336, 32)],
)
def test_every_field_of_a_header(name: str, machine: int, status: int, pid: int) -> None:
    """System V ABI, figures 4-3 and 5-1; struct elf_prstatus; QEMUCPUState."""
    mode = MODES[name]
    extents = [(0x1000, 0x3000), (0x8000, 0x9000)]
    data = core_header(mode, 0x5000, extents, mode.direct_map_base, {"a": "b", "c\n": "d"})
    assert len(data) % PAGE == 0
    assert data[:16] == b"\x7fELF\x02\x01\x01" + bytes(9)
    assert struct.unpack_from("<HHIQQQIHHHHHH", data, 16) == (
        4, machine, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0,
    )  # fmt: skip
    headers = [struct.unpack_from("<IIQQQQQQ", data, 64 + 56 * n) for n in range(3)]
    kind, flags, at, virtual, physical, size, in_memory, align = headers[0]
    assert (kind, flags, at, virtual, physical, align) == (4, 0, 64 + 3 * 56, 0, 0, 4)
    assert size == in_memory
    assert len(data) == -(-(at + size) // PAGE) * PAGE
    offset = len(data)
    for (low, high), header in zip(extents, headers[1:], strict=True):
        length = high - low
        seen = canonical(mode, mode.direct_map_base + low)
        assert header == (1, 0, offset, seen, low, length, length, PAGE)
        offset += length
    notes = {}
    end = at + size
    while at < end:
        label, length, kind = struct.unpack_from("<III", data, at)
        at += 12
        text = data[at : at + label]
        assert text.endswith(b"\0")
        at += -(-label // 4) * 4
        notes[text[:-1]] = kind, data[at : at + length]
        at += -(-length // 4) * 4
    assert at == end
    assert [*notes] == [b"CORE", b"QEMU", b"PARAVIRT_MM"]
    kind, task = notes[b"CORE"]
    assert (kind, len(task)) == (1, status)
    assert task == bytes(pid) + b"\x01" + bytes(status - pid - 1)
    kind, state = notes[b"QEMU"]
    assert (kind, len(state)) == (0, 440)
    assert struct.unpack_from("<II", state) == (1, 440)
    assert struct.unpack_from("<5Q", state, 392) == (
        0x8001_0001, 0, 0, 0x5000, control_registers(mode)[1],
    )  # fmt: skip
    assert state[8:392] == bytes(384)
    assert state[432:] == bytes(8)
    kind, text = notes[b"PARAVIRT_MM"]
    assert (kind, text) == (0, b"a=b\nc\n=d\n")


@pytest.mark.parametrize(("segments", "extended"), [(2, False), (3, True), (4, True)])
def test_a_number_of_headers_that_does_not_fit(
    segments: int, extended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """System V ABI: it stands in sh_info of the first section's header, all else of which is 0."""
    assert elf.PN_XNUM == 0xFFFF
    monkeypatch.setattr(elf, "PN_XNUM", 4)
    extents = [(n * 0x2000, n * 0x2000 + 0x1000) for n in range(segments)]
    data = core_header(X86_64, 0x5000, extents, 0, {})
    count, after = segments + 1, 64 + (segments + 1) * 56
    phnum, *sections = struct.unpack_from("<HHHH", data, 56)
    assert phnum == (4 if extended else count)
    assert struct.unpack_from("<Q", data, 40)[0] == (after if extended else 0)
    assert sections == ([64, 1, 0] if extended else [0, 0, 0])
    notes_at = struct.unpack_from("<IIQ", data, 64)[2]
    assert notes_at == after + (64 if extended else 0)
    if extended:
        assert struct.unpack_from("<IIQQQQIIQQ", data, after) == (0,) * 7 + (count, 0, 0)
    assert data[notes_at + 12 : notes_at + 17] == b"CORE\0"


def test_values_of_facts_are_cut() -> None:
    for length in (255, 256, 300):
        data = core_header(X86_64, 0x5000, [(0x1000, 0x2000)], 0, {"a": "x" * length, "b": "c"})
        at = data.index(b"a=x")
        line = data[at : data.index(b"\nb=c\n", at)].decode()
        assert len(line) == 2 + min(length, 256)


def test_a_pipe_that_takes_little_gets_everything(small_run: Any) -> None:
    image = Image(small_run("x86_64", "incremental:variant=hpa", "native").trace)
    parts: list[bytes] = []

    def little(data: Any) -> int | None:
        taken = bytes(data[:5000])
        parts.append(taken if len(parts) % 3 else b"")
        return len(parts[-1]) or None

    whole: list[bytes] = []
    size = stream_core(image, lambda data: whole.append(bytes(data)) or len(data))
    assert stream_core(image, little) == size == len(b"".join(whole))
    assert b"".join(parts) == b"".join(whole)
