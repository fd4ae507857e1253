"""Real kernels as dom0: recordings, what is refused as one, and the model's calls beside them."""

from __future__ import annotations

import json
import lzma
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from paravirt_mm import E820Type, InputError, Machine, MemoryMap, Scenario
from paravirt_mm.cli.main import cli
from paravirt_mm_xen.dom0 import compare, recording as recording_module
from paravirt_mm_xen.dom0.compare import Dom0Comparison, compare_dom0, machine_of
from paravirt_mm_xen.dom0.recording import Dom0Recording, Kind, MappedRange, Request, count
from paravirt_mm_xen.live import ENVIRONMENT, MissingPieceError, find_pieces
from paravirt_mm_xen.live.pieces import default_directory

DATA = Path(__file__).parents[3] / "tests/data/xen"
RECORDINGS = sorted(DATA.glob("dom0-*.json.xz"))
FIRST = DATA / "dom0-linux-6.1-xen-4.17.json.xz"
QUICK = [path for path in RECORDINGS if "small" in path.name and "5.10" not in path.name]
SMALL = DATA / "dom0-linux-7.2-xen-4.17-small-132m.json.xz"


@pytest.fixture(scope="module")
def recording() -> Dom0Recording:
    return Dom0Recording.load(FIRST)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow) if path not in QUICK else path
        for path in RECORDINGS
    ],
    ids=lambda path: path.name,
)
def test_the_model_makes_the_calls_of_a_real_kernel_one_by_one(path: Path) -> None:
    found = compare_dom0(Dom0Recording.load(path))
    assert list(found.lines())[1:] == [
        *(line for line in found.lines() if line.startswith("  ") and not line.endswith("differs"))
    ]
    assert found.difference is None
    assert found.ok
    assert found.real["PIN_L1_TABLE"] == found.real["made read-only"] > 25
    assert found.run.figures["flips"] == found.real["made read-only"]


def test_what_was_recorded(recording: Dom0Recording) -> None:
    """The figures of docs/xen-costs.md, from a boot of their own."""
    inside, before = recording.counts(inside=True), recording.counts(inside=False)
    kinds = [kind.value for kind in Kind]
    assert [inside[kind] for kind in kinds] == [3283, 219, 221]
    assert [before[kind] for kind in kinds] == [50, 112, 43]
    assert (inside["hypercalls"], before["hypercalls"]) == (3723, 205)
    assert (inside["batches"], inside["batched"]) == (0, 0)
    assert (inside["cleared L3"], inside["cleared L2"], inside["set L2"]) == (2044, 1020, 219)
    assert (recording.release, recording.xen) == ("6.1.0-50-amd64", "4.17.7")
    assert machine_of(recording).memory_map.ram_pages().end == 0x20061000


def first_pin(recording: Dom0Recording) -> int:
    inside = recording.calls[recording.begin :]
    return next(n for n, call in enumerate(inside) if call.command == "PIN_L1_TABLE")


def changed(recording: Dom0Recording, number: int, **fields: Any) -> Dom0Recording:
    calls = list(recording.calls)
    calls[recording.begin + number] = attrs.evolve(calls[recording.begin + number], **fields)
    return attrs.evolve(recording, calls=tuple(calls))


@pytest.mark.slow
def test_a_call_that_is_another_is_told(recording: Dom0Recording) -> None:
    found = compare_dom0(changed(recording, first_pin(recording), pfn=7))
    assert not found.ok
    assert found.difference == (1, ("PIN_L1_TABLE", 7), ("PIN_L1_TABLE", 0x4401))
    assert list(found.lines())[-1] == (
        "  request 1: kernel PIN_L1_TABLE 0x7, model PIN_L1_TABLE 0x4401"
    )
    assert found.real == found.model
    assert found.as_dict() == {
        "kernel": recording.release, "xen": recording.xen, "real": found.real,
        "model": found.model, "before": recording.counts(inside=False),
        "difference": found.difference, "agree": False,
    }  # fmt: skip
    less = attrs.evolve(recording, calls=recording.calls[:-1])
    found = compare_dom0(less)
    assert found.difference is not None
    assert found.difference[1:] == (None, ("TLB_FLUSH_LOCAL", -1))
    assert "kernel nothing more" in list(found.lines())[-1]


