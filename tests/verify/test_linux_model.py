"""The incremental allocator against real kernels: recorded boots of 5.10, 6.1, 6.12, and live ones.

Live ones need QEMU and a kernel. Where PARAVIRT_MM_LINUX names a kernel they must run; without it
they skip, saying so.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm.cli import output, verify_linux
from paravirt_mm.cli.verify_linux import command
from paravirt_mm.errors import ExitCode, InputError, SpecError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, Machine
from paravirt_mm.machine.paging import GIB, I386_PAE, KIB, MIB, PAGE_SIZE, TIB, X86_64, X86_64_LA57
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.sources import bundled, bundled_machines
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with
from paravirt_mm.verify.linux import compare, maps
from paravirt_mm.verify.linux.compare import machine_of, replay, spec_of, upstream_release
from paravirt_mm.verify.linux.maps import (
    NamedMap,
    _random,
    _shrunk,
    builtin_maps,
    machine_of_map,
    map_of,
    random_maps,
)
from paravirt_mm.verify.linux.qemu import (
    KERNEL_VARIABLE,
    BootRecord,
    Kernel,
    KernelBootError,
    LiveUnavailableError,
    MapSpec,
    MapSpecError,
    find_kernel,
    find_qemu,
    process,
    record_boot,
)
from paravirt_mm.verify.linux.qemu.image import LoadSegment
from tests.boot_records import FILES, RECORDS

from .test_kernel import Never

MAPS = {named.name: named for named in builtin_maps()}
DEBIAN_61 = "6.1.0-56-amd64"


# -- recorded boots --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_model_does_what_the_kernel_did(name: str) -> None:
    found = replay(RECORDS[name], name)
    assert [str(difference) for difference in found.differences] == []


def test_every_field_of_a_record_is_compared() -> None:
    about_the_boot = {"id", "release", "levels", "e820", "firmware_e820", "reserved", "bottom_up"}
    about_the_boot |= {"kernel_end", "brk_start", "pse", "gbpages", "memory_mib", "provenance"}
    about_the_boot |= {"format", "cr3"}  # the root is part of the kernel image
    record = RECORDS[f"{DEBIAN_61}:holes"]
    assert set(replay(record, "x").fields) == record.keys() - about_the_boot


def test_all_maps_are_recorded_for_all_releases() -> None:
    known = {name for name, named in MAPS.items() if named.spec.levels == 4}
    for file in FILES:
        recorded = {json.loads(line)["id"] for line in file.read_text().splitlines()}
        assert recorded in (set(MAPS), known), file.name
    assert len(FILES) >= 3


Change = Callable[[dict[str, Any]], None]


def _shift(path: str) -> Change:
    """Move one number, deep in a record, by a page."""

    def change(record: dict[str, Any]) -> None:
        *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        place: Any = record
        for key in keys:
            place = place[key]
        place[last] += PAGE_SIZE if place[last] >= PAGE_SIZE * 16 else 1

    return change


def _set(key: str, value: Any) -> Change:
    return lambda record: record.update({key: value})


def _swap_hooks(record: dict[str, Any]) -> None:
    hooks = record["hook_order"]
    hooks[0], hooks[1] = hooks[1], hooks[0]


LIES: list[tuple[str, str, Change]] = [
    ("holes", "steps", _shift("steps.3.start")),
    ("holes", "steps", lambda record: record["steps"].pop()),
    ("holes", "steps", lambda record: record["steps"][0]["ranges"][0].__setitem__(2, "2M")),
    ("holes", "brk_tables", _shift("brk_tables.1.0")),
    ("holes", "tables", _shift("tables.4.2")),
    ("holes", "tables_sha256", _set("tables_sha256", "0" * 64)),
    ("holes", "hook_order", _swap_hooks),
    ("holes", "hook_order_sha256", _set("hook_order_sha256", "0" * 64)),
    ("holes", "leaf_runs", _shift("leaf_runs.2.1")),
    ("holes", "reserved_after", _shift("reserved_after.1.1")),
    ("holes", "table_count", _shift("table_count.L1")),
    ("holes", "allocations", lambda record: record["allocations"][3].__setitem__(1, "memblock")),
    ("holes", "allocations", _shift("allocations.3.2")),
    ("holes", "panic", _set("panic", "alloc_low_pages: can not alloc memory")),
    ("holes", "max_pfn", _shift("max_pfn")),
    ("above-4g", "max_low_pfn", _shift("max_low_pfn")),
    ("holes", "findings", _set("findings", ["L1 leaf at offset 0x1000 is no identity: 0x2003"])),
    ("holes", "memory", lambda record: record["memory"].pop(3)),
    ("all-reserved", "panic", _set("panic", None)),
    ("all-reserved", "tables", _shift("tables.2.1")),
    # A kernel of another kind: brk pages by release, and the direction of memblock.
    ("tiny", "pgt_buf_pages", lambda record: record["provenance"].clear()),
    ("movable-node", "steps", _set("bottom_up", False)),
    ("tiny", "steps", _set("bottom_up", True)),
    ("movable-node", "steps", _shift("kernel_end")),
    ("gbpages", "steps", _set("gbpages", 0)),
    ("la57", "tables", _set("levels", 4)),
]


@pytest.mark.parametrize(("name", "field", "lie"), LIES, ids=[f"{n}-{f}" for n, f, _ in LIES])
def test_what_differs_is_found(name: str, field: str, lie: Change) -> None:
    record = copy.deepcopy(RECORDS[f"{DEBIAN_61}:{name}"])
    if field == "pgt_buf_pages":
        record["release"] = "5.10.0-32-amd64"
    lie(record)
    assert field in [difference.field for difference in replay(record, "x").differences]


def test_a_difference_is_told_in_the_words_of_the_kernel() -> None:
    record = copy.deepcopy(RECORDS[f"{DEBIAN_61}:tiny"])
    record["steps"][1]["end"] -= PAGE_SIZE
    (first, *_) = replay(record, "x").differences
    assert first.place == "call 2 of 3"
    assert first.kernel.startswith("init_memory_mapping: [mem 0x04e00000-0x04ffefff]")
    assert first.model.startswith("init_memory_mapping: [mem 0x04e00000-0x04ffffff]")


@pytest.mark.parametrize(
    ("release", "version", "upstream"),
    [
        ("6.1.0-56-amd64", "6.1.0-56-amd64 (x) #1 SMP Debian 6.1.192-2 (2026-11-16)", "6.1.192"),
        ("6.12.107+deb13-amd64", "6.12 #1 SMP Debian 6.12.107-1 (2026)", "6.12.107"),
        ("6.12.3", "6.12.3 (me@here) (gcc (Debian 14.2.0-19) 14.2.0) #1 SMP Mon Jan 5", "6.12.3"),
        (
            "6.1.0-50-amd64",
            "6.1.0-50-amd64 (x) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP Debian 6.1.176-1 (2026)",
            "6.1.176",
        ),
        ("6.9.3-arch1-1", "6.9.3-arch1-1 (linux@archlinux) #1 SMP", "6.9.3"),
        ("6.9-rc1", "", "6.9"),
    ],
)
def test_release_that_a_kernel_was_built_from(release: str, version: str, upstream: str) -> None:
    record = {"release": release, "provenance": {"kernel": version}}
    assert upstream_release(record, "x") == upstream
    record |= {"levels": 4}
    assert spec_of(record, "x") == f"incremental:variant=linux,kernel={upstream}"


def test_machine_is_what_the_kernel_saw() -> None:
    record = RECORDS[f"{DEBIAN_61}:la57-high"]
    machine = machine_of(record, "x")
    assert machine.mode is X86_64_LA57
    assert machine.features == CpuFeatures(pse=True, gbpages=True)
    assert [list(span) for span in machine.memory_map.ram_pages()] == record["memory"]
    assert machine.kernel.brk_end - machine.kernel.brk_start == 16 * PAGE_SIZE
    assert machine.kernel.linked_end == record["kernel_end"]
    # The kernel's image is the reservation in which its brk lies, not one that ends there.
    brk = record["brk_start"]
    for start, image in ((brk - PAGE_SIZE, brk - PAGE_SIZE), (brk - 2 * PAGE_SIZE, brk)):
        end = start + 2 * PAGE_SIZE
        assert machine_of({**record, "reserved": [[start, end]]}, "x").kernel.start == image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("memory"), "memory: missing"),
        (_set("memory", [[4096]]), "memory"),
        (_set("levels", 3), "levels"),
        (_set("release", "none"), "release"),
        (_set("steps", [{"start": 0}]), "steps"),
        (_set("e820", [[0, 4096, -1]]), "e820"),
        (_set("allocations", [[1, 2, 3]]), "allocations"),
        (_set("brk_start", -1), "brk_start"),
        (_set("provenance", "me"), "provenance"),
    ],
)
def test_damaged_record_is_refused(change: Change, message: str) -> None:
    record = copy.deepcopy(RECORDS[f"{DEBIAN_61}:tiny"])
    if message == "release":
        record["provenance"] = {}
    change(record)
    with pytest.raises(InputError, match=rf"file:7.*{message}"):
        replay(record, "file:7")


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [("max_pfn", 1, 1 << 52), ("max_low_pfn", 1, 1 << 52), ("pgt_buf_pages", 0, 1 << 20),
     ("pse", 0, 1), ("gbpages", 0, 1), ("levels", 4, 5)],
)  # fmt: skip
def test_numbers_of_a_record_have_bounds(key: str, low: int, high: int) -> None:
    record = RECORDS[f"{DEBIAN_61}:tiny"]
    for number in (low, high):
        machine_of({**record, key: number}, "here")
    for number in (low - 1, high + 1):
        with pytest.raises(InputError, match=f"^here: {key}: "):
            machine_of({**record, key: number}, "here")


def test_names_of_a_record_have_bounds() -> None:
    record = RECORDS[f"{DEBIAN_61}:tiny"]
    for length, told in ((80, "n" * 80), (81, "n" * 79 + "…")):
        assert machine_of({**record, "id": "n" * length}, "x").name == told
    with pytest.raises(InputError, match=rf"^x: release: '{'r' * 58}… is no kernel release"):
        upstream_release({"release": "r" * 60}, "x")
    with pytest.raises(InputError, match=rf"^x: format: '{'f' * 58}… is not 'paravirt-mm-boot-1'"):
        replay({**record, "format": "f" * 60}, "x")


def test_only_the_given_plugins_are_asked() -> None:
    record = RECORDS[f"{DEBIAN_61}:tiny"]
    none = registry_with(installed=False, up=AscendingAllocator, plain=PlainPlatform)
    for ask in (spec_of, replay):
        with pytest.raises(SpecError, match=r"^x: no installed plugin models Linux 6\.1\.192"):
            ask(record, "x", none)


def test_what_the_kernel_knew_is_told_beside_the_model() -> None:
    """RAM counts up to 64 TiB, low RAM up to 4 GiB (e820_end_pfn: MAX_ARCH_PFN, e820__end_of_low_
    ram_pfn); 5.10 has 12 pages of brk, 6.1 has 16.
    """
    tiny = RECORDS[f"{DEBIAN_61}:tiny"]

    def told(**changes: Any) -> list[str]:
        return [str(difference) for difference in replay({**tiny, **changes}, "x").differences]

    more = told(e820=[*tiny["e820"], [1 << 45, 1 << 47, 1]])
    assert "max_pfn: kernel 0x5000 | model 0x400000000" in more
    assert not any(each.startswith("max_low_pfn") for each in more)
    low = told(e820=[*tiny["e820"], [3 * GIB, 5 * GIB, 1]])
    assert "max_low_pfn: kernel 0x5000 | model 0x100000" in low
    assert (
        "memory, region 3 of 2 (model: 3): "
        "kernel nothing | model [mem 0xc0000000-0x13fffffff]" in low
    )
    assert [end for end in told(e820=[[80 * MIB, 90 * MIB, 2]]) if end.startswith("max_")] == [
        "max_pfn: kernel 0x5000 | model 0x0", "max_low_pfn: kernel 0x5000 | model 0x0",
    ]  # fmt: skip
    older = told(release="5.10.0-32-amd64", provenance={})
    assert "pgt_buf_pages: kernel 16 pages | model 12 pages" in older
    assert told(findings=["odd", "odder"]) == ["findings: kernel odd | model a sound direct map"]
    first = [[17408, "memblock", 0], *tiny["allocations"][1:]]
    assert told(allocations=first) == [
        "allocations, page 1 of 3: kernel pfn 0x4400 from memblock in call 1 | "
        "model pfn 0x4400 from brk in call 1"
    ]
    far = [*tiny["allocations"], [17411, "brk", 1 << 32]]
    assert "model nothing" in "".join(told(allocations=far))
    with pytest.raises(InputError, match=r"^x: allocations\[3\]: 0x100000001 is not between"):
        told(allocations=[*tiny["allocations"], [17411, "brk", (1 << 32) + 1]])
    with pytest.raises(InputError, match=r"^x: allocations\[3\]: -0x1 is not between"):
        told(allocations=[*tiny["allocations"], [17411, "brk", -1]])
    for kind in (0, (1 << 32) - 1):  # of whatever type firmware has made up
        assert told(e820=[*tiny["e820"], [5 * GIB, 6 * GIB, kind]]) == []
    for kind in (-1, 1 << 32):
        with pytest.raises(InputError, match=r"^x: e820\[3\]\[2\]: "):
            told(e820=[*tiny["e820"], [5 * GIB, 6 * GIB, kind]])


def test_a_run_that_fails_is_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "spec_of", lambda *_: "never")
    found = replay(RECORDS[f"{DEBIAN_61}:tiny"], "x", registry_with(never=Never))
    (told,) = map(str, found.differences)
    assert told.startswith("run: kernel ends | model fails: error: ")
    assert "no kernel" in told


# -- maps to boot ----------------------------------------------------------------------------------


def a_kernel(*, five_levels: bool = True) -> Kernel:
    """A kernel of the usual place and size, with nothing in it."""
    segment = LoadSegment(0xFFFFFFFF81000000, 16 * MIB, b"", 55 * MIB + 1)
    symbols = {"__pgtable_l5_enabled": 0} if five_levels else {}
    return Kernel(Path("vmlinuz"), b"", "6.1.0", "6.1.0", 16 * MIB, (segment,), symbols)


def test_maps_of_real_machines() -> None:
    kernel = a_kernel()
    hosted: dict[str, NamedMap] = {}
    for name in bundled_machines():
        machine = bundled(name)
        if machine.mode.is_32bit:
            with pytest.raises(MapSpecError, match="64-bit"):
                map_of(machine, kernel)
            continue
        hosted[name] = map_of(machine, kernel)
        check_spec(hosted[name].spec, kernel)
        assert hosted[name].spec.pse == machine.features.pse
        assert list(hosted[name].spec.ram) == list(machine.memory_map.ram())
        if machine.max_pfn_hint is None:  # devices, wherever they are
            devices = [e for e in machine.memory_map if e.type is not E820Type.RAM]
            assert len(hosted[name].spec.other) == len(devices)
    assert len(hosted) >= 8


def test_what_qemu_cannot_have_is_left_out() -> None:
    memory = MemoryMap.sanitise(
        [(0, 0x9F000, E820Type.RAM), (MIB, GIB, E820Type.RAM), (4 * GIB, 2 * TIB, E820Type.RAM)]
    )
    reserved = ((0, 64 << 10), (20 * MIB, 200 * MIB), (5 * GIB, 12 * GIB), (TIB, TIB + MIB))
    machine = Machine("big", memory, X86_64_LA57, reserved=reserved)
    kernel = a_kernel()
    named = map_of(machine, kernel)
    check_spec(named.spec, kernel)
    assert named.spec.levels == 5
    assert named.spec.ram[-1] == (4 * GIB, 1000 * GIB)
    assert named.notes == ("without what lies above 1000 GiB",)
    assert named.spec.reserved[0] == (20 * MIB, 200 * MIB)
    assert named.spec.reserved[1:] == tuple((n * GIB, (n + 1) * GIB) for n in range(5, 12))
    older = attrs.evolve(kernel, release="5.4.0")  # no node can point into its image
    assert map_of(machine, older).spec.reserved[0] == (71 * MIB + 1, 200 * MIB)
    with pytest.raises(MapSpecError, match="64-bit"):
        map_of(attrs.evolve(machine, mode=I386_PAE), kernel)


def test_what_reaches_the_end_of_ram_is_the_initrd() -> None:
    """Linux does not count RAM that holds setup_data when it looks for its end."""
    spans = ((0, 0x9F000), (MIB, 2 * GIB), (4 * GIB, 6 * GIB))
    memory = MemoryMap.sanitise((*span, E820Type.RAM) for span in spans)
    taken = ((GIB, GIB + MIB), (2 * GIB - MIB, 2 * GIB), (5 * GIB, 6 * GIB))
    spec = map_of(Machine("end", memory, X86_64, reserved=taken), a_kernel()).spec
    assert spec.initrd == taken[2]
    assert spec.reserved == (taken[0], (2 * GIB - MIB, 2 * GIB - PAGE_SIZE))
    back = machine_of_map(NamedMap("back", spec))
    assert RangeSet(back.reserved).covers(*taken[2])
    # 16 bytes at least, as of all that is handed over.
    for size, kept in ((16, True), (15, False)):
        few = (6 * GIB - size, 6 * GIB)
        spec = map_of(Machine("few", memory, X86_64, reserved=(few,)), a_kernel()).spec
        assert spec.taken == ((few,) if kept else ())


def test_what_of_a_machine_is_handed_over() -> None:
    """A PC has no RAM between 3 GiB and 4 GiB, if it has more above."""
    low, high = (0, 0x9F000), (MIB, 3 * GIB + 512 * MIB)
    initrd, hole, last = (GIB, GIB + MIB), (3 * GIB, 3 * GIB + MIB), (high[1] - MIB, high[1])

    def spec_of_ram(*ram: tuple[int, int], end: int | None = None) -> MapSpec:
        memory = MemoryMap.sanitise((*span, E820Type.RAM) for span in (low, *ram))
        machine = Machine("pc", memory, X86_64, reserved=(hole, last), initrd=initrd)
        named = map_of(attrs.evolve(machine, max_pfn_hint=end), a_kernel())
        assert named.notes == ()
        return named.spec

    alone = spec_of_ram(high)
    assert (alone.reserved, alone.initrd) == ((initrd, hole), last)
    more = spec_of_ram(high, (4 * GIB, 4 * GIB + MIB))
    assert (more.reserved, more.initrd) == ((initrd,), None)
    assert spec_of_ram((MIB, 4 * GIB), (4 * GIB, 1000 * GIB)).ram[-1] == (MIB, 1000 * GIB)
    assert spec_of_ram(high, end=2 * GIB >> 12).ram[-1] == (MIB, 2 * GIB)
    memory = MemoryMap.sanitise((*span, E820Type.RAM) for span in (high, (4 * GIB, 8 * GIB)))
    parts = ((3 * GIB - MIB, 3 * GIB), (4 * GIB, 5 * GIB + 16), (6 * GIB, 7 * GIB + 15))
    spec = map_of(Machine("parts", memory, X86_64, reserved=parts), a_kernel()).spec
    assert spec.reserved == (  # a header tells up to 4 GiB; here each tells one
        parts[0], (4 * GIB, 5 * GIB), (5 * GIB, 5 * GIB + 16), (6 * GIB, 7 * GIB),
    )  # fmt: skip
    for end, is_initrd in ((high[1] - PAGE_SIZE, False), (high[1] - PAGE_SIZE + 1, True)):
        alone = Machine("one", MemoryMap.sanitise([(*high, E820Type.RAM)]), X86_64)
        spec = map_of(attrs.evolve(alone, reserved=((GIB, end),)), a_kernel()).spec
        assert (spec.initrd == (GIB, end)) is is_initrd
    nodes = ((GIB, GIB + 16), (GIB + MIB, GIB + MIB + 15))  # a header has 16 bytes
    few = Machine("few", MemoryMap.sanitise([(*high, E820Type.RAM)]), X86_64, reserved=nodes)
    assert map_of(few, a_kernel()).spec.reserved == nodes[:1]
    five = Machine("five", MemoryMap.sanitise([(*high, E820Type.RAM)]), X86_64_LA57)
    assert map_of(five, a_kernel()).spec.levels == 5
    with pytest.raises(MapSpecError, match=r"^kernel 6\.1\.0 is built without five levels"):
        map_of(five, a_kernel(five_levels=False))


def test_builtin_maps_are_what_a_kernel_can_boot() -> None:
    """Firmware starts no vmlinux, and five levels need code for them."""
    every = set(MAPS)
    five = {name for name in every if MAPS[name].spec.levels == 5}
    firmware = {name for name in every if MAPS[name].spec.entry.value == "firmware"}
    assert five
    assert firmware
    bare = attrs.evolve(a_kernel(), is_bzimage=False)
    old = a_kernel(five_levels=False)
    for kernel, left in ((a_kernel(), every), (bare, every - firmware), (old, every - five)):
        assert {named.name for named in builtin_maps(kernel)} == left


def test_map_of_one_entry_is_not_ignored() -> None:
    """As Linux does with what no firmware gives."""
    memory = MemoryMap.sanitise([(0, GIB, E820Type.RAM)])
    spec = map_of(Machine("one", memory, X86_64), a_kernel()).spec
    assert len(spec.ram) == 2
    assert RangeSet(spec.ram) == RangeSet([(0, GIB)])


def test_ram_beyond_a_total_is_taken_off_the_end() -> None:
    """A machine without large pages has 1 GiB at most."""
    spans = ((0, 0x9F000), (MIB, 600 * MIB), (700 * MIB, 3 * GIB), (4 * GIB, 5 * GIB))
    memory = MemoryMap.sanitise(
        [*((*span, E820Type.RAM) for span in spans), (600 * MIB, 700 * MIB, E820Type.ACPI)]
    )
    last = 700 * MIB + GIB - 599 * MIB - 0x9F000
    for total, ram in (
        (GIB, [*spans[:2], (700 * MIB, last)]),
        (599 * MIB + 0x9F000, list(spans[:2])),
        (8 * GIB, list(spans)),
    ):
        less = _shrunk(memory, total)
        assert list(less.ram()) == ram
        assert [entry for entry in less if entry.type is not E820Type.RAM] == [memory.entries[2]]


def test_random_maps() -> None:
    kernel = a_kernel()
    maps = list(random_maps(300, 5, kernel))
    assert maps == list(random_maps(300, 5, kernel))
    assert [named.name for named in maps[:2]] == ["random-5-0", "random-5-1"]
    for named in maps:
        check_spec(named.spec, kernel)
    specs = [named.spec for named in maps]
    assert len({spec.ram for spec in specs}) > 200
    shapes = Counter((spec.levels, spec.pse, spec.gbpages) for spec in specs)
    assert len(shapes) == 6
    assert min(shapes.values()) >= 10
    assert any(spec.command_line == "movable_node" for spec in specs)
    assert any(len(spec.reserved) > 2 for spec in specs)
    assert any(spec.ram[-1][1] > 100 * GIB for spec in specs)
    assert any(end % PAGE_SIZE for spec in specs for _, end in spec.ram[1:])
    hole = RangeSet([(3 * GIB, 4 * GIB)])  # where a PC with more RAM has none
    for spec in specs:
        if spec.ram[-1][1] > 4 * GIB:
            assert not hole.intersection(RangeSet(spec.ram))
        if not spec.pse:  # each 2 MiB cost a table
            assert sum(high - low for low, high in spec.ram) <= GIB
    assert next(random_maps(1, 6, kernel)).spec != maps[0].spec
    assert all(n.spec.levels == 4 for n in random_maps(50, 5, a_kernel(five_levels=False)))


class Always:
    """Makes the same choice each time: the first option, the lowest number, or the last."""

    def __init__(self, option: float, number: float) -> None:
        self.option, self.number = option, number
        self.spans = 0

    def one_of(self, options: Sequence[Any]) -> Any:
        self.spans += isinstance(options[0], tuple)
        return options[round(self.option * (len(options) - 1))]

    def integer(self, low: int, high: int) -> int:
        return low + int(self.number * (high - low))


@pytest.mark.parametrize(
    ("option", "levels", "pse", "gbpages", "word", "size"),
    [
        (0.0, 4, True, False, "", PAGE_SIZE),
        (0.25, 4, True, False, "", 64 * KIB),
        (0.5, 4, True, False, "", 2 * MIB),
        (0.6, 4, True, True, "", 2 * MIB),
        (0.75, 5, False, False, "", 64 * MIB),
        (1.0, 5, False, False, "movable_node", GIB),
    ],
)
def test_what_a_random_map_may_be(
    option: float,
    levels: int,
    pse: bool,
    gbpages: bool,
    word: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the plainest to the oddest. RAM is as `any_map` says, but QEMU's machine has no more
    than 1000 GiB, and 1 GiB is enough where small pages take a boot long. Up to four parts of it
    are taken, each of a page up to all there is.
    """
    first = (MIB, 3 * GIB)
    memory = MemoryMap.sanitise((*span, E820Type.RAM) for span in (first, (4 * GIB, 2 * TIB)))
    asked: list[Any] = []
    monkeypatch.setattr(maps, "any_map", lambda *told: asked.append(told) or memory)

    def chosen(number: float) -> MapSpec:
        choices = Always(option, number)
        spec = _random(choices, a_kernel())
        assert asked.pop() == (choices, X86_64, 72 * MIB)  # a multiple of 4 MiB
        assert choices.spans == 4 * number
        assert (spec.levels, spec.pse, spec.gbpages) == (levels, pse, gbpages)
        assert spec.command_line == word
        return spec

    plain = chosen(0)
    assert (plain.reserved, plain.initrd) == ((), None)
    ram = list(RangeSet(plain.ram))
    assert ram == ([first, (4 * GIB, 1000 * GIB)] if pse else [(MIB, GIB + MIB)])
    half = chosen(0.5)
    low, high = ram[-1 if gbpages else 0]
    start = low + (high - low - 1) // 2
    taken = start, start + 1 + (size - 1) // 2
    assert (half.reserved, half.initrd) == (((), taken) if option == 1 else ((taken,), None))
    assert chosen(1).reserved == ()  # of the last byte only


