"""Every log of the corpus, against its index and against what the kernels printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.sources import bundled, bundled_machines, load, load_each, read_boot_log
from paravirt_mm.sources.bootlog.facts import (
    BootLog,
    BrkTable,
    LastPfn,
    MappedRange,
    Place,
    TableBlock,
)

# The index tells the releases of these from elsewhere; their logs do not say it.
RELEASE_NOT_IN_THE_LOG = 6
# Two boots line by line; mem=7G; heads cut off, which the reader restores.
RAM_TOLD_DIFFERENTLY = {
    "cmotc-m11x-hwinfo-3.13.0-79205203",
    "kexec-5.5.0-rc7-55983552",
    "ubf-3.0-p8p67le-8G-topdown",
    "ubf-3.1x-dell-cl09-8G-efi",
}


@pytest.fixture(scope="module")
def boot_logs(shared: Path) -> dict[str, BootLog]:
    logs = {path.stem: read_boot_log(path) for path in (shared / "corpus" / "logs").iterdir()}
    assert len(logs) == 121
    return logs


@pytest.mark.slow
def test_every_log_is_read_or_refused_with_a_reason(shared):
    outcomes = dict(load_each([shared / "corpus" / "logs"]))
    refused = {where: error for where, error in outcomes.items() if isinstance(error, InputError)}
    assert len(outcomes) == 121
    assert len(refused) == 8
    for where, error in refused.items():
        assert "xen-dom0-" in where, "hypervisor logs without a map"
        assert str(error).startswith(where)
        assert "hypervisor log without memory map" in str(error)


@pytest.mark.slow
def test_logs_say_what_the_index_says(shared, boot_logs):
    index = {it["id"]: it for it in json.loads((shared / "corpus" / "index.json").read_text())}
    releases = 0
    for name, log in boot_logs.items():
        known = index[name]
        releases += log.release != known["kernel_version"]
        assert log.release in (known["kernel_version"], None), name
        assert (log.platform == "native") == (known["era"] != "xen"), name
        assert bool(log.of_kind(TableBlock)) == known["has_direct_mapping_tables"], name
        assert bool(log.of_kind(BrkTable)) == known["has_BRK_lines"], name
        assert known["has_mapping_lines"] or not log.of_kind(MappedRange), name
        assert (
            any(it.name == "Page tables" for it in log.of_kind(Place))
            == (known["has_xen_page_tables"])
        ), name
        assert (log.machine is not None) == known["has_e820"], name
        if log.machine is not None:
            assert log.machine.mode.name == known["arch"], name
            ram = log.machine.memory_map.ram().total
            if name not in RAM_TOLD_DIFFERENTLY:
                assert abs(ram - known["ram_bytes_approx"]) < 1 << 20, name
    assert releases == RELEASE_NOT_IN_THE_LOG


@pytest.mark.slow
def test_the_map_explains_what_the_kernel_mapped(boot_logs):
    """The linear allocator maps two ranges; its successor all RAM and nothing else."""
    compared = 0
    for name, log in boot_logs.items():
        mapped = RangeSet(fact.span for fact in log.of_kind(MappedRange) if fact.span)
        machine = log.machine
        if not mapped or log.mixed:
            continue
        expected = RangeSet([(0, 1 << 20)])
        if log.of_kind(TableBlock):
            expected.add(0, machine.max_low_pfn << 12)
            if not machine.mode.is_32bit and machine.max_pfn > 1 << 20:
                expected.add(1 << 32, machine.max_pfn << 12)
        else:
            expected.update(machine.memory_map.ram_pages().within(1 << 20, machine.map_limit))
            mapped.add(0, 1 << 20)
        assert mapped == expected, name
        compared += 1
    assert compared == 43


@pytest.mark.slow
def test_last_pfns_follow_from_the_map(boot_logs):
    """No hint is needed on any 64-bit machine: max_pfn and max_low_pfn are derived."""
    for name, log in boot_logs.items():
        if log.machine is None or log.machine.mode.is_32bit:
            continue
        assert log.machine.max_pfn_hint is None, name
        assert log.machine.max_low_pfn_hint is None, name
        printed = {fact.pfn for fact in log.of_kind(LastPfn)}
        if not log.mixed:
            assert printed <= {log.machine.max_pfn, log.machine.max_low_pfn}, name


def test_bundled_machines_are_those_of_their_logs(shared):
    for name in bundled_machines():
        machine = bundled(name)
        log = machine.provenance.source.partition("corpus id ")[2].split()[0].rstrip(",;")
        original = load(shared / "corpus" / "logs" / f"{log}.txt")
        for field in ("memory_map", "mode", "features", "reserved", "kernel", "initrd"):
            assert getattr(machine, field) == getattr(original, field), (name, field)
        assert machine.max_pfn == original.max_pfn
        assert machine.max_low_pfn == original.max_low_pfn
        assert machine.boot_mapped == original.boot_mapped


@pytest.mark.slow
def test_every_oracle_record_is_a_machine(shared):
    machines = dict(load_each([shared / "oracle" / "linux-kernel-oracle.jsonl.xz"]))
    assert len(machines) == 400
    for machine in machines.values():
        taken = RangeSet(machine.reserved)
        assert taken.covers(*machine.kernel.span), "brk is in the record's reserved list"