def test_one_cleared_entry_more_is_told(recording: Dom0Recording) -> None:
    cleared = next(call for call in recording.calls[recording.begin :] if call.clears)
    found = compare_dom0(attrs.evolve(recording, calls=(*recording.calls, cleared)))
    assert found.difference is None
    assert not found.ok
    name = f"cleared L{cleared.level}"
    assert found.real[name] == found.model[name] + 1
    assert [line.split() for line in found.lines() if line.endswith("differs")] == [
        [*name.split(), f"{found.real[name]:,}", f"{found.model[name]:,}", "differs"]
    ]


def test_requests_that_share_a_hypercall_are_batches() -> None:
    pin = Request(Kind.MMUEXT_OP, 0, command="PIN_L1_TABLE", pfn=5)
    counts = count([pin, attrs.evolve(pin, pfn=6), attrs.evolve(pin, pfn=7, hypercall=1)])
    assert counts == {
        "PIN_L1_TABLE": 3,
        "batched": 2,
        "batches": 1,
        "hypercalls": 2,
        "mmuext_op": 3,
    }


@pytest.mark.parametrize("name", ["again.json", "again.json.xz"])
def test_a_file_is_read_as_it_was_written(
    recording: Dom0Recording, tmp_path: Path, name: str
) -> None:
    recording.save(tmp_path / name)
    assert Dom0Recording.load(tmp_path / name) == recording


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": "another"}, "its format is not 'paravirt-mm dom0 1'"),
        ({"kernel": 6}, "'kernel' must be a str"),
        ({"begin": True}, "'begin' must be a int"),
        ({"begin": 5}, "'begin' is no place"),
        ({"begin": -1}, "'begin' is no place"),
        ({"image": [1, 2, 3, 4]}, "five numbers"),
        ({"image": [1, 2, 3, 4, 5.0]}, "five numbers"),
        ({"log": [1]}, "five numbers, 'log' texts"),
        ({"calls": [7]}, "a call is a list"),
        ({"calls": [["fly", 1]]}, "no such call"),
        ({"calls": [["mmuext_op", 0, "PIN_L1_TABLE"]]}, "no such call"),
        ({"calls": [["mmuext_op", 0, 5, 7]]}, "command cannot be 5"),
        ({"calls": [["mmuext_op", 0.0, "PIN_L1_TABLE", 7]]}, r"hypercall cannot be 0\.0"),
        ({"calls": [["mmuext_op", 0, "PIN_L1_TABLE", -2]]}, "pfn cannot be -2"),
        ({"calls": [["update_va_mapping", 0, 1 << 64, 1, 1]]}, "va cannot be"),
        ({"calls": [["mmu_update", 0, 1, 2, 3, 4]]}, "no such call"),
        ({"calls": [["mmu_update", 0, 1, True, 3, 4, 5]]}, "index cannot be True"),
        ({"mappings": {}}, "'mappings' must be a list"),
        ({"mappings": [[1, 2]]}, "'mappings' has rows of three numbers"),
        ({"tables": [[1, 2, -2]]}, "'tables' has rows of three numbers"),
        ({"e820": [[1, 2, 1 << 64]]}, "'e820' has rows of three numbers"),
        ({"e820": [[1, 2, 3], 4]}, "'e820' has rows of three numbers"),
        ({"pages": "5"}, "'pages' must be a int"),
        ({"panic": 5}, "'panic' must be a str"),
    ],
)
def test_what_is_no_recording_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    good = {"format": "paravirt-mm dom0 1", "kernel": "6.1", "xen": "4.17", "host_mib": 1024}
    good |= {"dom0_mib": 512, "image": [1, 2, 3, 4, 5], "log": [], "calls": [], "begin": 0}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(good))
    assert Dom0Recording.load(path).calls == ()
    path.write_text(json.dumps(good | changes))
    with pytest.raises(InputError, match=complaint) as raised:
        Dom0Recording.load(path)
    assert str(raised.value).startswith(str(path))