@pytest.mark.parametrize("levels", [3, 6])
def test_levels_that_no_processor_has_are_refused(levels: int) -> None:
    record = {**RECORDS[f"{DEBIAN_61}:tiny"], "levels": levels}
    for read in (machine_of, spec_of, replay):
        with pytest.raises(InputError, match="levels"):
            read(record, "here")


def last_page(spec: MapSpec) -> int:
    return (max(high for _, high in spec.ram) // PAGE_SIZE - 1) * PAGE_SIZE


def check_spec(spec: MapSpec, kernel: Kernel) -> None:
    """What the harness needs of a map."""
    start, end = kernel.physical_range
    assert any(low <= start and end <= high for low, high in spec.ram)
    assert spec.initrd is None or spec.initrd[1] > last_page(spec)
    for low, high in spec.reserved:
        assert any(a <= low and high <= b for a, b in spec.ram)
        assert 16 <= high - low <= GIB
        assert high <= last_page(spec)
        assert spec.layout.file_offset(low, 16) is not None


# -- the command -----------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[Any, str, str]:
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr


@pytest.mark.slow
def test_recorded_boots_agree(tmp_path: Path) -> None:
    code, out, _ = run("--replay", str(FILES[0]), "--replay", str(FILES[1]))
    assert code is ExitCode.OK
    assert out.count(" of ") == 2
    assert "maps agree in every field" in out
    assert "differs" not in out


def test_a_difference_is_shown_and_fails(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORDS[f"{DEBIAN_61}:tiny"])
    record["steps"][1]["start"] += PAGE_SIZE
    record["table_count"]["L1"] += 1
    file = tmp_path / "lie.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps(RECORDS[f"{DEBIAN_61}:la57"]) + "\n")
    code, out, _ = run("--replay", str(file))
    assert code is ExitCode.FINDINGS
    assert "steps, call 2 of 3" in out
    assert "kernel  init_memory_mapping: [mem 0x04e01000-0x04ffffff]" in out
    assert "also    table_count" in out
    assert "1 of 2 maps agree" in out
    code, out, _ = run("--replay", str(file), "--json")
    assert code is ExitCode.FINDINGS
    found = json.loads(out)
    assert not found["agree"]
    assert [row["verdict"] for row in found["maps"]] == ["differs", "agrees"]


def test_files_that_are_no_records(tmp_path: Path) -> None:
    for content in ("", "{}", "[]", "x\n"):
        file = tmp_path / "bad.jsonl"
        file.write_text(content)
        with pytest.raises(InputError, match=r"bad\.jsonl"):
            run("--replay", str(file))


def boots_that_hang(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> tuple[list[subprocess.Popen[bytes]], threading.Event]:
    """Let all boots but the first ``after`` hang, as QEMU with a kernel that does; what was
    started, and when.
    """
    processes: list[subprocess.Popen[bytes]] = []
    started = threading.Event()

    def record_boot(spec: MapSpec, *_: object, **__: object) -> BootRecord:
        if spec is TODO[0][1].spec and after:
            raise KernelBootError("not this one")
        with subprocess.Popen(["sleep", "60"]) as running:
            processes.append(running)
            process._running.add(running)
            started.set()
            running.wait()
        raise KernelBootError("ended")

    monkeypatch.setattr(verify_linux, "record_boot", record_boot)
    return processes, started


TODO = [(a_kernel(), named) for named in builtin_maps()[:3]]


def test_boots_under_way_end_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, started = boots_that_hang(monkeypatch, after=1)
    booted = verify_linux._boots(TODO, "qemu", 60, 2)
    assert next(booted)[0].reason == "not this one"
    assert started.wait(10)
    booted.close()
    assert [running.wait(10) for running in processes] == [-9] * len(processes)


def test_kernel_that_only_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE", -1)
    processes, _ = boots_that_hang(monkeypatch, after=1)
    with closing(verify_linux._boots(TODO, "qemu", 60, 2)) as booted:
        hopeful = output.while_some_can(booted, lambda boot: boot[1] is not None)
        assert [result.reason for result, _ in hopeful] == ["not this one"]
    assert [running.wait(10) for running in processes] == [-9] * len(processes)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    code, _, error = run("--qemu", str(tmp_path / "no-qemu"))
    assert code is ExitCode.BAD_INPUT
    assert "qemu-system-x86" in error
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\n")
    qemu.chmod(0o755)
    code, _, error = run("--qemu", str(qemu))
    assert code is ExitCode.BAD_INPUT
    assert "linux-image-amd64" in error
    code, _, error = run("--qemu", str(qemu), "--kernel", str(tmp_path))
    assert code is ExitCode.BAD_INPUT
    assert "linux-image-amd64" in error


# -- live boots ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    try:
        find_qemu()
        return Kernel.load(find_kernel())
    except LiveUnavailableError as error:
        if KERNEL_VARIABLE in os.environ:  # somebody wants these tests to run
            raise
        pytest.skip(str(error))


def check_live(named: NamedMap, kernel: Kernel) -> None:
    live = record_boot(named.spec, kernel)
    record = {"id": named.name, **live.to_json(tables_up_to=len(live.tables))}
    found = replay(record, named.name)
    assert [str(difference) for difference in found.differences] == []


@pytest.mark.slow
def test_live_kernel_on_random_maps(kernel: Kernel) -> None:
    for named in random_maps(20, 11, kernel):
        check_live(named, kernel)


@pytest.mark.slow
def test_command_boots_and_records(kernel: Kernel, tmp_path: Path) -> None:
    saved = tmp_path / "boots.jsonl"
    code, out, _ = run("lenovo-x230-8g", "--save", str(saved))
    assert code is ExitCode.OK, out
    assert run("--replay", str(saved))[0] is ExitCode.OK
    i386 = next(name for name in bundled_machines() if bundled(name).mode.is_32bit)
    code, out, _ = run(i386, "lenovo-x230-8g")
    assert code is ExitCode.BAD_INPUT
    assert "only 64-bit kernels" in out
    assert "1 of 1 maps agree in every field, 1 refused" in out
