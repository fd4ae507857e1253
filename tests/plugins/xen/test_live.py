"""Real Xen, booted in QEMU. Skipped, saying why, where a piece is missing.

With ``PARAVIRT_MM_XEN`` set, as in CI, a missing piece is a failure.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from paravirt_mm.cli.main import cli
from paravirt_mm_xen.live import (
    ENVIRONMENT,
    LiveXen,
    MissingPieceError,
    OperationTrace,
    RecordedTrace,
    XenBootError,
    find_pieces,
)
from paravirt_mm_xen.live.build import build_guest
from paravirt_mm_xen.live.compare import compare, compare_recorded
from paravirt_mm_xen.traces.files import read_traces
from paravirt_mm_xen.traces.generators import GENERATORS, RECORDED_FORMAT, generate
from paravirt_mm_xen.traces.guest import predict, replay

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[4] / "shared/xen-replay/xen-4.17.7-traces.jsonl.xz"

RO, RW = 0x65, 0x67
DIRECT_MAP = 0xFFFF880000000000
NOT_PRESENT, READ_ONLY = -114000, -114003
REFUSED = -77777


def require(version: str | None = None) -> None:
    """Skip the test where a piece is missing; fail it where it was promised."""
    try:
        find_pieces(version)
    except MissingPieceError as error:
        if ENVIRONMENT in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveXen]:
    require()
    # A folder of this module's own: other tests boot Xen at the same time.
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        with LiveXen.open() as session:
            yield session
        assert not list(folder.iterdir())


def recorded(path: Path) -> list[RecordedTrace]:
    return list(read_traces(path))


def answers(live: LiveXen, pages: int, *operations: tuple[object, ...]) -> list[int]:
    (found,) = live.replay([OperationTrace("t", pages, operations)])
    return list(found)


def test_the_guest_compiles_without_a_warning(live: LiveXen, tmp_path: Path) -> None:
    assert build_guest(live.pieces, tmp_path, flags=["-Werror"]).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["xen-4.17.7-sample.jsonl.xz", "xen-4.17.7-extended.jsonl.xz"])
def test_recorded_answers_come_back(live: LiveXen, name: str) -> None:
    result = compare_recorded(live, recorded(DATA / name))
    assert result.disagreements == ()
    assert result.ok
    assert result.xen == "4.17.7"


@pytest.mark.full  # the samples are of these, and fresh ones are as many
def test_all_recorded_traces_come_back(live: LiveXen) -> None:
    if not SHARED.exists():
        pytest.skip(f"no {SHARED.name} beside the checkout")
    result = compare_recorded(live, recorded(SHARED))
    assert result.disagreements == ()
    assert (result.traces, result.operations) == (7_000, 421_419)


def test_fresh_operations_get_the_same_answers_on_every_boot(live: LiveXen) -> None:
    traces = list(generate(list(GENERATORS), 20_26, 20_000))
    first = live.replay(traces)
    assert live.replay(traces) == first
    assert sum(map(len, first)) >= 20_000


def test_a_wrong_model_is_caught_and_its_error_shrunk(live: LiveXen) -> None:
    """A model that knows that tables are read-only, but not that pins do not nest."""

    def wrong(trace: OperationTrace) -> list[int]:
        read_only: set[int] = set()
        predicted = []
        for name, *fields in trace.ops:
            if name == "update_va_mapping":
                read_only.add(fields[1])
            predicted.append(-22 if name == "pin" and fields[1] not in read_only else 0)
        return predicted

    trace = OperationTrace(
        "t",
        4,
        (
            ("write", 2, 3, 1, RW),
            ("pin", 1, 3),
            ("update_va_mapping", 2, 2, RO),
            ("update_va_mapping", 0, 0, RO),
            ("pin", 1, 2),
            ("tlb_flush", "all"),
            ("pin", 1, 2),
            ("unpin", 2),
        ),
    )
    result = compare(live, [trace], wrong)
    (found,) = result.disagreements
    assert not result.ok
    assert (found.number, found.real, found.predicted) == (6, -22, 0)
    assert str(found) == "t: operation 6 ('pin', 1, 2): Xen -22, model 0"
    assert found.reproducer() == (
        '{"id":"t-shrunk","pages":1,"ops":[["update_va_mapping",0,0,101],["pin",1,0],["pin",1,0]]'
        ',"rc":[0,0,-22]}'
    )


def test_a_model_that_says_nothing_differs_everywhere(live: LiveXen) -> None:
    traces = generate(RECORDED_FORMAT, 1, 500)
    result = compare(live, traces, lambda trace: [], minimise=False, describe=2)
    assert result.failed_traces == result.traces >= 5
    assert [found.number for found in result.disagreements] == [0, 0]
    assert "traces differ" in result.summary()


def direct_map(mib: int) -> OperationTrace:
    """A direct map in 4 KiB pages, tables at the top; loaded, then probed at every 61st page."""
    pages = mib * 256
    l1_count = pages // 512
    l4, l3, l2 = pages - 1, pages - 2, pages - 3
    l1 = [l2 - 1 - i for i in range(l1_count)]
    tables = {l4, l3, l2, *l1}
    samples = range(0, pages, 61)
    operations: list[tuple[object, ...]] = [
        ("store_value", page, 9, 2 * page) for page in samples if page not in tables
    ]
    for page in range(pages):
        flags = RO if page in tables else RW
        operations.append(("store", l1[page // 512], page % 512, page, flags))
    operations += [("store", l2, i, table, RW) for i, table in enumerate(l1)]
    operations += [("store", l3, 0, l2, RW), ("store", l4, 272, l3, RW), ("copy_kernel_slots", l4)]
    for table in l1:
        operations += [("update_va_mapping", table, table, RO), ("pin", 1, table)]
    operations += [("update_va_mapping", table, table, RO) for table in (l2, l3, l4)]
    operations.append(("mmuext_batch", (("pin", 4, l4), ("new_baseptr", l4))))
    for page in samples:
        at = DIRECT_MAP + page * 4096 + 72
        operations += [("probe", at, "read"), ("probe", at, "write")]
    operations += [
        ("probe", DIRECT_MAP + l4 * 4096, "read"),
        ("probe", DIRECT_MAP + l4 * 4096, "write"),
        ("probe", DIRECT_MAP + pages * 4096, "read"),
        ("boot_baseptr",),
        ("unpin", l4),
        *(("unpin", table) for table in l1),
        *(("type", table) for table in tables),
    ]
    return OperationTrace(f"direct-map-{mib}", pages, tuple(operations))


@pytest.mark.parametrize("mib", [64, pytest.param(512, marks=pytest.mark.full)])
def test_a_whole_direct_map_is_built_loaded_and_probed(live: LiveXen, mib: int) -> None:
    trace = direct_map(mib)
    (found,) = live.replay([trace])
    probes = {
        (operation[1], operation[2]): answer
        for operation, answer in zip(trace.ops, found, strict=True)
        if operation[0] == "probe"
    }
    pages, tables = trace.pages, 3 + trace.pages // 512
    for page in range(0, pages, 61):
        at = DIRECT_MAP + page * 4096 + 72
        if page < pages - tables:
            assert (probes[at, "read"], probes[at, "write"]) == (2 * page, 0)
    top = DIRECT_MAP + (pages - 1) * 4096
    assert (probes[top, "read"], probes[top, "write"]) == (0, READ_ONLY)
    assert probes[top + 4096, "read"] == NOT_PRESENT
    others = [a for op, a in zip(trace.ops, found, strict=True) if op[0] != "probe"]
    assert set(others) == {0}
    assert tuple(predict(trace)) == found


def test_the_model_answers_fresh_operations_as_xen_does(live: LiveXen) -> None:
    """The claim of the whole: every generator, at least 100,000 operations, in two minutes."""
    started = time.monotonic()
    traces = generate(list(GENERATORS), 17, 120_000)
    result = compare(live, traces, predict)
    assert [found.reproducer() for found in result.disagreements] == []
    assert result.operations >= 120_000
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(
    ("version", "named", "row"), [("4.14", "4.14.6", "4.14"), ("4.20", "4.20.", "4.20.1")]
)
def test_the_hypervisor_that_boots_is_recognised_and_modelled(
    version: str, named: str, row: str, tmp_path: Path
) -> None:
    require(version)
    saved = tmp_path / "saved.jsonl.xz"
    result = CliRunner().invoke(
        cli,
        ["verify", "xen", "--live", "--xen", version, "--ops", "20000", "--seed", "29", "--json",
         "--size", "64", "-a", "incremental:variant=hpa", "--save", str(saved)],
        standalone_mode=False,
    )  # fmt: skip
    assert result.return_value == 0, result.output
    report = json.loads(result.stdout)
    assert report["live"]["xen"].startswith(named)
    assert (report["live"]["release"], report["live"]["agree"]) == (row, True)
    assert [run["ok"] for run in report["runs"]] == [True]
    again = list(read_traces(saved))
    assert {recorded.hypervisor for recorded in again} == {report["live"]["xen"]}
    assert sum(len(recorded.answers) for recorded in again) == report["live"]["operations"]
    assert not any(map(replay, again))


def test_the_interfaces_measured_table(live: LiveXen) -> None:
    """The life of an L1 table, as measured when the laboratory was designed."""
    assert answers(
        live,
        3,
        ("pin", 1, 0),
        ("update_va_mapping", 0, 0, RO),
        ("pin", 1, 0),
        ("pin", 1, 0),
        ("pin", 2, 0),
        ("update_va_mapping", 0, 0, RW),
        ("update_va_mapping", 1, 0, RW),
        ("update_va_mapping", 1, 0, RO),
        ("write", 0, 6, 2, RW),
        ("write", 0, 7, 0, RW),
        ("mmu_update", 0, 10, 0, RW, False),
        ("unpin", 0),
        ("unpin", 0),
        ("update_va_mapping", 0, 0, RW),
    ) == [-22, 0, 0, -22, -22, -16, -16, 0, 0, READ_ONLY, -16, 0, -22, 0]


def test_batches_tell_how_far_they_came(live: LiveXen) -> None:
    good, bad = (0, 1, 1, RW, False), (0, 2, 0, RW, False)
    assert answers(
        live,
        3,
        ("update_va_mapping", 0, 0, RO),
        ("pin", 1, 0),
        ("mmu_update_batch", (good, good)),
        ("mmu_update_batch", (good, good, bad, good)),
        ("mmuext_batch", (("tlb_flush", "all"), ("unpin", 0), ("unpin", 0), ("pin", 1, 0))),
        ("type", 0),
        ("multicall", (("pin", 1, 0), ("pin", 1, 0), ("update_va_mapping", 2, 2, RO))),
        ("write", 2, 0, 1, RO),
        ("type", 0),
    ) == [0, 0, 0, -2016, -2022, 0, -1022, READ_ONLY, 9]


def test_pages_are_zero_and_fresh_in_each_trace(live: LiveXen) -> None:
    dirty = OperationTrace("dirty", 2, (("store_value", 0, 5, 42), ("update_va_mapping", 1, 1, RO)))
    clean = OperationTrace("clean", 2, (("read", 0, 5), ("read", 1, 5), ("write", 1, 5, 0, 0)))
    assert live.replay([dirty, clean, dirty, clean])[1::2] == [(0, 0, 0)] * 2


def test_the_guest_does_not_cut_itself_off(live: LiveXen) -> None:
    own = 0xFFFFFFFF80100000
    assert answers(
        live,
        2,
        ("probe", own, "write"),
        ("update_va", own, 0, 0),
        ("copy_kernel_slots", 0),
        ("update_va_mapping", 0, 0, RO),
        ("new_baseptr", 0),
        ("mmu_update", 0, 511, 0, 0, False),
        ("multicall", (("pin", 4, 0), ("mmu_update", 0, 511, 0, 0, False))),
        ("type", 0),
        ("update_va_mapping", 1, 1, RO),
        ("mmuext_batch", (("new_baseptr", 1),)),
        ("type", 0),
    ) == [REFUSED, REFUSED, 0, 0, 0, REFUSED, REFUSED, 4, 0, REFUSED, 4]


def test_addresses_that_no_table_maps(live: LiveXen) -> None:
    probes = [("probe", at, "read") for at in (0, 1 << 47, DIRECT_MAP)]
    assert answers(live, 1, *probes) == [NOT_PRESENT, -113000, NOT_PRESENT]


def test_a_hypervisor_that_does_not_boot_is_told(live: LiveXen, tmp_path: Path) -> None:
    broken = tmp_path / "xen.elf"
    broken.write_bytes(live.hypervisor.read_bytes()[:4096])
    session = LiveXen(live.pieces, live.directory, broken, live.guest, seconds=20)
    with pytest.raises(XenBootError):
        session.replay([OperationTrace("t", 1, (("unpin", 0),))])


def test_a_guest_that_hangs_is_told_and_killed(live: LiveXen) -> None:
    session = LiveXen(live.pieces, live.directory, live.hypervisor, live.guest, seconds=0.3)
    with pytest.raises(XenBootError, match="no end after"):
        session.replay([OperationTrace("t", 1, (("unpin", 0),))])


def test_a_guest_that_is_no_kernel_makes_xen_panic_and_that_is_told(
    live: LiveXen, tmp_path: Path
) -> None:
    nonsense = tmp_path / "guest.elf"
    nonsense.write_bytes(b"no ELF" * 1000)
    session = LiveXen(live.pieces, live.directory, live.hypervisor, nonsense, seconds=40)
    with pytest.raises(XenBootError, match="Xen panicked") as error:
        session.replay([OperationTrace("t", 1, (("unpin", 0),))])
    assert any("Panic on CPU 0" in line for line in error.value.console)
