"""What was once read wrongly in silence: it is refused with its line, or read right and told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.sources import load, load_each, read_boot_log
from paravirt_mm.sources.machine_file import write_toml

LOW = "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
HIGH = "BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable\n"
END = "last_pfn = 0x40000 max_arch_pfn = 0x400000000\n"
TOML = 'format = "paravirt-mm-machine-1"\nname = "m"\n'
MEMORY = 'memory = [[0x1000, 0x9f000, "usable"], [0x100000, 0x20000000, "usable"]]\n'


def written(tmp_path: Path, text: str, name: str = "case.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BIOS-e820: [mem 0-654335] usable\n", r":1: .*not understood.*hexadecimal"),
        ("BIOS-e820: 0 - 654336 (usable)\n", r":1: .*not understood"),
        (
            "BIOS-88: 000000000009f000 @ 0000000000000000 (usable)\n",
            r":1: memory map line not understood",
        ),
        (
            LOW + HIGH + "BIOS-e820: [mem 0x0000000140000000-0x00000000ffffffff] usable\n",
            r":3: the entry ends at 0x100000000, before its start 0x140000000",
        ),
        (
            LOW + HIGH + "e820: update [mem 0x20000000-0x1fffefff] usable ==> reserved\n",
            r":3: the change ends at 0x1ffff000, before its start",
        ),
        (
            LOW + HIGH + "e820: update [mem 0x20000000-0x3fffffff] usable =>> reserved\n",
            r":3: change of the memory map not understood",
        ),
        (LOW + "BIOS-e820: [mem 0x0000000100000000-0x00000\nnothing\n", r":2: .*cut short"),
        ("Linux version 2.4.20\n" + LOW + HIGH, "Linux 2.4.20 prints maps of another kind"),
        (
            LOW + HIGH + "RAMDISK: [mem 0x10000000-0xffffffffffff]\n" + END,
            "the initrd at 0x10000000-0x1000000000000 does not lie in the memory map",
        ),
        (
            "(XEN) Xen-e820 RAM map:\n(XEN)  [0000000000000000, 000000003fffffff] (usable)\n"
            "(XEN) Dom0 kernel: 64-bit, PAE, lsb, paddr 0x1000000 -> 0xfffffffffff000\n"
            "Xen: [mem 0x0000000000100000-0x000000003fffffff] usable\nLinux version 5.10.1\n",
            "the kernel at 0x1000000-0xfffffffffff000 is larger than 1 GiB",
        ),
        (
            LOW + "".join(
                f"{'user' if n % 2 else 'modified'}: [mem {n << 20:#x}-{(n << 20) + 0xFFFFF:#x}]"
                " usable\n" for n in range(1, 80)
            ),
            "more than 64 memory maps in one boot",
        ),
        ("BIOS-e820: [mem 0x0-0xffffffffffffffff] usable\n", "no memory map"),
        (LOW.replace("09fbff", "000fff"), "no whole page of RAM"),
        ("Linux version 6.1.0\nCommand line: quiet\n", "no memory map: expected"),
    ],
    ids=[
        "decimal", "decimal, exclusive", "2.4.3", "inverted", "inverted change", "no arrow", "cut",
        "2.4.20", "huge initrd", "huge kernel", "many maps", "16 EiB", "a page", "head of a head",
    ],
)  # fmt: skip
def test_refused_with_what_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOML + MEMORY + "max_pfn = 0x8000000000000\n", "max_pfn: page .* lies above all memory"),
        (TOML + 'memory = [[0x100000, 0x10000000000000, "usable"]]\n', "no kernel addresses more"),
        (TOML + MEMORY + "boot_mapped = 0x" + "f" * 900_000 + "\n", "a number of 3600000 bits"),
        (TOML + MEMORY + "boot_mapped = 9" + "9" * 900_000 + "\n", "not TOML"),
        (
            TOML + MEMORY + "[kernel]\nstart = 0x1000000\nend = 0x10000000000\n"
            "brk_start = 0x10000000000\nbrk_end = 0x10000040000\n",
            "the kernel at 0x1000000-0x10000040000 is larger than 1 GiB",
        ),
        (
            TOML + MEMORY + "[kernel]\nstart = 0x30000000\nend = 0x31000000\n"
            "brk_start = 0x31000000\nbrk_end = 0x31040000\n",
            "does not lie in the memory map, which ends at 0x20000000",
        ),
        (TOML + MEMORY + "initrd = [0x1f000000, 0x21000000]\n", "the initrd .* does not lie"),
    ],
    ids=["max_pfn", "4 PiB", "hex", "decimal", "large kernel", "kernel above", "initrd above"],
)
def test_machine_files_with_impossible_values(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        load(written(tmp_path, text, "m.toml"))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("mode", "end"), [("i386", 3 << 30), ("i386-pae", 3 << 30), ("x86_64", (1 << 46) - (1 << 30))]
)
def test_a_kernel_above_what_its_mode_addresses_is_refused(
    mode: str, end: int, tmp_path: Path
) -> None:
    """An allocator's brk, which goes on after it, would lie nowhere."""
    text = TOML + (
        f'mode = "{mode}"\nmemory = [[0x100000, {end + (1 << 20)}, "usable"]]\n'
        f"[kernel]\nstart = {end - (1 << 24)}\nend = {end - 4096}\n"
        f"brk_start = {end - 4096}\nbrk_end = "
    )
    assert load(written(tmp_path, f"{text}{end}\n", "below.toml")).kernel.brk_end == end
    with pytest.raises(InputError, match=f"lies above {end:#x}, where {mode} has no addresses"):
        load(written(tmp_path, f"{text}{end + 1}\n", "above.toml"))


