"""The other formats, and that the right reader is found for each."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import sys
import tarfile
from pathlib import Path

import attrs
import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Entry, E820Type, MemoryMap
from paravirt_mm.machine.model import DEFAULT_KERNEL, Machine
from paravirt_mm.sources import bundled, bundled_machines, load, load_all, load_each
from paravirt_mm.sources.e820_words import log_type, resource_type
from paravirt_mm.sources.inputs import divide
from paravirt_mm.sources.machine_file import write_json, write_toml

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-bffd9fff : System RAM
  01000000-0220bb07 : Kernel code
  02400000-02e09fff : Kernel rodata
  03000000-0327c13f : Kernel data
  03b34000-03c57fff : Kernel bss
bffda000-bfffffff : ACPI Tables
c0000000-febfffff : PCI Bus 0000:00
  e0000000-efffffff : PCI MMCONFIG 0000 [bus 00-ff]
    e0000000-efffffff : Reserved
fec00000-fec003ff : IOAPIC 0
100000000-13fffffff : System RAM
140000000-1407fffff : RAM buffer
"""

MEMMAP = [
    (0x0, 0x9FBFF, "System RAM"),
    (0x9FC00, 0x9FFFF, "Reserved"),
    (0xF0000, 0xFFFFF, "reserved"),
    (0x100000, 0xBFFD9FFF, "System RAM"),
    (0xBFFDA000, 0xBFFFFFFF, "ACPI Non-volatile Storage"),
    (0x100000000, 0x13FFFFFFF, "System RAM"),
]

RECORD = {
    "id": "m1",
    "e820": [[4096, 647168, 1], [1048576, 296558592, 1], [296558592, 296701952, 20]],
    "reserved": [[0, 65536], [16777216, 33910784]],
    "brk_start": 33857536,
    "pgt_buf_pages": 12,
    "pse": 1,
    "gbpages": 0,
    "max_pfn": 72402,
    "max_low_pfn": 72402,
    "initial_mapped": 536870912,
    "linux_3_6": {},
}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def memmap_folder(folder: Path) -> Path:
    for index, (start, end, kind) in enumerate(MEMMAP):
        entry = folder / "memmap" / str(index)
        entry.mkdir(parents=True)
        for name, value in (("start", hex(start)), ("end", hex(end)), ("type", kind)):
            (entry / name).write_text(value + "\n")
    return folder / "memmap"


# -- /proc/iomem -----------------------------------------------------------------------------------


def test_iomem(tmp_path):
    machine = load(written(tmp_path, "iomem", IOMEM))
    assert list(machine.memory_map.ram()) == [
        (0x1000, 0x9FC00), (0x100000, 0xBFFDA000), (0x100000000, 0x140000000),
    ]  # fmt: skip
    assert E820Entry(0xE0000000, 0xF0000000, E820Type.RESERVED) in machine.memory_map.entries
    assert E820Entry(0xBFFDA000, 0xC0000000, E820Type.ACPI) in machine.memory_map.entries
    assert (machine.kernel.start, machine.kernel.end) == (0x1000000, 0x3C58000)
    assert machine.name == "iomem"


def test_iomem_with_blanks_at_the_ends_of_lines_and_without_a_kernel(tmp_path):
    machine = load(written(tmp_path, "iomem", IOMEM))
    assert load(written(tmp_path, "iomem", IOMEM.replace("\n", "  \n"))) == machine
    bare = "".join(line for line in IOMEM.splitlines(keepends=True) if "Kernel" not in line)
    assert load(written(tmp_path, "bare", bare)).kernel == DEFAULT_KERNEL


@pytest.mark.parametrize(
    "dressed",
    [
        "".join(f"> {line}\n" for line in IOMEM.splitlines()) + ">\n",
        "".join(f">> > {line}\r\n" for line in IOMEM.splitlines()),
        f"host:~$ sudo cat /proc/iomem\n{IOMEM}host:~$ \n",
        f"[root@host ~]# cat /proc/iomem \r\n{IOMEM}\n[root@host ~]# exit\n",
        f"```\n{IOMEM}```\n",
    ],
    ids=["mail", "answer", "terminal", "root", "markdown"],
)
def test_iomem_as_it_was_pasted(tmp_path, dressed):
    assert load(written(tmp_path, "iomem", dressed)) == load(written(tmp_path, "iomem", IOMEM))


