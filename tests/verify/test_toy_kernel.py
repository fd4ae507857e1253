"""What the recorder tells of a kernel whose every deed is known (`toy_kernel`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

pytest.importorskip("unicorn", reason="needs the extra 'cpu'")

from paravirt_mm.verify.linux.qemu import (
    BootRecord,
    Kernel,
    MapSpec,
    probes,
    record_boot,
    recorder as recorder_module,
    stops,
)
from paravirt_mm.verify.linux.qemu.errors import (
    KernelBootError,
    KernelImageError,
    MapSpecError,
)
from paravirt_mm.verify.linux.qemu.handover import enter, put_kernel
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.record import BootProvenance

from .toy_kernel import (
    BASE,
    BRK,
    BSS,
    BSS_END,
    CLEARS_AT,
    DATA,
    END,
    EXTEND,
    GIVEN,
    PAGE,
    PAGE_OFFSET,
    PARAMETERS,
    PV_OPS,
    RODATA,
    ROOT,
    SCAN,
    START64,
    VARIABLE,
    Gdb,
    Machine,
    Script,
    Step,
    entries,
    kernel,
    tables_for,
    virtual,
)

MIB = 1 << 20
SPEC = MapSpec(ram=[(0, 0x9F000), (MIB, 64 * MIB)], other=[(0x9F000, 0xA0000, 2)])
L3, L2 = BASE + BRK, 40 * MIB
TABLES = tables_for(L3, L2, 32)
STEPS = (
    Step(0, MIB, ((0, MIB, 0),), ((1, L3),), (L3 // PAGE, 0x999)),
    Step(
        MIB, 64 * MIB, ((MIB, 2 * MIB, 0), (2 * MIB, 64 * MIB, 4), (0, 1 << 30, 12)),
        # The last pages of RAM, the last of brk, and one behind it.
        ((1, L2), (3, 64 * MIB - 3 * PAGE), (1, L3 + 2 * PAGE), (1, L3 + 3 * PAGE)),
        (L2 // PAGE, 64 * MIB // PAGE - 1, L3 // PAGE),
    ),
)  # fmt: skip
SCRIPT = Script(STEPS, TABLES, reserved=((0, 0x10000), (BASE, BASE + END)))


@pytest.fixture(autouse=True)
def without_qemu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recorder_module, "Qemu", Machine)
    monkeypatch.setattr(recorder_module, "find_qemu", lambda name: name or "toy")
    monkeypatch.setattr(recorder_module, "qemu_version", lambda program: f"{program} 1")
    Machine.made.clear()
    yield
    Machine.made.clear()


def check(record: BootRecord, script: Script = SCRIPT) -> None:
    """All that the script says is told, and nothing else."""
    sizes = {0: "4k", 4: "2M", 8: "1G", 12: "1G"}
    steps = [(step.start, step.end, step.ranges) for step in record.steps]
    assert steps == [
        (step.start, step.end, [(low, high, sizes[mask]) for low, high, mask in step.ranges])
        for step in script.steps
    ]
    taken = [
        (page // PAGE + n, BASE + BRK <= page < BASE + BRK + 3 * PAGE, number)
        for number, step in enumerate(script.steps)
        for count, page in step.pages
        for n in range(count)
    ]
    assert [(a.pfn, a.from_brk, a.step) for a in record.allocations] == taken


def test_all_that_a_kernel_does_is_told() -> None:
    toy = kernel(SCRIPT, SPEC)
    record = record_boot(SPEC, toy)
    check(record)
    tables = [(2, L2 // PAGE, 0), (3, L3 // PAGE, 0)]
    assert [(t.level, t.pfn, t.va) for t in record.tables] == tables
    assert record.leaf_runs == ((0, 64 * MIB, 2),)
    assert record.findings == ()
    # A page that did not become a table of the direct map is no part of it.
    assert record.hook_order == ((3, L3 // PAGE), (2, L2 // PAGE), (3, L3 // PAGE))
    assert (record.panic, record.levels, record.cr3) == (None, 4, BASE + ROOT)
    assert (record.brk_start, record.pgt_buf_pages) == (BASE + BRK, 3)
    assert (record.max_pfn, record.max_low_pfn, record.kernel_end) == (0x4000, 0x3000, BASE + END)
    assert record.memory == tuple(SPEC.ram)
    assert record.reserved == record.reserved_after == ((0, 0x10000), (BASE, BASE + END))
    assert record.e820 == record.firmware_e820 == SPEC.e820
    assert (record.release, record.memory_mib, record.bottom_up) == ("6.1.0-toy", 64, False)
    assert (record.pse, record.gbpages) == (True, False)
    told = record.provenance
    assert (told.kernel, told.qemu, told.entry) == ("6.1.0-toy (of tests)", "toy 1", "direct")
    assert told.command_line == "nokaslr"
    assert 0 < told.seconds < 60


def test_five_levels_are_those_of_the_processor() -> None:
    """CR4 says so. A table that another function took is no part of the hooks' order."""
    l4 = 41 * MIB
    tables = {l4: entries({PAGE_OFFSET >> 39 & 511: L3 | 0x63}), **TABLES}
    steps = (attrs.evolve(STEPS[0], hooked=(l4 // PAGE, L3 // PAGE)), *STEPS[1:])
    script = attrs.evolve(SCRIPT, steps=steps, tables=tables, root_slot=PAGE_OFFSET >> 48 & 511)
    toy = kernel(script, SPEC)
    toy = with_symbols(toy, {"__pgtable_l5_enabled": 0})
    record = record_boot(attrs.evolve(SPEC, levels=5), toy)
    assert record.levels == 5
    assert [(t.level, t.pfn) for t in record.tables] == [
        (2, L2 // PAGE), (3, L3 // PAGE), (4, l4 // PAGE),
    ]  # fmt: skip
    assert record.leaf_runs == ((0, 64 * MIB, 2),)
    assert record.hook_order == ((3, L3 // PAGE), (2, L2 // PAGE), (3, L3 // PAGE))


def test_the_processor_has_40_bits() -> None:
    """QEMU's, without hardware's help; what maps more is told, not left out."""
    far = {slot: 1 << bit | 0x1E3 for slot, bit in ((32, 39), (33, 40))}
    leaves = {slot: slot << 21 | 0x1E3 for slot in range(32)}
    script = attrs.evolve(SCRIPT, tables={**TABLES, L2: entries(leaves | far)})
    record = record_boot(SPEC, kernel(script, SPEC))
    assert record.leaf_runs == ((0, 64 * MIB, 2),)
    assert record.findings == (
        "L2 entry 0x100000001e3 for 0xffff888004200000: a reserved bit is set",
        "L2 leaf at offset 0x4000000 maps 0x8000000000",
    )


class Firmware(Machine):
    """A machine whose firmware loads the kernel, with nothing in memory before."""

    def __init__(self, _: str, spec: MapSpec, kernel: Kernel, ram: GuestRam, timeout: float):
        super().__init__(_, spec, kernel, ram, timeout)
        assert not list(ram.beyond([]))
        put_kernel(ram, kernel, spec, "")
        enter(self.gdb, spec, kernel.entry)


def test_firmware_starts_a_kernel_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put into memory, nothing kept for other boots. Directories are not told."""
    monkeypatch.setattr(recorder_module, "Qemu", Firmware)
    clock = SimpleNamespace(monotonic=iter((100.0, 101.23456)).__next__)
    monkeypatch.setattr(recorder_module, "time", clock)
    toy = attrs.evolve(kernel(SCRIPT, SPEC), path=Path("/boot/vmlinuz-6.1"))
    record = record_boot(attrs.evolve(SPEC, entry="firmware", command_line="root=/dev/sda"), toy)
    check(record)
    assert (Machine.made[0].gdb.resumed, toy.starts) == (2, {})
    words = (
        "nokaslr earlyprintk=serial,ttyS0,115200 memmap=exactmap memmap=0x9f000@0x0 "
        "memmap=0x1000$0x9f000 memmap=0x3f00000@0x100000 root=/dev/sda"
    )
    assert record.provenance == BootProvenance(
        "6.1.0-toy (of tests)", "toy 1", record.provenance.qemu_arguments, words, "firmware", 1.235
    )
    told = record.provenance.qemu_arguments
    assert told[-6:] == ("-m", "64M", "-kernel", "vmlinuz-6.1", "-append", words)


CLEARING = START64 + CLEARS_AT


@pytest.mark.parametrize(
    ("script", "symbols", "done", "resumed"),
    [
        (SCRIPT, {}, True, 4),
        (attrs.evolve(SCRIPT, fill=0x100), {}, True, 4),
        (attrs.evolve(SCRIPT, fill=1), {}, False, 4),
        (SCRIPT, {"__bss_start": BSS + 8}, False, 4),
        (SCRIPT, {"clear_bss": CLEARING}, True, 4),
        (SCRIPT, {"clear_bss": CLEARING - 94}, True, 4),
        (SCRIPT, {"clear_bss": CLEARING - 95}, False, 3),
    ],
    ids=["usual", "AL is 0", "AL is 1", "elsewhere", "at once", "in 96 bytes", "behind"],
)
def test_bss_is_cleared_for_the_kernel(
    script: Script, symbols: dict[str, int], done: bool, resumed: int, tmp_path: Path
) -> None:
    """Where ``rep stosb`` would fill all of it with zeroes: RDI and RCX are as it leaves them."""
    toy = with_symbols(kernel(script, SPEC), symbols)
    check(record_boot(SPEC, toy, dump=tmp_path / "dump"), script)
    gdb = Machine.made[0].gdb
    written = [told for told in gdb.written if told[0] in ("rdi", "rcx")]
    assert written == ([("rdi", virtual(BSS_END)), ("rcx", 0)] if done else [])
    assert gdb.resumed == resumed
    bss = memory(tmp_path / "dump")[BASE + BSS : BASE + BSS_END]
    assert bss == bytes([script.fill & 0xFF]) * (BSS_END - BSS)


WATCHED_IN_THE_GUEST = ("fentry", "nop", "jump", "pushes", "call")


@pytest.mark.parametrize("begins", [*WATCHED_IN_THE_GUEST, "cpuid"])
def test_however_functions_begin_the_same_is_told(begins: str, tmp_path: Path) -> None:
    """Code that is not understood is not moved: the machine is stopped at each function."""
    script = attrs.evolve(SCRIPT, begins=begins)
    toy = kernel(script, SPEC)
    record = record_boot(SPEC, toy, dump=tmp_path / "dump")
    check(record, script)
    assert record.hook_order == ((3, L3 // PAGE), (2, L2 // PAGE), (3, L3 // PAGE))
    # bss, the way to the map, to its beginning, to its end
    few = 4
    assert (Machine.made[0].gdb.resumed == few) is (begins in WATCHED_IN_THE_GUEST)
    unchanged(tmp_path / "dump", toy)


def with_symbols(toy: Kernel, places: Mapping[str, int | None]) -> Kernel:
    """Return the kernel with symbols at these places of its image; None: without that one."""
    known = {name: at for name, at in toy.symbols.items() if name not in places}
    found = {name: virtual(at) for name, at in places.items() if at is not None}
    return attrs.evolve(toy, symbols=known | found)


def memory(dump: Path) -> bytes:
    """As far as the image goes."""
    with dump.open("rb") as file:
        return file.read(BASE + END)


def unchanged(dump: Path, toy: Kernel) -> None:
    """Nothing of the probes is left in code, gaps, and tables of pointers; bss is clear."""
    before, after = toy.segments[0].data, memory(dump)[BASE:]
    assert after[:DATA] == before[:DATA]
    assert after[PV_OPS : PV_OPS + 0x100] == before[PV_OPS : PV_OPS + 0x100]
    assert after[BSS:BSS_END] == bytes(BSS_END - BSS)
    assert after[BSS_END:BRK] == before[BSS_END:BRK]


def test_a_list_that_is_full_is_read_and_goes_on(tmp_path: Path) -> None:
    """Four pages are free between code and data: one for code, three for 307 events."""
    pfns = tuple(range(1000))
    steps = (attrs.evolve(STEPS[0], hooked=pfns), STEPS[1])
    script = attrs.evolve(SCRIPT, steps=steps, text_end=RODATA - 4 * PAGE)
    toy = kernel(script, SPEC)
    record = record_boot(SPEC, toy, dump=tmp_path / "dump")
    check(record, script)
    assert Machine.made[0].gdb.resumed == 4 + 1000 // 307
    unchanged(tmp_path / "dump", toy)


CALLS, RANGES, ASKED, HOOKED = 2, 4, 5, 5
"""What the script does: how often each function is called."""
STOPS = 4 + CALLS + 2 * RANGES + 2 * ASKED + 2 * HOOKED
"""On the way; where each begins, where a range and a page are done; the hook's only instruction."""


@pytest.mark.parametrize(
    ("begins", "steps"),
    [
        ("fentry", 0),
        ("call", 0),
        ("nop", 0),
        ("jump", 0),
        ("pushes", CALLS + ASKED),
        ("cpuid", CALLS + ASKED),
        ("calls", CALLS + ASKED),
    ],
)
def test_where_there_is_no_room_the_machine_is_stopped(
    begins: str, steps: int, tmp_path: Path
) -> None:
    """What does nothing or jumps is passed over, what else a function begins with is done alone:
    a range's without a stop.
    """
    script = attrs.evolve(SCRIPT, text_end=RODATA - 4 * PAGE + 1, begins=begins)
    check(record_boot(SPEC, kernel(script, SPEC), dump=tmp_path / "dump"), script)
    assert Machine.made[0].gdb.resumed == STOPS + steps
    scans = memory(tmp_path / "dump")[BASE + VARIABLE["scans"]]
    assert scans == 1 + (CALLS + RANGES + ASKED if begins == "calls" else 0)


@pytest.mark.parametrize(
    ("names", "stops"),
    [
        ({"pv_mmu_ops": PV_OPS}, 4),  # before 5.0
        ({"pv_ops": GIVEN}, STOPS),
        ({}, STOPS),
    ],
    ids=["older", "other pointers", "none"],
)
def test_hooks_are_found_by_their_pointers(names: dict[str, int], stops: int) -> None:
    """Where there are none the machine is stopped at the function that they lead to."""
    toy = with_symbols(kernel(SCRIPT, SPEC), {"pv_ops": None} | names)
    record = record_boot(SPEC, toy)
    check(record)
    assert record.hook_order == ((3, L3 // PAGE), (2, L2 // PAGE), (3, L3 // PAGE))
    assert Machine.made[0].gdb.resumed == stops


def test_what_boots_have_in_common_is_done_once(tmp_path: Path) -> None:
    """The second boot begins where the map is read, with its own map, and tells the same."""
    toy = kernel(SCRIPT, SPEC)
    first = record_boot(SPEC, toy, dump=tmp_path / "first")
    other = attrs.evolve(SPEC, other=[(0x9F000, 0xA0000, 3)])
    second = record_boot(other, toy, dump=tmp_path / "second")
    assert [machine.gdb.resumed for machine in Machine.made] == [4, 3]
    (start,) = toy.starts.values()
    assert start.skipped == ((virtual(SCAN), b"\x48"),)  # where a return was put for a while
    same = {"firmware_e820": (), "provenance": first.provenance}
    assert attrs.evolve(second, **same) == attrs.evolve(first, **same)
    assert second.firmware_e820 == other.e820
    assert Machine.made[0].descriptors == Machine.made[1].descriptors
    assert Machine.made[1].descriptors == [(virtual(RODATA), 0x7F), (virtual(RODATA), 0xFFF)]
    one, two = (memory(tmp_path / name) for name in ("first", "second"))
    copies = [image[BASE + PARAMETERS : BASE + PARAMETERS + PAGE] for image in (one, two)]
    assert copies[1] == two[0x1000:0x2000] != copies[0]
    # The search for an MP table found nothing, and is left out; what it begins with is as it was.
    places = slice(BASE + VARIABLE["scans"], BASE + VARIABLE["scans"] + 8)
    assert [image[places][0] for image in (one, two)] == [1, 0]
    unchanged(tmp_path / "second", toy)
    assert two[0x40:0x80] == bytes(0x40)  # where instructions were that load descriptor tables


@pytest.mark.parametrize("told", [True, False])
def test_a_search_that_may_find_something_is_done_each_time(tmp_path: Path, told: bool) -> None:
    """It does, or no symbol says whether it did."""
    toy = kernel(attrs.evolve(SCRIPT, scan_finds=told), SPEC)
    if not told:
        toy = with_symbols(toy, {"smp_found_config": None})
    for name in ("first", "second"):
        record_boot(SPEC, toy, dump=tmp_path / name)
        image = memory(tmp_path / name)
        assert image[BASE + VARIABLE["scans"]] == 1
    assert Machine.made[1].gdb.resumed == 3


def test_a_search_that_is_not_known_is_done_each_time(tmp_path: Path) -> None:
    toy = with_symbols(kernel(SCRIPT, SPEC), {"mpparse_find_mptable": None})
    for name in ("first", "second"):
        record_boot(SPEC, toy, dump=tmp_path / name)
        assert memory(tmp_path / name)[BASE + VARIABLE["scans"]] == 1
    assert [machine.gdb.resumed for machine in Machine.made] == [4, 3]


@pytest.mark.parametrize(
    ("symbols", "resumed"),
    [
        ({"early_ioremap_init": None}, 3),
        ({"early_ioremap_init": EXTEND}, 4),
        ({"boot_params": None}, 4),
        ({"boot_params": BRK + PAGE}, 4),
    ],
    ids=["no place", "a place that is not reached", "no copy of the map", "no such copy"],
)
def test_a_kernel_without_a_place_to_begin_at(symbols: dict[str, Any], resumed: int) -> None:
    """It is called before the map is read, and the kernel has its copy of the map then; zeroes
    are no copy, though some of it is zero.
    """
    toy = with_symbols(kernel(SCRIPT, SPEC), symbols)
    for _ in range(2):
        check(record_boot(SPEC, toy))
    assert [*toy.starts.values()] == [None]
    assert [machine.gdb.resumed for machine in Machine.made] == [resumed, 3]


TAKEN = (30 * MIB, 31 * MIB)


@pytest.mark.parametrize(
    ("script", "spec"),
    [
        (attrs.evolve(SCRIPT, dirties=50 * MIB), SPEC),
        (
            attrs.evolve(SCRIPT, reserved=(*SCRIPT.reserved, TAKEN)),
            attrs.evolve(SPEC, reserved=[TAKEN]),
        ),
        (
            attrs.evolve(SCRIPT, reserved=(*SCRIPT.reserved, TAKEN)),
            attrs.evolve(SPEC, initrd=TAKEN),
        ),
    ],
    ids=["memory elsewhere", "a reservation", "an initrd"],
)
def test_a_boot_that_has_seen_its_map_is_no_start_for_others(script: Script, spec: MapSpec) -> None:
    toy = kernel(script, spec)
    records = [record_boot(spec, toy) for _ in range(2)]
    assert [*toy.starts.values()] == [None]
    assert [machine.gdb.resumed for machine in Machine.made] == [4, 3]
    for record in records:
        check(record, script)


def test_reservations_that_were_handed_over_but_not_seen(tmp_path: Path) -> None:
    """Heads of reservations are no memory that the kernel has written. A boot that goes on from a
    start must have them reserved at its end: else it is done from the beginning.
    """
    toy = kernel(SCRIPT, SPEC)
    record_boot(SPEC, toy)
    assert None not in toy.starts.values()
    spec = attrs.evolve(SPEC, reserved=[TAKEN])
    record_boot(spec, toy)
    assert [*toy.starts.values()] == [None]
    assert [machine.gdb.resumed for machine in Machine.made] == [4, 2, 3]
    again = kernel(SCRIPT, spec)
    record_boot(spec, again)
    assert None not in again.starts.values()


def test_a_reservation_inside_the_image_does_not_tell_that_the_map_was_read() -> None:
    """The kernel reserves all of its image by itself."""
    spec = attrs.evolve(SPEC, reserved=[(BASE + BSS, BASE + BSS_END)])
    toy = kernel(SCRIPT, spec)
    for _ in range(2):
        check(record_boot(spec, toy))
    assert None not in toy.starts.values()
    assert [machine.gdb.resumed for machine in Machine.made] == [4, 3]


def test_a_machine_that_does_not_tell_its_tables_is_no_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = Gdb.monitor
    monkeypatch.setattr(Gdb, "monitor", lambda *told: monitor(*told).replace("IDT=", "idt="))
    toy = kernel(SCRIPT, SPEC)
    check(record_boot(SPEC, toy))
    assert [*toy.starts.values()] == [None]


def test_a_processor_that_is_not_given_back_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = kernel(SCRIPT, SPEC)
    record_boot(SPEC, toy)
    monkeypatch.setattr(Gdb, "forgets", "gs")
    check(record_boot(SPEC, toy))
    assert [*toy.starts.values()] == [None]
    check(record_boot(SPEC, toy))
    assert [machine.gdb.resumed for machine in Machine.made] == [4, 1, 3, 3]


def test_a_task_register_in_use_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gdb, "task", 0x40)
    toy = kernel(SCRIPT, SPEC)
    check(record_boot(SPEC, toy))
    assert [*toy.starts.values()] == [None]


def test_other_processors_and_words_have_starts_of_their_own() -> None:
    toy = kernel(SCRIPT, SPEC)
    specs = [
        SPEC,
        attrs.evolve(SPEC, pse=False),
        attrs.evolve(SPEC, command_line="quiet"),
        attrs.evolve(SPEC, initrd=TAKEN),
    ]
    for spec in specs:
        record_boot(spec, toy)
    assert len(toy.starts) == len(specs)
    assert all(machine.gdb.resumed == 4 for machine in Machine.made)
    with pytest.raises(MapSpecError, match="without five levels"):
        record_boot(attrs.evolve(SPEC, levels=5), toy)
    with pytest.raises(MapSpecError, match="firmware starts a bzImage"):
        record_boot(attrs.evolve(SPEC, entry="firmware"), attrs.evolve(toy, is_bzimage=False))
    assert record_boot(SPEC, attrs.evolve(toy, is_bzimage=False)).panic is None
    with pytest.raises(KernelImageError, match="not a Linux x86 bzImage"):
        record_boot(SPEC, Path(__file__))


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", ["fentry", "cpuid"])
@pytest.mark.parametrize(
    ("ends", "words"),
    [("panic", "it is over"), ("extend_brk", "extend_brk: brk is closed (kernel BUG)")],
)
def test_a_panic_is_a_result(begins: str, ends: str, words: str) -> None:
    """Its tables are those of the tree that was being built, whatever CR3 says."""
    script = attrs.evolve(SCRIPT, begins=begins, ends=ends, loads_cr3=False)
    record = record_boot(SPEC, kernel(script, SPEC))
    check(record, script)
    assert record.panic == words
    assert record.leaf_runs == ((0, 64 * MIB, 2),)


LAST = "the kernel's last lines:\n  words of the log\n  the last of them"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            attrs.evolve(SCRIPT, ends="early panic"),
            "6.1.0-toy: panic before the direct map: it is over",
        ),
        (
            attrs.evolve(SCRIPT, loads_cr3=False),
            f"6.1.0-toy: CR3 is 0x3000 after init_mem_mapping, not {BASE + ROOT:#x}",
        ),
        (
            attrs.evolve(SCRIPT, steps=(Step(0, MIB, (), ((2, 64 * MIB - PAGE),)),)),
            "6.1.0-toy: the kernel took a table at 0x3fff000, RAM of the map that QEMU's machine "
            "does not have: take RAM from 3 to 4 GiB out of the map",
        ),
    ],
    ids=["early panic", "CR3", "no RAM"],
)
def test_what_goes_wrong_is_told_with_the_kernels_last_lines(script: Script, message: str) -> None:
    toy = kernel(script, SPEC)
    for one, lines in ((toy, f"\n{LAST}"), (with_symbols(toy, {"__log_buf": None}), "")):
        with pytest.raises(KernelBootError) as caught:
            record_boot(SPEC, one)
        assert str(caught.value) == f"{message}{lines}"


def test_a_kernel_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gdb, "hangs", True)
    monkeypatch.setattr(Machine, "console", lambda _: "".join(f"{n}\n" for n in range(20)))
    with pytest.raises(KernelBootError) as caught:
        record_boot(SPEC, kernel(SCRIPT, SPEC), timeout=7)
    first, *lines = str(caught.value).splitlines()
    assert "within the time allowed, 7 s: it hangs, or needs more time" in first
    assert lines == ["the kernel's last lines:", *(f"  {n}" for n in range(8, 20))]
    monkeypatch.setattr(Machine, "console", lambda _: "\n \n")  # nothing was said there
    with pytest.raises(KernelBootError) as caught:
        record_boot(SPEC, kernel(SCRIPT, SPEC), timeout=7)
    assert str(caught.value) == f"{first}\n{LAST}"


@pytest.mark.parametrize(
    ("begins", "number", "message"),
    [
        ("fentry", 1, "stopped at 0x1234, not at clear_bss"),
        ("fentry", 3, "stopped at 0x1234, not at init_mem_mapping"),
        ("fentry", 5, "stopped at 0x1234, where no breakpoint is"),
        ("cpuid", 5, "stopped at 0x1234, where no breakpoint is"),
    ],
)
def test_a_machine_that_stops_elsewhere(
    begins: str, number: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []
    registers = Gdb.registers

    def astray(gdb: Gdb) -> dict[str, int]:
        asked.append(registers(gdb))
        return {**asked[-1], "rip": 0x1234} if len(asked) == number else asked[-1]

    monkeypatch.setattr(Gdb, "registers", astray)
    with pytest.raises(KernelBootError, match=message):
        record_boot(SPEC, kernel(attrs.evolve(SCRIPT, begins=begins), SPEC))


def test_a_list_that_is_not_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have damaged it. Nor does a kernel map for ever."""
    place = probes._Place(virtual(0), virtual(2 * PAGE))
    for end in (place.events, place.events - 1, place.limit + 1):
        memory: Any = SimpleNamespace(number_at=lambda _, end=end: end, code=lambda *_: b"")
        found = probes.Probes(Any, memory, place)._events()
        if end == place.events:
            assert list(found) == []
        else:
            with pytest.raises(KernelBootError, match=f"list ends at {end:#x}, outside"):
                list(found)
    assert (probes._MAX_ROUNDS, stops.MAX_STOPS) == (1000, 2_000_000)
    steps = (attrs.evolve(STEPS[0], hooked=tuple(range(1000))), STEPS[1])
    full = kernel(attrs.evolve(SCRIPT, steps=steps, text_end=RODATA - 4 * PAGE), SPEC)
    monkeypatch.setattr(probes, "_MAX_ROUNDS", 4)
    assert record_boot(SPEC, full).panic is None
    monkeypatch.setattr(probes, "_MAX_ROUNDS", 3)
    with pytest.raises(KernelBootError, match="init_mem_mapping did not end"):
        record_boot(SPEC, full)
    events = CALLS + 2 * RANGES + 2 * ASKED + HOOKED
    stopped = kernel(attrs.evolve(SCRIPT, begins="cpuid"), SPEC)
    monkeypatch.setattr(stops, "MAX_STOPS", events + 1)
    assert record_boot(SPEC, stopped).panic is None
    monkeypatch.setattr(stops, "MAX_STOPS", events)
    with pytest.raises(KernelBootError, match=f"init_mem_mapping did not end after {events} even"):
        record_boot(SPEC, stopped)


@pytest.mark.parametrize(("filler", "text"), [(0xCC, 0x7800), (0, 0x7800), (0xCC, 0x8000)])
def test_whole_pages_that_hold_nothing_are_a_place(filler: int, text: int) -> None:
    """At the end of what lies between two symbols; of 65 at the most; data in front is kept."""
    base = 0xFFFFFFFF81000000
    data = bytearray([filler]) * (200 * PAGE)

    def place(first: int, end: int, **names: int) -> tuple[int, int]:
        symbols = {"_etext": base + first, "__start_rodata": base + end} | names
        memory: Any = SimpleNamespace(
            symbols=symbols, code=lambda at, size: bytes(data[at - base : at - base + size])
        )
        found = probes._gap(memory, "_etext", "__start_rodata")
        return found.start - base, found.end - base

    assert place(text, 0x20000) == (0x8000, 0x20000)
    assert place(text, 0x20FFF) == (0x8000, 0x20000)
    assert place(text, 100 * PAGE) == (35 * PAGE, 100 * PAGE)
    assert place(0x1F001, 0x20000) == (0x20000, 0x20000)
    data[0x9000] = 1
    assert place(text, 0x20000) == (0xA000, 0x20000)
    data[0x9FFF] = 1
    assert place(text, 0x20000) == (0xA000, 0x20000)
    data[0xA000] = 1
    assert place(text, 0x20000) == (0xB000, 0x20000)
    nothing: Any = SimpleNamespace(symbols={})  # and no memory that could be read
    assert probes._gap(nothing, "_etext", "__start_rodata") == probes._Place(0, 0)
    full = probes._Place(base, base + 5 * PAGE)
    assert (full.events, full.limit) == (base + PAGE, base + PAGE + 4 * PAGE // 40 * 40)


def test_pages_before_any_range_are_those_of_no_step() -> None:
    """A range before any step is no kernel that is known."""
    script = attrs.evolve(SCRIPT, ranges_first=True)
    with pytest.raises(KernelBootError, match="before any init_memory_mapping"):
        record_boot(SPEC, kernel(script, SPEC))