def test_a_kernel_outside_ram_is_told_once(tmp_path: Path) -> None:
    text = (
        TOML + 'memory = [[0x100000, 0x1800000, "usable"], [0x1800000, 0x2000000, "reserved"], '
        '[0x2000000, 0x20000000, "usable"]]\n'
    )
    kernel = "[kernel]\nstart = {:#x}\nend = {:#x}\nbrk_start = {:#x}\nbrk_end = {:#x}\n"
    outside = load(written(tmp_path, text + kernel.format(2**24, *[0x1A00000] * 2, 0x1A40000)))
    (told,) = (one for one in outside.provenance.assumed if "outside RAM" in one)
    assert "outside RAM at 0x1800000-0x1a40000" in told
    again = load(written(tmp_path, write_toml(outside), "again.toml"))
    assert again.provenance.assumed == outside.provenance.assumed
    inside = load(written(tmp_path, text + kernel.format(2**24, *[0x1200000] * 2, 0x1240000)))
    assert "outside RAM" not in " ".join(inside.provenance.assumed)


INITRDS = [
    ((0x1FFF000, 0x2000000), []),
    ((0x1FFF000, 0x2000800), ["outside RAM at 0x2000000-0x2000800"]),
    ((0x1100000, 0x1200000), []),
    ((0x10FFFFF, 0x1200000), ["initrd at 0x10fffff-0x1200000 and the kernel lie on each other"]),
    ((0xE00000, 0x1000001), ["initrd at 0xe00000-0x1000001 and the kernel lie on each other"]),
    ((0xE00000, 0x1000000), []),
]


@pytest.mark.parametrize(("initrd", "told"), INITRDS)
def test_an_initrd_where_no_boot_loader_puts_it_is_told(
    initrd: tuple[int, int], told: list[str], tmp_path: Path
) -> None:
    text = TOML + 'memory = [[0x100000, 0x2000000, "usable"], [0x2000000, 0x2100000, "reserved"]]\n'
    text += f"initrd = [{initrd[0]}, {initrd[1]}]\n[kernel]\nstart = 0x1000000\nend = 0x1080000\n"
    text += "brk_start = 0x1080000\nbrk_end = 0x1100000\n"
    machine = load(written(tmp_path, text))
    notes = [note for note in machine.provenance.assumed if "initrd" in note]
    assert len(notes) == len(told)
    assert all(words in note for words, note in zip(told, notes, strict=True))
    assert load(written(tmp_path, write_toml(machine), "again.toml")) == machine


AFTER, LAST = (0x8B7000, 0x8F7000), (0x876000, 0x8B7000)