def test_iomem_as_an_ordinary_user_sees_it(tmp_path):
    path = written(tmp_path, "iomem", "00000000-00000000 : System RAM\n")
    with pytest.raises(InputError, match=r"iomem:1: addresses are hidden; .* as root"):
        load(path)


def test_iomem_with_a_foreign_line(tmp_path):
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, "long", IOMEM + "x" * 200))
    assert str(caught.value).endswith(f"iomem: '{'x' * 80}'")
    with pytest.raises(InputError, match=r"iomem:18: not a line of /proc/iomem: 'hello'"):
        load(written(tmp_path, "iomem", IOMEM + "\nhello\n"))


# -- /sys/firmware/memmap --------------------------------------------------------------------------


def test_memmap_folder_and_archive_agree(tmp_path):
    folder = memmap_folder(tmp_path)
    machine = load(folder)
    assert list(machine.memory_map.ram()) == [
        (0x1000, 0x9FC00), (0x100000, 0xBFFDA000), (0x100000000, 0x140000000),
    ]  # fmt: skip
    assert E820Entry(0xBFFDA000, 0xC0000000, E820Type.NVS) in machine.memory_map.entries
    archive = tmp_path / "memmap.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "sys/firmware/memmap")
    assert load(archive).memory_map == machine.memory_map
    assert load(archive).name == machine.name == "memmap"


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("type", "Nonsense", "2/type: unknown memory type 'Nonsense'"),
        ("start", "12", "2/start: '12' is not an address"),
        ("end", "", "2/end: '' is not an address"),
        ("end", "0x" + "f" * 400, "2/end: .* is not an address"),
    ],
)
def test_memmap_with_nonsense(tmp_path, part, text, message):
    folder = memmap_folder(tmp_path)
    (folder / "2" / part).write_text(text)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("missing", "told"), [((), ""), ((3,), "1 entry of"), ((1, 3), "2 entries of")]
)
def test_memmap_with_missing_entries(tmp_path, missing, told):
    """Linux leaves the numbers of unplugged memory free; a copy may lack some as well."""
    folder = memmap_folder(tmp_path)
    for number in missing:
        shutil.rmtree(folder / str(number))
    said = [note for note in load(folder).provenance.assumed if "missing" in note]
    assert said == [f"{told} the map missing: memory unplugged since"] * bool(missing)


def test_two_memmaps_in_an_archive_are_refused(tmp_path):
    folder = memmap_folder(tmp_path)
    archive = tmp_path / "memmap.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "one/memmap")
        tar.add(folder, "two/memmap")
    with pytest.raises(
        InputError, match="two firmware maps, 'one/memmap/' and 'two/memmap/'; give"
    ):
        load(archive)
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "memmap")
        tar.add(folder, "memmap")  # the same once more
    assert load(archive).memory_map == load(folder).memory_map
    (folder / "3" / "end").write_text("0xffffffffff")
    with tarfile.open(archive, "a") as tar:
        tar.add(folder, "memmap")
    with pytest.raises(InputError, match=r"memmap.tar/3/end: stands there twice"):
        load(archive)


def test_memmap_with_a_missing_file(tmp_path):
    folder = memmap_folder(tmp_path)
    (folder / "3" / "end").unlink()
    with pytest.raises(InputError, match="3/end"):
        load(folder)


# -- oracle records --------------------------------------------------------------------------------


def test_oracle_record(tmp_path):
    machine = load(written(tmp_path, "one.jsonl", json.dumps(RECORD)))
    assert machine.name == "m1"
    assert [int(entry.type) for entry in machine.memory_map] == [1, 1, 20]
    assert machine.memory_map.entries[0].start == 4096, "used as it is"
    assert (machine.kernel.start, machine.kernel.brk_start) == (16777216, 33857536)
    assert machine.kernel.brk_end - machine.kernel.brk_start == 12 * 4096
    assert machine.reserved == ((0, 65536), (16777216, 33910784))
    assert (machine.max_pfn, machine.max_low_pfn, machine.boot_mapped) == (72402, 72402, 1 << 29)


