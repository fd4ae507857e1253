"""A real kernel as an allocator: what recorded boots become, the cache, and what is refused.

No test here needs QEMU but those that say so: they skip without it or a kernel.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

import paravirt_mm
import paravirt_mm_linux
from paravirt_mm import (
    Finding,
    InputError,
    KernelFile,
    Map,
    Outcome,
    PageRun,
    RecordedBoot,
    Run,
    Scenario,
    Source,
    SpecError,
    StepStarted,
    TablePages,
    default_registry,
    hookimpl,
    read_boot,
)
from paravirt_mm.machine.model import Machine
from paravirt_mm.testing import PlainPlatform, registry_with
from paravirt_mm.verify.linux import boots
from paravirt_mm.verify.linux.qemu import LiveUnavailableError, find_kernel, find_qemu
from paravirt_mm.verify.linux.qemu.locate import KERNEL_VARIABLE
from paravirt_mm_linux import RECORDED_TABLES
from tests.boot_records import RECORDS


def run_of(monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]) -> Run:
    """Run the plugin on the machine of a record, which it takes for the boot."""
    boot = read_boot(record, "a test")
    monkeypatch.setattr(paravirt_mm, "recorded_boot", lambda *_: boot)
    return Scenario.of(boot.machine, "linux", "native").run()


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_boot_becomes_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RECORDS[name]
    run = run_of(monkeypatch, record)
    if record["panic"] is not None:
        assert (run.verdict.outcome, run.verdict.detail) == (Outcome.PANIC, record["panic"])
        return
    assert str(run.verdict) == "ok", run.traceback
    assert run.figures["tables"] == len(record["tables"])
    for level, count in record["table_count"].items():
        assert run.figures.get(f"tables_{level.lower()}", 0) == count
    assert run.figures["brk_used"] == len(record["brk_tables"])
    assert run.figures["steps"] == len(record["steps"])
    mapped = sum(end - start for start, end, _ in record["leaf_runs"])
    assert sum(run.figures[f"mapped_{size}"] for size in ("4k", "large", "huge")) == mapped


def damaged(record: dict[str, Any], what: str) -> dict[str, Any]:
    record = json.loads(json.dumps(record))
    if what == "a page too many":
        record["allocations"].append([*record["allocations"][-1][:1], "memblock", 2])
    elif what == "a page too few":
        record["allocations"].pop()
    elif what == "two pages changed places":
        pages = record["allocations"]
        pages[0][0], pages[-1][0] = pages[-1][0], pages[0][0]
    elif what == "a page of the kernel's image":
        record["allocations"][-1][0] = record["reserved"][-1][0] >> 12
    elif what == "a table too many":
        record["tables"].append([1, 5, 2 << 20])
    elif what == "a panic when all is mapped":
        record["panic"] = "no more"
    else:
        record["findings"] = ["L2 entry 0x1"]
    return record


@pytest.mark.parametrize(
    ("what", "outcome", "message"),
    [
        ("a page too many", Outcome.ERROR, "took 4 pages for tables, and its ranges need 3"),
        (
            "a page too few",
            Outcome.ERROR,
            "Linux 6.1.0-56-amd64 took 2 pages for tables, and its ranges need more",
        ),
        ("two pages changed places", Outcome.VIOLATION, "L1 table"),
        ("a table too many", Outcome.VIOLATION, "L1 table"),
        ("a panic when all is mapped", Outcome.PANIC, "no more"),
        ("a page of the kernel's image", Outcome.VIOLATION, "invariant 1"),
        ("a finding", Outcome.VIOLATION, "the kernel's own tables: L2 entry 0x1"),
    ],
)
def test_boot_that_breaks_a_rule_is_told(
    what: str, outcome: Outcome, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(monkeypatch, damaged(RECORDS["6.1.0-56-amd64:tiny"], what))
    assert run.verdict.outcome is outcome
    assert message in run.verdict.detail


@pytest.mark.parametrize(
    ("what", "address", "message"),
    [
        ("two pages changed places", 0, "only the run has this L1 table: 0x4400"),
        ("a table too many", 2 << 20, "only the kernel has this L1 table: 0x5"),
        ("a finding", 0, "the kernel's own tables: L2 entry 0x1"),
    ],
)
def test_first_table_of_one_side_only_is_told_when_all_is_done(
    what: str, address: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(monkeypatch, damaged(RECORDS["6.1.0-56-amd64:tiny"], what))
    last = len(run.trace.events) - 1
    assert run.findings == (Finding(RECORDED_TABLES, last, address, message),)
    assert RECORDED_TABLES == 9  # behind those of the core


def test_what_it_is_asked_for_has_names() -> None:
    options = default_registry().get("linux").options()
    assert [option.name for option in options] == ["image", "movable_node", "timeout"]


def test_calls_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(monkeypatch, RECORDS["6.1.0-56-amd64:tiny"])
    steps = [event.step for event in run.trace.of(StepStarted)]
    assert [step.label for step in steps if isinstance(step, Map)] == ["call 1", "call 2", "call 3"]


def test_kernel_that_the_platform_has_booted_is_not_booted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it lies, and what was handed over to it, is the platform's affair."""
    boot = read_boot(RECORDS["6.1.0-56-amd64:above-4g"], "there")
    monkeypatch.setattr(paravirt_mm, "recorded_boot", lambda *_: pytest.fail("booted"))

    class Hosts(PlainPlatform):
        @hookimpl
        def pvmm_boot_kernel(self, kernel_file: KernelFile) -> RecordedBoot:
            assert kernel_file == KernelFile("here", "movable_node", None)
            return boot

    table = max(pfn for _, pfn, _ in boot.tables) << 12
    asked = attrs.evolve(boot.machine, reserved=(*boot.machine.reserved, (table, table + 4096)))
    registry = registry_with(hosts=Hosts)
    run = Scenario.of(asked, "linux:image=here,movable_node=yes", "hosts").run(registry)
    assert "put a table there" not in run.verdict.detail
    assert run.figures["tables"] == len(boot.tables)
    assert run.trace.start.machine.kernel == boot.machine.kernel