def test_as_much_of_a_recording_as_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SECURITY.md: 64 MiB, 1,000,000 calls. Numbers are of 64 bits; -1 stands for no frame."""
    assert (recording_module.MAX_FILE, recording_module.MAX_CALLS) == (64 << 20, 1_000_000)
    top = (1 << 64) - 1
    kept = Dom0Recording(
        "6.1", "4.17", 1, 1, (1, 2, 3, 4, 5), (), (Request(Kind.UPDATE_VA_MAPPING, 0, va=top),) * 3,
        3, (MappedRange(0, top, -1),) * 2, ((4, -1, top),) * 3, "why", ((0, top, 1),) * 3, 7,
    )  # fmt: skip
    path = tmp_path / "one.json"
    kept.save(path)
    size = path.stat().st_size
    for name, enough in (("MAX_CALLS", 3), ("MAX_FILE", size)):
        with monkeypatch.context() as patch:
            patch.setattr(recording_module, name, enough)
            assert Dom0Recording.load(path) == kept
            patch.setattr(recording_module, name, enough - 1)
            with pytest.raises(InputError):
                Dom0Recording.load(path)
    attrs.evolve(kept, calls=(), begin=0).save(path)
    monkeypatch.setattr(recording_module, "MAX_CALLS", 2)
    with pytest.raises(InputError, match="'tables' must be a list"):
        Dom0Recording.load(path)


def test_words_of_a_recording_are_cut(tmp_path: Path) -> None:
    """80 characters of a value in a message, 200 of a text that is kept."""
    long = "6" + "y" * 300
    kept = Dom0Recording(long, long, 1, 1, (1, 2, 3, 4, 5), (), (), 0, panic=long)
    path = tmp_path / "one.json"
    kept.save(path)
    found = Dom0Recording.load(path)
    assert found.kernel == found.xen == found.panic == long[:200]
    with pytest.raises(InputError, match="begins with no release") as raised:
        _ = found.release
    assert len(str(raised.value)) == len("'kernel' begins with no release: ") + 80
    row = ["fly", long]
    for changes, said in (
        ({"calls": [row]}, str(row)[:80]),
        ({"calls": [["mmuext_op", long, "PIN_L1_TABLE", 1]]}, long[:80]),
        ({"tables": [row]}, str(row)[:80]),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(InputError) as raised:
            Dom0Recording.load(path)
        assert str(raised.value).endswith(f" {said}")
        kept.save(path)


def test_commands_of_early_boot() -> None:
    """Public xen.h, MMUEXT_*."""
    assert recording_module.COMMANDS == {
        0: "PIN_L1_TABLE", 1: "PIN_L2_TABLE", 2: "PIN_L3_TABLE", 3: "PIN_L4_TABLE",
        4: "UNPIN_TABLE", 5: "NEW_BASEPTR", 15: "NEW_USER_BASEPTR",
        6: "TLB_FLUSH_LOCAL", 7: "INVLPG_LOCAL", 10: "TLB_FLUSH_ALL", 11: "INVLPG_ALL",
    }  # fmt: skip
    assert set(recording_module.FLUSHES) == {6, 7, 10, 11}


def test_what_a_request_does_not_name_is_nothing() -> None:
    """No frame is -1, no level 0; what is not set is an empty entry."""
    assert attrs.astuple(Request(Kind.MMUEXT_OP, 7)) == (
        Kind.MMUEXT_OP, 7, -1, 0, 0, -1, 0, 0, ""
    )  # fmt: skip


def test_what_requests_do_is_counted() -> None:
    update, flip = Request(Kind.MMU_UPDATE, 0, level=2), Request(Kind.UPDATE_VA_MAPPING, 1)
    calls = (
        update, attrs.evolve(update, flags=1), attrs.evolve(update, level=3, flags=0x67),
        flip, attrs.evolve(flip, flags=0x60, hypercall=2), attrs.evolve(flip, flags=0x61),
        attrs.evolve(flip, flags=0x63), Request(Kind.MMUEXT_OP, 3, command="NEW_BASEPTR"),
    )  # fmt: skip
    assert count(calls) == {
        "NEW_BASEPTR": 1, "batched": 6, "batches": 2, "cleared L2": 1, "hypercalls": 4,
        "made read-only": 1, "made writable": 1, "mmu_update": 3, "mmuext_op": 1, "set L2": 1,
        "set L3": 1, "update_va_mapping": 4,
    }  # fmt: skip
    kept = Dom0Recording("6.1.0-9 x", "4.17", 1, 1, (1, 2, 3, 4, 5), (), calls, 7)
    assert kept.counts(inside=True)["mmuext_op"] == 1
    assert kept.counts(inside=False)["mmu_update"] == 3
    assert kept.release == "6.1.0-9"
    for kernel in ("", "Linux 6.1", "6.1.0-\u0661", "6" + "1" * 64):
        with pytest.raises(InputError, match="begins with no release"):
            _ = attrs.evolve(kept, kernel=kernel).release
    assert attrs.evolve(kept, kernel="6" + "1" * 63).release


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_files_that_hold_something_else_are_refused(tmp_path: Path, data: bytes) -> None:
    for name, content in (("one.json", data), ("one.json.xz", lzma.compress(data))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            Dom0Recording.load(tmp_path / name)
    (tmp_path / "bad.json.xz").write_bytes(b"no xz")
    with pytest.raises(InputError, match="cannot be read"):
        Dom0Recording.load(tmp_path / "bad.json.xz")


@pytest.mark.slow
def test_the_command_reads_recordings_beside_traces(
    recording: Dom0Recording, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    changed(recording, first_pin(recording), pfn=7).save(other)
    sample = DATA / "xen-4.14.6.jsonl.xz"
    result = CliRunner().invoke(
        cli, ["verify", "xen", str(FIRST), str(sample)], standalone_mode=False
    )
    assert result.return_value == 0, result.output
    assert "every request in init_mem_mapping is the model's" in result.stdout
    assert "model of Xen 4.14" in result.stdout
    result = CliRunner().invoke(
        cli, ["verify", "xen", "--json", str(FIRST), str(other)], standalone_mode=False
    )
    assert result.return_value == 1
    report = json.loads(result.stdout)
    assert [found["agree"] for found in report["dom0"]] == [True, False]
    result = CliRunner().invoke(
        cli, ["verify", "xen", str(tmp_path / "none.json")], standalone_mode=False
    )
    assert result.return_value == 3
    assert "none.json: cannot be read" in result.stderr


@pytest.mark.slow
def test_a_kernel_boots_as_dom0_and_does_what_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest dom0, on a map of its own, as a row: its requests are the model's."""
    where = os.environ.get("PARAVIRT_MM_LINUX")
    try:
        find_pieces()
        found = sorted(Path(where or "").glob("*/boot/vmlinuz-*")) if where else []
        # 5.10 agrees, too, but takes twice as long: it passes its leaf entries one by one.
        known = re.compile(r"vmlinuz-(6\.1|6\.12|7\.2)\.(?!.*cloud)")
        image = next((path for path in found if known.match(path.name)), None)
        if found and image is None:
            pytest.skip("no kernel of 6.1, 6.12 or 7.2 at hand: tools/fetch-linux.sh --suite sid")
        if image is None:
            raise MissingPieceError("no kernel that can be dom0", "run tools/fetch-linux.sh")
    except MissingPieceError as error:
        if ENVIRONMENT in os.environ and where:
            raise
        pytest.skip(str(error))
    hypervisor = os.environ.get(ENVIRONMENT) or default_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ram = [(0, 0x80000, E820Type.RAM), (1 << 20, 132 << 20, E820Type.RAM)]
    run = Scenario.of(
        Machine(name="small", memory_map=MemoryMap.sanitise(ram)),
        f"linux:image={image}",
        f"xen:hypervisor={hypervisor}",
    ).run()
    assert str(run.verdict) == "ok", run.traceback
    (kept,) = (tmp_path / "paravirt-mm/dom0").rglob("*.json.xz")
    found_out = compare_dom0(Dom0Recording.load(kept))
    assert found_out.ok, list(found_out.lines())
    assert run.figures["flips"] == found_out.real["made read-only"] > 20