def test_many_oracle_records_compressed(tmp_path):
    lines = "".join(json.dumps(RECORD | {"id": f"m{n}"}) + "\n" for n in range(3))
    path = written(tmp_path, "many.jsonl.xz", lzma.compress(lines.encode()))
    assert [machine.name for machine in load_all([path])] == ["m0", "m1", "m2"]
    with pytest.raises(InputError, match="holds more than one machine"):
        load(path)
    spaced = written(tmp_path, "spaced.jsonl", lines.replace("\n", "\n \n\n"))
    parts = [(part.source, part) for part in divide([str(spaced)])]
    assert [source.rpartition(":")[2] for source, _ in parts] == ["1", "4", "7"]
    made = [next(part.machines(None))[1] for _, part in parts]
    assert [machine.name for machine in made] == ["m0", "m1", "m2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"brk_start": "soon"}, r"brk_start: 'soon' is not a number"),
        ({"brk_start": None}, r"brk_start: None is not a number"),
        ({"pse": 2}, r"pse: 0x2 is not between 0x0 and 0x1"),
        ({"gbpages": 2}, r"gbpages: 0x2 is not between 0x0 and 0x1"),
        ({"pse": -1}, r"pse: -0x1 is not between"),
        ({"gbpages": -1}, r"gbpages: -0x1 is not between"),
        ({"pgt_buf_pages": -1}, r"pgt_buf_pages: -0x1 is not between 0x0 and 0x100000"),
        ({"pgt_buf_pages": (1 << 20) + 1}, r"pgt_buf_pages: 0x100001 is not between"),
        ({"max_pfn": 0}, r"max_pfn: 0x0 is not between 0x1"),
        ({"max_low_pfn": 0}, r"max_low_pfn: 0x0 is not between 0x1"),
        ({"e820": [[0, 1, -1]]}, r"e820\[0\]\[2\]: -0x1 is not between 0x0 and 0xffffffff"),
        ({"e820": [[0, 1, 1 << 32]]}, r"e820\[0\]\[2\]: 0x100000000 is not between"),
        ({"e820": [[0, 1]]}, r"e820\[0\]: has 2 items instead of 3"),
        ({"e820": [[9, 1, 1]]}, r"e820\[0\]: ends at 0x1, before its start 0x9"),
        ({"e820": {}}, r"e820: dict is not a list"),
        ({"reserved": [[0, 1 << 65]]}, r"reserved\[0\]\[1\]: .* is not between"),
        ({"e820": []}, r"no whole page of RAM"),
    ],
)
def test_oracle_record_with_nonsense(tmp_path, change, message):
    path = written(tmp_path, "bad.jsonl", json.dumps(RECORD | change))
    with pytest.raises(InputError, match=message):
        load(path)


def test_oracle_record_without_a_key(tmp_path):
    record = {key: value for key, value in RECORD.items() if key != "pgt_buf_pages"}
    with pytest.raises(InputError, match=r"bad.jsonl:1: pgt_buf_pages: missing"):
        load(written(tmp_path, "bad.jsonl", json.dumps(record)))


# -- our own TOML and JSON -------------------------------------------------------------------------


def whole() -> Machine:
    machine = bundled("pae-4g")
    return attrs.evolve(
        machine,
        max_pfn_hint=0x118000,
        provenance=attrs.evolve(
            machine.provenance, title='a "quoted" \\ title with \x7f and é', assumed=("one", "two")
        ),
    )