@pytest.mark.parametrize(
    ("initrd", "end_of_ram", "brk"),
    [
        ("RAMDISK: 00900000 - 01000000", 0x20000000, AFTER),
        ("RAMDISK: 008f7000 - 01000000", 0x20000000, AFTER),
        ("RAMDISK: 008f6000 - 01000000", 0x20000000, LAST),
        ("RAMDISK: 00100000 - 00200000", 0x8F7000, AFTER),
        ("RAMDISK: 00100000 - 00200000", 0x8F6000, LAST),
    ],
)
def test_brk_is_not_assumed_where_something_else_lies(
    initrd: str, end_of_ram: int, brk: tuple[int, int], tmp_path: Path
) -> None:
    """Releases without brk say where the kernel ends: theirs would end there, too."""
    text = (
        f"BIOS-e820: 0000000000100000 - {end_of_ram:016x} (usable)\n{initrd}\n"
        "  #3 [0000200000 - 00008b6f9c]    TEXT DATA BSS ==> [0000200000 - 00008b6f9c]\n"
    )
    machine = load(written(tmp_path, text))
    assert (machine.kernel.brk_start, machine.kernel.brk_end) == brk
    assert not any("lie on" in note or "outside" in note for note in machine.provenance.assumed)


@pytest.mark.parametrize("name", ["m.json", "records.jsonl"])
def test_a_key_that_stands_twice(tmp_path: Path, name: str) -> None:
    text = '{"format": "paravirt-mm-machine-1", "name": "x", "e820": [], "e820": []}'
    with pytest.raises(InputError, match="key 'e820' stands twice"):
        load(written(tmp_path, text, name))


def test_an_archive_is_no_log() -> None:
    with pytest.raises(InputError, match="an archive; unpack it, and give its logs"):
        read_boot_log(Path(__file__).parents[1] / "data" / "logs" / "boot-logs.tar.xz")


def test_every_line_twice(tmp_path: Path) -> None:
    single = LOW + HIGH + "e820: remove [mem 0x000a0000-0x000fffff] usable\n" + END
    machine = load(written(tmp_path, single, "once.txt"))
    double = "".join(f"{line}\n{line}\n" for line in single.splitlines())
    again = load(written(tmp_path, double, "twice.txt"))
    assert again.memory_map == machine.memory_map
    assert "every line stands twice in the log: each counts once" in again.provenance.assumed
    log = read_boot_log(tmp_path / "twice.txt")
    assert len(log.facts) == 1


@pytest.mark.parametrize("cut", range(29, 50))
def test_an_entry_that_a_mail_has_wrapped(tmp_path: Path, cut: int) -> None:
    entry = "BIOS-e820: 0000000100000000 - 000000023e600000 (usable)"
    wrapped = f"{LOW}{HIGH}{entry[:cut]}\n{entry[cut:]}\n"
    assert load(written(tmp_path, wrapped)).memory_map.ram().end == 0x23E600000


def test_what_is_dropped_is_told(tmp_path: Path) -> None:
    text = LOW + HIGH + "BIOS-e820: [mem 0x0000000050000000-0x000000004fffffff] usable\n"
    text += "BIOS-e820: [mem 0x0000000060000000-0x0000000060ffffff] strange\n"
    text += "e820: update [mem 0x3f000000-0x3fffffff] usable ==>\n" + END
    machine = load(written(tmp_path, text))
    assert machine.memory_map.ram().end == 0x3F000000
    told = [line for line in machine.provenance.assumed if line.startswith("line ")]
    assert told == [
        "line 3: empty memory map entry left out",
        "line 4: unknown or lost memory type read as reserved",
        "line 5: unknown or lost memory type read as reserved",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "e820: update [mem 0x00000000-0x00000fff]{}x",
        "(XEN)  0000000000000000 - 000000000009fc00 ({}) x",
        "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff]{}usable x",
        "memblock_phys_alloc_range: {}x",
        "<6>1{}kernel x e820",
        '{{"MESSAGE": "{}',
    ],
)
def test_long_runs_of_blanks_take_no_time(tmp_path: Path, line: str) -> None:
    text = HIGH + (line.format(" " * 4000) + "\n") * 200
    started = time.process_time()
    list(load_each([written(tmp_path, text)]))
    assert time.process_time() - started < 5


@pytest.mark.slow
def test_a_million_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    filler = "[ 1234.567890] usb 1-1: new high-speed USB device number 7 using xhci_hcd\n"
    path.write_text(LOW + HIGH + END + filler * 1_000_000 + "Linux version 6.1.0\n")
    started = time.process_time()
    assert load(path).memory_map.ram().end == 0x40000000
    assert time.process_time() - started < 10