@pytest.mark.parametrize("key", ["allocations", "steps", "tables", "release", "memory", "reserved"])
def test_record_must_have_its_form(key: str) -> None:
    record = dict(RECORDS["6.1.0-56-amd64:tiny"])
    del record[key]
    with pytest.raises(InputError, match=key):
        read_boot(record, "there")
    with pytest.raises(InputError, match="there"):
        read_boot({**record, key: [["?"]]}, "there")


def machine_with(**changes: Any) -> Machine:
    return attrs.evolve(read_boot(RECORDS["7.3-amd64:tiny"], "there").machine, **changes)


# -- what is refused ----------------------------------------------------------------------------


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "vmlinuz").write_bytes(b"?" * 5000)
    machine = machine_with()
    for image, message in (
        ("", "fetch-linux"),
        (str(tmp_path / "nothing"), "no vmlinuz"),
        (str(tmp_path / "vmlinuz"), "not a Linux x86 bzImage"),
    ):
        with pytest.raises(InputError, match=message) as error:
            boots.recorded_boot(image, machine)
        assert "\n" not in str(error.value)


def test_other_backends_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = read_boot(RECORDS["6.1.0-56-amd64:tiny"], "there")
    monkeypatch.setattr(paravirt_mm, "recorded_boot", lambda *_: boot)
    run = Scenario.of(boot.machine, "linux", "xen").run()
    assert run.verdict.outcome is Outcome.ERROR
    assert "choose -b native" in run.verdict.detail


@pytest.mark.parametrize("timeout", [0, -1, 86401])
def test_timeout_is_a_number_of_seconds(timeout: float) -> None:
    assert paravirt_mm_linux.Linux(timeout=86400)
    assert paravirt_mm_linux.Linux(timeout=0.5)
    plugin = paravirt_mm_linux.Linux()
    plugin._boots.append("of which nobody asks")
    assert plugin == paravirt_mm_linux.Linux()
    assert repr(plugin) == "Linux(image='', movable_node=False, timeout=None)"
    with pytest.raises(SpecError, match="timeout"):
        paravirt_mm_linux.Linux(timeout=timeout)


@pytest.mark.parametrize(
    ("options", "asked"),
    [("", ("", 120)), (":movable_node=yes,timeout=7", ("movable_node", 7))],
)
def test_what_a_boot_is_asked_for(
    options: str, asked: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = read_boot(RECORDS["6.1.0-56-amd64:tiny"], "there")
    found: list[Any] = []

    def booted(_image: str, _machine: Machine, *rest: Any) -> Any:
        found.append(rest)
        return boot

    monkeypatch.setattr(paravirt_mm, "recorded_boot", booted)
    run = Scenario.of(boot.machine, f"linux{options}", "native").run()
    assert str(run.verdict) == "ok"
    assert set(found) == {asked}
    assert run.trace.start.promised == ((0, 80 << 20),)


@pytest.mark.parametrize(("page", "refused"), [(-1, False), (0, True), (1, True), (2, False)])
def test_table_on_what_could_not_be_handed_over_is_refused(
    page: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's two last tables lie side by side; it heard of no reservation there."""
    boot = read_boot(RECORDS["6.1.0-56-amd64:above-4g"], "there")
    monkeypatch.setattr(paravirt_mm, "recorded_boot", lambda *_: boot)
    first = max(pfn for _, pfn, _ in boot.tables) - 1
    low = first + page << 12
    asked = attrs.evolve(boot.machine, reserved=(*boot.machine.reserved, (low, low + 4096)))
    run = Scenario.of(asked, "linux", "native").run()
    assert ("put a table there" in run.verdict.detail) is refused
    assert (f"{low:#x}" in run.verdict.detail) is refused


# -- a real boot --------------------------------------------------------------------------------


def test_real_kernel_beside_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_qemu()
        image = find_kernel()
    except LiveUnavailableError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = machine_with(reserved=())
    run = Scenario.of(machine, f"linux:image={image}", "native").run(thorough=True)
    assert str(run.verdict) == "ok"
    assert run.figures["tables"] == 3


def test_pages_are_dealt_out_in_the_order_in_which_they_were_taken() -> None:
    """However many have gone before, and however many are asked for: those, and no empty run."""
    runs = [PageRun(10, 3), PageRun(30, 1), PageRun(29, 2, -1), PageRun(50, 4)]
    parts = [TablePages(run, Source.MEMBLOCK) for run in runs]
    steps = (SimpleNamespace(pages=parts[:2]), SimpleNamespace(pages=parts[2:]))
    recorded: Any = SimpleNamespace(steps=steps)
    whole = [10, 11, 12, 30, 29, 28, 50, 51, 52, 53]
    for skip in range(11):
        for count in range(12):
            dealt = [part.run for part in paravirt_mm_linux._dealt(recorded, skip, count)]
            assert all(run.count > 0 for run in dealt)
            pages = [run.start + n * run.step for run in dealt for n in range(run.count)]
            assert pages == whole[skip : skip + count]