@pytest.mark.parametrize(("name", "write"), [("m.toml", write_toml), ("m.json", write_json)])
def test_machine_files_round_trip(tmp_path, name, write):
    text = write(whole())
    again = load(written(tmp_path, name, text))
    title = again.provenance.title
    assert title == 'a "quoted" \\ title with \\x7f and é', "escaped on the way in"
    assert attrs.evolve(again, provenance=whole().provenance) == whole()
    assert len(text.splitlines()) > 20, "for people to read, and to compare line by line"
    if name == "m.json":
        assert text.startswith('{\n "format": "paravirt-mm-machine-1",\n "name": "')
    assert write(again) == text.replace("\x7f", "\\\\x7f").replace("\\u007f", "\\\\x7f")


MINIMAL = """\
format = "paravirt-mm-machine-1"
name = "tiny"
memory = [[0x1000, 0x9f000, "usable"], [0x100000, 0x4000000, "usable"]]
"""


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("", (True, False, True)),
        ("pse = false", (False, False, True)),
        ("gbpages = true", (True, True, True)),
        ("nx = false", (True, False, False)),
    ],
)
@pytest.mark.parametrize("mode", ["x86_64", "i386-pae", "i386"])
def test_what_a_machine_file_does_not_say(tmp_path, features, expected, mode):
    """Large pages but none of 1 GiB, NX where the mode has it, nothing taken, 512 MiB mapped."""
    text = MINIMAL.replace("name =", f'mode = "{mode}"\nname =') + f"[features]\n{features}\n"
    machine = load(written(tmp_path, "tiny.toml", text))
    has_nx = expected[2] and (mode != "i386")
    found = machine.features
    assert (found.pse, found.gbpages, found.nx) == (*expected[:2], has_nx)
    assert (machine.mode.name, machine.boot_mapped) == (mode, 512 << 20)
    assert (machine.reserved, machine.initrd, machine.host_map) == ((), None, None)
    assert (machine.max_pfn_hint, machine.max_low_pfn_hint) == (None, None)


def test_a_minimal_machine_file_says_what_it_leaves_open(tmp_path):
    machine = load(written(tmp_path, "tiny.toml", MINIMAL))
    assert machine.mode.name == "x86_64"
    assert machine.memory_map.ram().covers(*machine.kernel.span)
    assert any("kernel at" in text for text in machine.provenance.assumed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("machine-1", "machine-9"), r'tiny.toml: format: must be "paravirt-mm-machine-1", not'),
        (('name = "tiny"', ""), r"name: missing"),
        (("tiny", "../../etc"), r"name: '../../etc': letters, digits"),
        (("name", "nmae"), r"nmae: unknown; known are boot_mapped"),
        (("usable", "usabel"), r"memory\[0\]\[2\]: 'usabel' is none of usable, reserved"),
        (("0x9f000", "0x100"), r"memory\[0\]: ends at 0x100, before its start 0x1000"),
        (("0x9f000", "true"), r"memory\[0\]\[1\]: True is not a number"),
        (("0x9f000", "1e3"), r"memory\[0\]\[1\]: 1000.0 is not a number"),
        (("0x1000", "-1"), r"memory\[0\]\[0\]: -0x1 is not between"),
        (("memory = [", "memory = ["), None),
        (("memory", 'mode = "arm"\nmemory'), r"mode: 'arm' is none of i386, i386-pae"),
        (("memory", "features = 3\nmemory"), r"features: 3 is not a table"),
        (("memory", "features.pse = 1\nmemory"), r"features.pse: 1 is not true or false"),
        (("memory", "features.psee = true\nmemory"), r"features.psee: unknown"),
        (("memory", "kernel.start = 1\nmemory"), r"kernel.end: missing"),
        (("memory", "kernel.strat = 1\nmemory"), r"kernel.strat: unknown"),
        (("memory", "provenance.titel = 'x'\nmemory"), r"provenance.titel: unknown"),
        (("memory", "initrd = [1]\nmemory"), r"initrd: has 1 items instead of 2"),
        (("memory", "max_pfn = 0\nmemory"), r"max_pfn: 0x0 is not between 0x1"),
        (("= [[", "= [["), None),
        (("]]", "]"), r"tiny.toml:\d: not TOML: .*"),
        (('"tiny"', '"tiny\x07"'), r"tiny.toml:2: not TOML"),
    ],
)
def test_machine_files_with_mistakes(tmp_path, change, message):
    path = written(tmp_path, "tiny.toml", MINIMAL.replace(*change))
    if message is None:
        load(path)
        return
    with pytest.raises(InputError, match=message):
        load(path)