def test_words_of_a_recording_name_no_file_and_reach_no_terminal(
    recording: Dom0Recording, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    odd = changed(recording, first_pin(recording), command="PIN_\x1b[2J")
    for kernel in (f"{victim} (a kernel)", "6.1/../../victim", "6.1\x00\x1b[2J", "6.1\ud800 x"):
        for told in (attrs.evolve(odd, kernel=kernel), attrs.evolve(odd, kernel=kernel, log=())):
            try:
                lines = list(compare_dom0(told).lines())
            except InputError as error:
                lines = [str(error)]
            assert all(line.isprintable() for line in lines)
    assert list(tmp_path.iterdir()) == []
    lines = list(compare_dom0(attrs.evolve(odd, xen="4.17\x1b[2J")).lines())
    assert any("PIN_\\x1b[2J" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_machine_that_the_model_does_not_map_is_told(recording: Dom0Recording) -> None:
    """Xen has no place for it: the model's kernel panics before its first step."""
    hole = ((0, 0x9F000, 1), (0x9F000, 1 << 20, 2), (132 << 20, 600 << 20, 1))
    without = attrs.evolve(recording, e820=hole, pages=0x10000, log=())
    with pytest.raises(InputError, match="the model has no run of it: panic: memory conflicts"):
        compare_dom0(without)


@pytest.mark.parametrize(
    "kernel", ["6.1,variant=hpa", pytest.param("99.x", marks=pytest.mark.slow)]
)
def test_the_command_goes_on_behind_a_recording_that_cannot_be_compared(
    recording: Dom0Recording, tmp_path: Path, kernel: str
) -> None:
    attrs.evolve(recording, kernel=kernel, log=("nothing",)).save(tmp_path / "odd.json")
    result = CliRunner().invoke(
        cli, ["verify", "xen", str(tmp_path / "odd.json"), str(SMALL)], standalone_mode=False
    )
    assert result.return_value == 3, result.output
    assert "odd.json" in result.stderr
    assert "every request in init_mem_mapping is the model's" in result.stdout


def test_entries_that_wait_for_frames_are_no_cleared_ones(
    recording: Dom0Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where leaves go through Xen: RAM behind the domain's pages is mapped by empty entries."""
    monkeypatch.setattr(compare, "cleared_entries", lambda _: {1: 5, 2: 7, 3: 0})
    monkeypatch.setattr(compare, "extra_memory", lambda _: SimpleNamespace(total=3 * 4096))
    found = compare_dom0(recording).model
    assert (found["cleared L1"], found["cleared L2"], "cleared L3" in found) == (8, 7, False)


def test_the_command_says_that_a_recording_agrees() -> None:
    small = next(path for path in RECORDINGS if "6.1-xen-4.17-small" in path.name)
    result = CliRunner().invoke(cli, ["verify", "xen", "--json", str(small)], standalone_mode=False)
    assert result.return_value == 0, result.output
    report = json.loads(result.stdout)
    assert (report["agree"], [each["agree"] for each in report["dom0"]]) == (True, [True])


def test_what_a_model_need_not_know_is_left_out() -> None:
    """Pages of static tables, and which entry of the root the direct map begins at."""
    asked: list[tuple[Any, ...]] = [
        ("PIN_L1_TABLE", 5), ("mmu_update", 5, 3, 9), ("mmu_update", 6, 3, 9), ("NEW_BASEPTR", 6),
        ("NEW_BASEPTR", 5), ("update_va_mapping", 0xFFFF_8880_0000_3000, 9, True),
        ("UNPIN_TABLE", 6), ("TLB_FLUSH_LOCAL", -1),
    ]  # fmt: skip
    assert compare._told(asked) == [
        ("PIN_L1_TABLE", 5), ("mmu_update", 5, 3, 9), ("mmu_update", -2, 3, 9), ("NEW_BASEPTR", -2),
        ("NEW_BASEPTR", 5), ("update_va_mapping", 0x3000, 9, True),
        ("UNPIN_TABLE", 6), ("TLB_FLUSH_LOCAL", -1),
    ]  # fmt: skip


def test_the_first_place_where_two_sides_differ() -> None:
    one: list[tuple[Any, ...]] = [("a", 1), ("b", 2)]
    assert compare._first_difference(one, list(one)) is None
    assert compare._first_difference(one, one[:1]) == (1, ("b", 2), None)
    assert compare._first_difference(one[:1], one) == (1, None, ("b", 2))
    assert compare._first_difference(one, [("c", 0), ("b", 2)]) == (0, ("a", 1), ("c", 0))


def test_counts_are_told_by_name(recording: Dom0Recording) -> None:
    run: Any = None
    found = Dom0Comparison(recording, run, {"b": 1, "a": 2}, {"c": 3, "a": 2}, None)
    assert [line.split() for line in found.lines()][1:4] == [
        ["a", "2", "2"], ["b", "1", "0", "differs"], ["c", "0", "3", "differs"]
    ]  # fmt: skip
    before = recording.counts(inside=False)
    assert before != recording.counts(inside=True)
    assert found.as_dict()["before"] == before


@pytest.mark.parametrize(
    ("operation", "asked"),
    [
        (("mmu_update", 1, 7, 2, 0x67, False), ("mmu_update", 0x11, 7, 0x12)),
        (("update_va", 0x5000, 2, 0x65), ("update_va_mapping", 0x5000, 0x12, False)),
        (("update_va", 0x5000, 2, 0x67), ("update_va_mapping", 0x5000, 0x12, True)),
        (("pin", 3, 1), ("PIN_L3_TABLE", 0x11)),
        (("unpin", 1), ("UNPIN_TABLE", 0x11)),
        (("new_baseptr", 2), ("NEW_BASEPTR", 0x12)),
        (("tlb_flush", "local"), ("TLB_FLUSH_LOCAL", -1)),
        (("store", 1, 7, 2, 0x67), None),
    ],
)
def test_requests_of_a_replay_are_told_as_recorded_ones(
    operation: tuple[Any, ...], asked: tuple[Any, ...] | None
) -> None:
    """By the domain's own frame numbers: page 1 is frame 0x11 here. Stores ask for nothing."""
    told = list(compare._asked_of(operation, [0x10, 0x11, 0x12]))
    assert told == ([] if asked is None else [asked])


@pytest.mark.parametrize(
    ("pages", "ram"),
    [
        (0x9F + 0x100, [(0, 0x9F000), (0x10_0000, 0x20_0000)]),
        (0x9F + 0x200, [(0, 0x9F000), (0x10_0000, 0x30_0000)]),
        (0x9F + 0x201, [(0, 0x9F000), (0x10_0000, 0x30_0000), (0x40_0000, 0x40_1000)]),
        (5, [(0, 0x5000)]),
        (0x10_0000, [(0, 0x9F000), (0x10_0000, 0x30_0000), (0x40_0000, 0x80_0000)]),
    ],
)
def test_the_lowest_memory_of_a_host_is_dom0s(
    recording: Dom0Recording, pages: int, ram: list[tuple[int, int]]
) -> None:
    e820 = ((0, 0x9F000, 1), (0x10_0000, 0x30_0000, 1), (0x40_0000, 0x80_0000, 1))
    told = attrs.evolve(recording, e820=e820, pages=pages, log=())
    assert list(machine_of(told).memory_map.ram_pages()) == ram
