"""What SECURITY.md says that readers take is what they take, and there each of them stops."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import attrs
import pytest

from paravirt_mm import E820Type, InputError, Machine, MemoryMap, bundled
from paravirt_mm.image import dump
from paravirt_mm.machine.paging import GIB, I386, I386_PAE, MIB, PAGE_SIZE, X86_64_LA57
from paravirt_mm.sources import (
    archives,
    checker,
    content,
    firmware_map,
    inputs,
    iomem,
    lines,
    machine_file,
    oracle_machines,
    possible,
)
from paravirt_mm.sources.bootlog import linux, reconstruct, xen
from paravirt_mm.sources.generated import generate, generated
from tests.sources.packed import tar

load: Any = importlib.import_module("paravirt_mm.sources.load")
"""The module: the package has a function of that name."""


def mib(size: int) -> str:
    assert size % MIB == 0
    return f"{size // MIB} MiB"


SAID = (
    f"{mib(lines.MAX_LOG_BYTES)}, {lines.MAX_LINES:,} lines, of which the first"
    f" {lines.MAX_LINE_BYTES:,} bytes count; {linux.MAX_MAPS} maps a boot,"
    f" {xen.MAX_MAP_ENTRIES:,} entries of a map, {linux.MAX_CHANGES:,} changes,"
    f" {linux.MAX_FACTS:,} messages about memory,"
    f" {reconstruct.MAX_CHANGE_WORK:,} entries times changes;"
    f" {mib(lines.MAX_RECORD_BYTES)} of a record in JSON |",
    f"| {mib(machine_file.MAX_BYTES)}, {checker.MAX_ITEMS:,} items of a list,"
    f" {machine_file.MAX_DOTS} dots in a line of TOML |",
    f"| {iomem.MAX_ENTRIES:,} ranges; {firmware_map.MAX_ENTRIES:,} |",
    f"| {('one', 'two', 'three', 'four', 'five')[content.MAX_LAYERS - 1]}, one in another;"
    f" {mib(content.UNPACKED_FREE)} and {content.UNPACKED_RATIO} times their size"
    f" may come out of them,"
    f" {mib(content.MAX_ZIP_BYTES)} of a zip go in;"
    f" {mib(content._UNPACKER_MEMORY)} of memory for xz and zstd |",
    f"| {archives.MAX_FILES:,} files; {mib(archives.MAX_MEMBER_BYTES)} of a member;",
    f"| {mib(oracle_machines.MAX_RECORD_BYTES)}, ",
    f"| {dump.MAX_SEGMENTS:,} segments, {mib(dump.MAX_NOTES)} of notes,"
    f" {mib(dump.MAX_READ)} read at once |",
    f"| {possible.MAX_PHYSICAL_BITS} bits (what Linux maps without a fifth level), a kernel image"
    f" of {possible.MAX_KERNEL_BYTES // GIB} GiB |",
)


@pytest.mark.parametrize("said", SAID)
def test_limits_are_what_is_said(said: str, checkout: Path) -> None:
    assert said in (checkout / "SECURITY.md").read_text("utf-8")


def machine(ram_end: int = GIB, **fields: Any) -> Machine:
    memory = MemoryMap.sanitise([(0, 640 << 10, E820Type.RAM), (MIB, ram_end, E820Type.RAM)])
    return attrs.evolve(bundled("qemu-512m"), memory_map=memory, initrd=None, **fields)


def kernel(start: int, end: int) -> Any:
    plain = bundled("qemu-512m").kernel
    return attrs.evolve(plain, start=start, end=end, brk_start=end, brk_end=end, linked_end=None)


POSSIBLE = {
    "RAM up to 46 bits": machine(1 << 46),
    "RAM up to 52 bits": machine(1 << 52, mode=X86_64_LA57),
    "the last page": machine(max_pfn_hint=1 << 34, max_low_pfn_hint=1 << 20),
    "startup code maps all": machine(boot_mapped=1 << 46),
    "lowmem up to 3 GiB": machine(5 * GIB, mode=I386_PAE, max_low_pfn_hint=3 << 18),
    "no memory above 4 GiB": machine(max_pfn_hint=1 << 20, max_low_pfn_hint=1 << 20),
    "a page above 4 GiB": machine(max_pfn_hint=(1 << 20) + 1, max_low_pfn_hint=1),
    "a kernel of 1 GiB": machine(2 * GIB, kernel=kernel(GIB // 2, GIB // 2 + GIB)),
    "a kernel at the end": machine(kernel=kernel(GIB - MIB, GIB)),
    "an initrd at the end": attrs.evolve(machine(), initrd=(GIB - 1, GIB)),
}
IMPOSSIBLE = {
    "RAM": (machine((1 << 46) + PAGE_SIZE), "no kernel addresses more than 0x400000000000"),
    "32-bit RAM": (machine((1 << 46) + PAGE_SIZE, mode=I386), "no kernel addresses more"),
    "max_pfn": (machine(max_pfn_hint=(1 << 34) + 1), "max_pfn: page 0x400000001"),
    "max_low_pfn": (machine(max_low_pfn_hint=(1 << 34) + 1), "max_low_pfn: page"),
    "startup": (machine(boot_mapped=(1 << 46) + PAGE_SIZE), "startup code maps whole pages"),
    "startup's pages": (machine(boot_mapped=MIB + 512), "startup code maps whole pages"),
    "lowmem": (
        machine(5 * GIB, mode=I386_PAE, max_low_pfn_hint=(3 << 18) + 1),
        "no addresses for lowmem up to 0xc0001000",
    ),
    "two ends below 4 GiB": (
        machine(max_pfn_hint=1 << 20, max_low_pfn_hint=(1 << 20) - 1),
        "max_low_pfn 0xfffff: where memory ends with page 0x100000, that below 4 GiB does not",
    ),
    "above 4 GiB": (
        machine(max_pfn_hint=1 << 34, max_low_pfn_hint=(1 << 20) + 1),
        "max_low_pfn 0x100001",
    ),
    "RAM above all addresses": (
        attrs.evolve(
            machine(mode=I386),
            memory_map=MemoryMap.sanitise([(4 * GIB, 5 * GIB, E820Type.RAM)]),
        ),
        "all RAM lies above what i386 addresses",
    ),
    "32-bit startup": (
        machine(mode=I386_PAE, boot_mapped=4 * GIB + PAGE_SIZE),
        "startup code maps whole pages below 0x100000000",
    ),
    "linked end outside": (
        machine(kernel=attrs.evolve(kernel(GIB - MIB, GIB), linked_end=GIB + 1)),
        "the kernel at 0x3ff00000-0x40000001",
    ),
    "large kernel": (
        machine(2 * GIB, kernel=kernel(GIB // 2, GIB // 2 + GIB + 1)),
        "larger than 1 GiB",
    ),
    "kernel outside": (machine(kernel=kernel(GIB - MIB, GIB + 1)), "the kernel at"),
    "kernel of nothing": (machine(kernel=kernel(GIB // 2, GIB // 2)), "the kernel at"),
    "initrd outside": (attrs.evolve(machine(), initrd=(GIB - 1, GIB + 1)), "the initrd at"),
    "initrd of nothing": (attrs.evolve(machine(), initrd=(GIB, GIB)), "the initrd at"),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_is_possible(name: str) -> None:
    assert possible.checked(POSSIBLE[name], "here") is POSSIBLE[name]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_is_impossible(name: str) -> None:
    wrong, words = IMPOSSIBLE[name]
    with pytest.raises(InputError, match=words):
        possible.checked(wrong, "here")


# -- what a checker lets through ------------------------------------------------------------------

CHECK = checker.Checker("here")
TAKEN: list[tuple[Any, Any]] = [
    (lambda: CHECK.integer(5, "n", 5, 5), 5),
    (lambda: CHECK.integer("0x10", "n", 0, 16), 16),
    (lambda: CHECK.integer("0x" + "0" * 31 + "1", "n", 0, 1), 1),
    (lambda: CHECK.address(checker.LAST_ADDRESS, "n"), 1 << 64),
    (lambda: CHECK.pfn(1, "n"), 1),
    (lambda: CHECK.span([4, 4], "n"), (4, 4)),
    (lambda: CHECK.span([0, "0xfff"], "n"), (0, 0xFFF)),
    (lambda: CHECK.array([1, 2], "n", 2), [1, 2]),
    (lambda: len(CHECK.array([0] * checker.MAX_ITEMS, "n")), 1 << 17),
    (lambda: CHECK.flag(False, "n"), False),
    (lambda: CHECK.text("", "n"), ""),
    (lambda: CHECK.need({"a": 1}, "a"), 1),
    (lambda: checker.once([("a", 1), ("b", 2)]), {"a": 1, "b": 2}),
]
REFUSED: dict[str, Any] = {
    "n: 0x4 is not between 0x5 and 0x6": lambda: CHECK.integer(4, "n", 5, 6),
    "n: 0x7 is not between": lambda: CHECK.integer(7, "n", 5, 6),
    "n: True is not a number": lambda: CHECK.integer(True, "n", 0, 6),
    "n: '10' is not a number": lambda: CHECK.integer("10", "n", 0, 60),
    "n: '0xg' is not a number": lambda: CHECK.integer("0xg", "n", 0, 60),
    "n: 1.0 is not a number": lambda: CHECK.integer(1.0, "n", 0, 60),
    "is not a number ": lambda: CHECK.integer("0x" + "0" * 33, "n", 0, 60),
    "n: None is not a string": lambda: CHECK.text(None, "n"),
    "n: 1 is not true or false": lambda: CHECK.flag(1, "n"),
    "n: 0x0 is not between 0x1": lambda: CHECK.pfn(0, "n"),
    "n: list is not a table": lambda: CHECK.table([], "n"),
    "n: dict is not a list": lambda: CHECK.array({}, "n"),
    "n: has 1 items instead of 2": lambda: CHECK.array([1], "n", 2),
    "n: has 3 items instead of 2": lambda: CHECK.span([1, 2, 3], "n"),
    "n: has more than 131072 items": lambda: CHECK.array([0] * (checker.MAX_ITEMS + 1), "n"),
    "n: ends at 0x3, before its start 0x4": lambda: CHECK.span([4, 3], "n"),
    r"n\[1\]: -0x1 is not between": lambda: CHECK.span([4, -1], "n"),
    "n: 0x10000000000000001 is not between": lambda: CHECK.address((1 << 64) + 1, "n"),
    "n: a number of 129 bits is not between": lambda: CHECK.address(1 << 128, "n"),
    f"n: 'x{'x' * 57}… is not a list": lambda: CHECK.array("x" * 100, "n"),
    f"n: {2**128 - 1} is not a string": lambda: CHECK.text(2**128 - 1, "n"),
    "pb: missing": lambda: CHECK.need({"a": 1}, "b", "p"),
    "pb: unknown; known are a, c": lambda: CHECK.only({"b": 1}, frozenset("ca"), "p"),
    "key 'a' stands twice": lambda: checker.once([("a", 1), ("a", 1)]),
}


def test_what_a_checker_takes() -> None:
    for ask, wanted in TAKEN:
        assert ask() == wanted


@pytest.mark.parametrize("words", REFUSED)
def test_what_a_checker_refuses(words: str) -> None:
    with pytest.raises((InputError, ValueError), match=words.strip()):
        REFUSED[words]()


# -- /sys/firmware/memmap, /proc/iomem ------------------------------------------------------------


def test_as_many_entries_of_a_memmap_as_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_map, "MAX_ENTRIES", 2)
    values = firmware_map.Values("here")
    for number in range(2):
        for part, text in (("start", f"0x{number:x}00000"), ("end", f"0x{number:x}fffff")):
            assert values.take(f"memmap/{number}/{part}", io.BytesIO(text.encode()))
        assert values.take(f"memmap/{number}/type", io.BytesIO(b"System RAM\n"))
    assert not values.take("2/other", io.BytesIO(b""))
    made = values.machine("two")
    assert (made.memory_map.entries[0].start, made.memory_map.entries[-1].end) == (0, 2 * MIB)
    with pytest.raises(InputError, match="more than 2 entries"):
        values.take("memmap/2/start", io.BytesIO(b"0x0"))


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("0x0", "0x1000000000000000f", "is not an address"),
        ("0", "0xf", "is not an address"),
        ("0x20", "0x1f", "ends at 0x1f, before its start 0x20"),
    ],
)
def test_entries_of_a_memmap_that_are_wrong(start: str, end: str, words: str) -> None:
    values = firmware_map.Values("here")
    for part, text in (("start", start), ("end", end), ("type", "System RAM")):
        values.take(f"0/{part}", io.BytesIO(text.encode()))
    with pytest.raises(InputError, match=words):
        values.machine("wrong")


def test_a_folder_is_a_memmap_with_all_parts_of_entry_0(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for part in ("end", "start", "type"):
        assert not firmware_map.is_memmap(tmp_path)
        (tmp_path / "0" / part).write_text("")
    assert firmware_map.is_memmap(tmp_path)


def test_a_memmap_of_one_byte_is_one() -> None:
    values = firmware_map.Values("here")
    for number, (start, end) in enumerate([("0x0", "0xfffff"), ("0x200000", "0x200000")]):
        for part, text in (("start", start), ("end", end), ("type", "System RAM")):
            values.take(f"{number}/{part}", io.BytesIO(text.encode()))
    assert values.machine("one").memory_map.entries[-1].end == 0x200001


# -- files, members, parts, records ----------------------------------------------------------------


def of_sizes(*sizes: int) -> io.BytesIO:
    return io.BytesIO(tar(*((f"{number}.txt", bytes(size)) for number, size in enumerate(sizes))))


def test_as_many_files_as_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    monkeypatch.setattr(load, "MAX_FILES", 2)
    assert len(list(archives.members(of_sizes(1, 1), "here"))) == 2
    with pytest.raises(InputError, match="here: more than 2 files"):
        list(archives.members(of_sizes(1, 1, 1), "here"))
    for name in ("b", "a", ".c"):
        if name == ".c":
            assert [path.name for path in load.files_below(tmp_path, "here")] == ["a", "b"]
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="here: more than 2 files"):
        list(load.files_below(tmp_path, "here"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_of_a_member_in_each_format(form: int) -> None:
    name = f"{'d' * 90}/{'n' * 60}.txt"
    stream = io.BytesIO(tar((name, b""), ("short.txt", b""), form=form))
    assert [member.name for member in archives.members(stream, "here")] == [name, "short.txt"]


def test_a_member_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", (1 << 20) + 7)
    fits, long = archives.members(of_sizes((1 << 20) + 7, (1 << 20) + 8), "here")
    assert (fits.name, fits.problem) == ("0.txt", "")
    assert (long.name, long.problem) == ("1.txt", "longer than 1 MiB; unpack the archive")


def test_a_part_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inputs.MAX_PART_BYTES == archives.MAX_MEMBER_BYTES  # it may be a member
    monkeypatch.setattr(inputs, "MAX_PART_BYTES", (1 << 20) + 7)
    for size, problem in (((1 << 20) + 7, ""), ((1 << 20) + 8, "longer than 1 MiB; do so")):
        part = inputs._carried("here", "n", io.BytesIO(bytes(size)), "do so")
        assert isinstance(part, inputs.CarriedPart)
        assert (part.problem, len(part.content)) == (problem, 0 if problem else size)


def test_a_record_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_machines, "MAX_RECORD_BYTES", 20)
    line = b'{"a": 1}'.ljust(19) + b"\n"
    assert list(oracle_machines.read_records(io.BytesIO(b"\n" + line), "here")) == [
        ("here:2", {"a": 1})
    ]
    with pytest.raises(InputError, match="here:1: record longer than 0 MiB"):
        list(oracle_machines.read_records(io.BytesIO(b" " + line), "here"))


def test_a_machine_file_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_file, "MAX_BYTES", (1 << 20) + 7)
    fits = content.Content(b"", io.BytesIO(b"x" * ((1 << 20) + 7)))
    assert len(load._text(fits, "here")) == (1 << 20) + 7
    with pytest.raises(InputError, match="here: longer than 1 MiB"):
        load._text(content.Content(b"", io.BytesIO(b"x" * ((1 << 20) + 8))), "here")
    with pytest.raises(InputError, match="here: not UTF-8 at byte 2"):
        load._text(content.Content(b"", io.BytesIO(b"ab\xff")), "here")


@pytest.mark.parametrize(
    ("brk_start", "start"), [(0x1000, 0x1000), (0x2FFF, 0x1000), (0x3000, 0x3000), (0xFFF, 0xFFF)]
)
def test_a_records_kernel_begins_where_what_holds_its_brk_does(brk_start: int, start: int) -> None:
    record = {
        "e820": [[0, 1 << 30, 1]], "reserved": [[0x1000, 0x3000]], "brk_start": brk_start,
        "pgt_buf_pages": 1, "pse": 1, "gbpages": 0, "max_pfn": 1 << 18, "max_low_pfn": 1 << 18,
        "initial_mapped": 1 << 29,
    }  # fmt: skip
    assert oracle_machines.machine(record, "here").kernel.start == start


@pytest.mark.parametrize(("dots", "words"), [(64, "here: format: missing"), (65, "here:2: more")])
def test_a_line_of_toml_has_so_many_dots(dots: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        machine_file.read_toml(f"# \nx = '{'.' * dots}'\n", "here")


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("", "stdin"),
        ("-", "stdin"),
        ("a.log.gz", "a"),
        (".txt", "txt"),
        ("n" * 81, "n" * 80),
        ("x" + "y" + "z" * 254, "y" + "z" * 79),
    ],
)
def test_a_machines_name_is_that_of_its_file(file_name: str, name: str) -> None:
    assert load.machine_name(file_name) == name


def test_machines_of_a_seed_begin_with_the_first() -> None:
    assert [made.name for made in generate(2)] == ["generated-0-0", "generated-0-1"]
    assert generated(1) == next(iter([*generate(2, seed=0)][1:]))