def test_json_mistakes_name_the_line(tmp_path):
    path = written(tmp_path, "m.json", '{"format": "paravirt-mm-machine-1",\n "name" 3}')
    with pytest.raises(InputError, match=r"m.json:2: not JSON"):
        load(path)


# -- bundled machines ------------------------------------------------------------------------------


def test_bundled_machines_are_real_and_different():
    names = bundled_machines()
    machines = [bundled(name) for name in names]
    assert len(names) >= 9
    assert [machine.name for machine in machines] == names
    assert {machine.mode.name for machine in machines} >= {"i386", "i386-pae", "x86_64"}
    for machine in machines:
        assert "corpus id" in machine.provenance.source
        assert machine.provenance.title
        assert machine.memory_map.ram().covers(*machine.kernel.span), machine.name
    sizes = sorted(machine.memory_map.ram().total for machine in machines)
    assert sizes[0] < 1 << 28
    assert sizes[-1] > 250 << 30
    assert max(len(machine.memory_map.ram()) for machine in machines) >= 15


def test_a_bundled_machine_by_name():
    assert load("lenovo-x230-8g") == bundled("lenovo-x230-8g")
    with pytest.raises(InputError, match=r"no such file, and no machine .*lenovo-x230-8g"):
        load("lenovo-x230")
    with pytest.raises(InputError, match=r"try lenovo-x230-8g"):
        bundled("lenovo-x230-8")


# -- finding the reader ----------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed(tmp_path, logs, pack):
    path = written(tmp_path, "boot.log.z", pack((logs / "3.2-i386-pae.txt").read_bytes()))
    assert load(path).memory_map == load(logs / "3.2-i386-pae.txt").memory_map


def test_standard_input(monkeypatch, logs):
    content = io.BytesIO((logs / "3.2-i386-pae.txt").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(content)))
    machine = load("-")
    assert machine.name == "stdin"
    assert machine.max_pfn == 0x3FFE0


def test_a_folder_yields_all_and_one_bad_file_costs_no_other(tmp_path, logs):
    for name in ("3.2-i386-pae.txt", "2.6.32-i386.txt"):
        written(tmp_path, name, (logs / name).read_bytes())
    (tmp_path / "more").mkdir()
    written(tmp_path / "more", "tiny.toml", MINIMAL)
    written(tmp_path, "3.0-bad.txt", "nothing\n")
    written(tmp_path, ".hidden", "nothing\n")
    outcomes = {Path(where).name: outcome for where, outcome in load_each([tmp_path])}
    assert list(outcomes) == ["2.6.32-i386.txt", "3.0-bad.txt", "3.2-i386-pae.txt", "tiny.toml"]
    assert isinstance(outcomes.pop("3.0-bad.txt"), InputError)
    assert all(isinstance(outcome, Machine) for outcome in outcomes.values())
    with pytest.raises(InputError, match=r"3.0-bad.txt: not a boot log"):
        list(load_all([tmp_path]))


def test_an_archive_of_logs(tmp_path, logs):
    archive = tmp_path / "logs.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for name in ("3.2-i386-pae.txt", "2.6.32-i386.txt"):
            tar.add(logs / name, f"logs/{name}")
    assert [machine.name for machine in load_all([archive])] == ["3.2-i386-pae", "2.6.32-i386"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("host.example.log.gz", "host.example"),
        ("a b;c$(d).txt", "a-b-c-d"),
        ("\x1b[31mred.log", "31mred"),
        ("..txt", "machine"),
    ],
)
def test_names_are_harmless(tmp_path, logs, name, expected):
    path = written(tmp_path, name, (logs / "3.2-i386-pae.txt").read_bytes())
    assert load(path).name == expected


