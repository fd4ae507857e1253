"""Both corpora of real logs and the cases beside the checkout, where they are there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from paravirt_mm.errors import InputError
from paravirt_mm.sources import load_each, read_boot_log
from paravirt_mm.verify.log.check import check_log
from paravirt_mm.verify.log.report import MAX_REASONS, with_reason

SHARED = Path(__file__).resolve().parents[3] / "shared"
LOGS = sorted(
    path
    for folder in ("corpus/logs", "corpus2/logs", "cases/linux", "cases/xen")
    for path in (SHARED / folder).glob("*.txt")
)
REFUSED = {
    "r24-2.4.20-user-map.txt": r"Linux 2\.4\.20",
    "r24-2.4.3-bios88-size-at.txt": "memory map line not understood",
    "pvh-2026-dom0-6.19-b450.txt": "no line about memory",
}

pytestmark = pytest.mark.skipif(not LOGS, reason="../shared is not beside the checkout")


@pytest.mark.slow
def test_every_line_matches_or_the_reason_is_documented() -> None:
    explained: list[str] = []
    slow: dict[str, float] = {}
    wrong: dict[str, list[str]] = {}
    for path in LOGS:
        if path.name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[path.name]):
                read_boot_log(path)
            continue
        started = time.process_time()
        report = with_reason(check_log(read_boot_log(path)), str(path))
        slow[path.name] = time.process_time() - started
        if report.reason:
            explained.append(path.name)
        elif not report.agrees:
            wrong[path.name] = [
                f"{line.printed} | {line.predicted}"
                for line in report.lines
                if line.verdict.value == "differs"
            ]
    assert wrong == {}
    assert len(explained) <= MAX_REASONS
    # The first log pays for importing the plugins.
    assert sorted(slow.values())[-2] < 2


@pytest.mark.slow
def test_the_second_corpus_says_what_its_index_says() -> None:
    index = json.loads((SHARED / "corpus2" / "index.json").read_text())
    assert len(index) == 79
    for known in index:
        path = SHARED / "corpus2" / "logs" / f"{known['id']}.txt"
        if path.name in REFUSED:
            continue
        log = read_boot_log(path)
        assert log.release in (known["kernel_version"], None), path.name
        if log.machine is not None and log.platform != "hypervisor":
            assert log.machine.mode.name == known["arch"], path.name


HOSTILE = {
    "cr-only.txt": 8010, "dmesg-J.json": 8010, "every-line-twice.txt": 8010, "journal.json": 8010,
    "journal-json-seq.txt": 8010, "log.gz": 8010, "log.gz.gz": 8010, "log.zip": 8010,
    "e820-cut-exclusive.txt": 8164, "e820-update-good.txt": 511, "e820-update-lost-type.txt": 511,
    "late-format.txt": 511, "xen-and-dom0-rfc5424.txt": 3237, "xen-guest-512m-no-release.txt": 511,
}  # fmt: skip
"""MiB of RAM in what can be read."""
ERRORS = {
    "alternating-maps.txt": "more than 64 memory maps",
    "change-line-spaces.txt": "not understood",
    "dom0-kernel-huge.txt": "the kernel at",
    "e820-decimal.txt": "hexadecimal",
    "e820-inverted.txt": "before its start",
    "e820-size0-at-0.txt": "no memory map",
    "hex-900k-digits.toml": "a number of 3600000 bits",
    "json-duplicate-key.json": "stands twice",
    "kernel-init-ramdisk-huge.txt": "the initrd at",
    "kernel-outside-ram.toml": "the kernel at",
    "max-pfn-movable.toml": "max_pfn",
    "mem-pae-huge.toml": "no kernel addresses more",
    "newlines-255m.txt.xz": "more than 4194304 lines",
    "oracle-64m-record.jsonl.xz": "record longer than",
    "oracle-no-ram.jsonl": "no whole page of RAM",
    "tar-163-bytes.tar.xz": "sparse",
    "tar-70-members-63m.tar.xz": "not a boot log",
    "tar-longname-3g.tar.xz": "unpacks to more than",
    "tar-of-folders.tar": "holds no machine",
    "tar-sparse-map.tar": "sparse",
}


LARGE = {"newlines-255m.txt.xz", "tar-70-members-63m.tar.xz", "tar-longname-3g.tar.xz"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in (*HOSTILE, *ERRORS)
    ],
)
def test_hostile_files(name: str) -> None:
    started = time.process_time()
    outcomes = [outcome for _, outcome in load_each([SHARED / "cases" / "hostile" / name])]
    assert time.process_time() - started < 10
    first = outcomes[0]
    if name in ERRORS:
        assert isinstance(first, InputError)
        assert ERRORS[name] in str(first)
        assert len(str(first)) < 2000
    else:
        assert not isinstance(first, InputError)
        assert first.memory_map.ram_pages().total >> 20 == HOSTILE[name]