def test_a_machine_file_keeps_the_hosts_map_and_the_kernels_end(tmp_path):
    machine = bundled("qemu-512m")
    host = MemoryMap.sanitise([(0, 1 << 33, E820Type.RAM), (1 << 33, 1 << 34, E820Type.NVS)])
    kernel = attrs.evolve(machine.kernel, linked_end=machine.kernel.brk_end + 0x5000)
    machine = attrs.evolve(machine, host_map=host, kernel=kernel)
    for name, write in (("m.toml", write_toml), ("m.json", write_json)):
        path = tmp_path / name
        path.write_text(write(machine))
        assert load(path) == machine
    path.write_text(write_json(machine).replace('"ACPI NVS"', '"nothing"'))
    with pytest.raises(InputError, match=r"host_memory\[1\]\[2\]: 'nothing' is none of usable"):
        load(path)


@pytest.mark.parametrize(("entries", "fits"), [(1, True), (2, True), (3, False)])
def test_a_memmap_folder_has_so_many_entries_at_the_most(tmp_path, monkeypatch, entries, fits):
    monkeypatch.setattr("paravirt_mm.sources.firmware_map.MAX_ENTRIES", 2)
    for number in range(entries):
        folder = tmp_path / "memmap" / str(number)
        folder.mkdir(parents=True)
        (folder / "start").write_text(f"{(number + 1) << 28:#x}\n")
        (folder / "end").write_text(f"{((number + 2) << 28) - 1:#x}\n")
        (folder / "type").write_text("System RAM\n")
    if fits:
        assert load(tmp_path / "memmap").memory_map.ram().total == entries << 28
    else:
        with pytest.raises(InputError, match="more than 2 entries"):
            load(tmp_path / "memmap")


def test_empty_spans_are_none(tmp_path):
    text = write_toml(attrs.evolve(bundled("qemu-512m"), reserved=((0, 0), (0x1000, 0x1000))))
    path = tmp_path / "m.toml"
    path.write_text(text)
    assert load(path).reserved == ((0, 0), (0x1000, 0x1000))
    path.write_text(text.replace("[0x1000, 0x1000]", "[0x1001, 0x1000]"))
    with pytest.raises(InputError, match="ends at 0x1000, before its start 0x1001"):
        load(path)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("usable", E820Type.RAM),
        ("reserved", E820Type.RESERVED),
        ("ACPI data", E820Type.ACPI),
        ("ACPI NVS", E820Type.NVS),
        ("unusable", E820Type.UNUSABLE),
        ("persistent (type 7)", E820Type.PMEM),
        ("persistent", E820Type.PMEM),
        ("System RAM", E820Type.RAM),
        ("device reserved", E820Type.RESERVED),
        ("(usable)", E820Type.RAM),
        ("type 20", E820Type(20)),
        ("type 4294967295", E820Type(4294967295)),
        ("type 4294967296", None),
        ("type", None),
        ("usables", None),
    ],
)
def test_words_of_kernels_for_types_of_memory(words: str, kind: E820Type | None) -> None:
    """As e820_print_type of 2.6.19 to 7.2 prints them, and a Xen dom0 of 7.2."""
    assert log_type(words) == log_type(f" {words} ") == kind


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("System RAM", E820Type.RAM),
        ("System RAM (kernel reserved)", E820Type.RAM),
        ("Reserved", E820Type.RESERVED),
        ("reserved", E820Type.RESERVED),
        ("Unknown E820 type", E820Type.RESERVED),
        ("ACPI Tables", E820Type.ACPI),
        ("ACPI Non-volatile Storage", E820Type.NVS),
        ("Unusable memory", E820Type.UNUSABLE),
        ("Persistent Memory", E820Type.PMEM),
        ("Persistent Memory (legacy)", E820Type.PRAM),
        ("Soft Reserved", E820Type.SOFT_RESERVED),
        ("PCI Bus 0000:00", None),
    ],
)
def test_names_of_resources(words: str, kind: E820Type | None) -> None:
    """As e820_type_to_string names them in /proc/iomem and /sys/firmware/memmap."""
    assert resource_type(words) == resource_type(f"  {words}\n") == kind
