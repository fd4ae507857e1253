"""Reading trace files: what is a trace, and what is refused, with file and line."""

from __future__ import annotations

import json
import lzma
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from paravirt_mm.errors import InputError
from paravirt_mm_xen.traces import files as traces
from paravirt_mm_xen.traces.files import TraceReader, read_traces
from paravirt_mm_xen.traces.format import (
    REFUSED_BY_GUEST,
    OperationTrace,
    RecordedTrace,
    mentioned_pages,
)
from paravirt_mm_xen.traces.guest import TraceGuest, _runs, predict, replay

GOOD = {"id": "t", "pages": 4, "ops": [["pin", 1, 3], ["unpin", 3]], "rc": [-22, -22]}
BATCH = {
    "id": "b",
    "pages": 4,
    "ops": [["mmu_update_batch", [[1, 0, 2, 103, False], [1, 1, 2, 0, True]]], ["unpin", 0]],
    "rc": [0, -22],
}


def line(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_reads_lines_and_skips_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(line() + b"\r\n\n" + line(id="u") + b"\n" + json.dumps(BATCH).encode())
    found = list(read_traces(path))
    assert [recorded.trace.name for recorded in found] == ["t", "u", "b"]
    assert found[0] == RecordedTrace(
        OperationTrace("t", 4, (("pin", 1, 3), ("unpin", 3))), (-22, -22)
    )
    assert found[2].trace.ops[0][1] == ((1, 0, 2, 103, False), (1, 1, 2, 0, True))
    assert [replay(recorded) for recorded in found] == [None, None, None]


def test_reads_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.xz"
    path.write_bytes(lzma.compress(line()))
    assert len(list(read_traces(path))) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pages": 0}, "pages"),
        ({"pages": True}, "pages"),
        ({"pages": 1 << 30}, "pages"),
        ({"pages": "8"}, "pages"),
        ({"pages": None}, "pages"),
        ({"pages": []}, "pages"),
        ({"ops": None}, "must be lists"),
        ({"ops": {"pin": 1}}, "must be lists"),
        ({"rc": [0]}, "2 operations but 1 answers"),
        ({"rc": [0, "0"]}, "numbers only"),
        ({"rc": [0, 1.5]}, "1.5 is no integer"),
        ({"rc": [0, 1 << 63]}, "64 bits"),
        ({"rc": [0, -1 << 200]}, "64 bits"),
        ({"id": 7}, "'id' must be a text"),
        ({"xen": 4.17}, "4.17 is no integer"),
        ({"xen": 4}, "'xen' must be"),
        ({"pages": 4.0}, "4.0 is no integer"),
        ({"pages": 4, "ops": [["pin", True, 3], ["unpin", 3]]}, "operation 0"),
        ({"rc": [0, False]}, "numbers only"),
        ({"ops": [["pin", 1, 3], "unpin"]}, "lists only"),
        ({"ops": [["pin", 1, 3], []]}, "operation 1"),
        ({"ops": [["pin", 1, 3], ["fly", 1]]}, "operation 1.*no such operation"),
        ({"ops": [["pin", 1, 4], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["pin", 5, 3], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["pin", 0, 3], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["unpin", -1], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["unpin", 1.0], ["unpin", 3]]}, "1.0 is no integer"),
        ({"ops": [["unpin", True], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["unpin", [1]], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["unpin", {"a": 1}], ["unpin", 3]]}, "operation 0|unhashable"),
        ({"ops": [[["unpin"], 1], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["unpin"], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["write", 1, 512, 0, 0], ["unpin", 3]]}, "operation 0"),
        ({"ops": [["write", 1, 0, 0, 1 << 64], ["unpin", 3]]}, "operation 0"),
    ],
)
def test_refuses_what_is_no_trace(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(line() + b"\n" + line(**changes))
    with pytest.raises(InputError, match=complaint) as raised:
        list(read_traces(path))
    assert str(raised.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": "a", "id": "b"}',
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"nul",
        b"[" * 100_000,
        b'{"pages": 1e999}',
        b"{}",
    ],
    ids=["twice", "open", "list", "number", "bytes", "word", "deep", "infinite", "empty"],
)
def test_refuses_what_is_no_object(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"bad\.jsonl:1: "):
        list(read_traces(path))


def test_what_was_seen_is_known_by_its_types_too(tmp_path: Path) -> None:
    """In Python ("pin", 1, 3) equals ("pin", True, 3), and 8 equals 8.0."""
    path = tmp_path / "t.jsonl"
    known = ["mmu_update", 1, 0, 2, 103, False]
    good = {"ops": [["pin", 1, 3], known], "rc": [0, 0]}
    for other in ([["pin", True, 3], known], [["pin", 1, 3], [*known[:-1], 0]]):
        path.write_bytes(b"\n".join([line(**good), line(**good), line(ops=other)]))
        with pytest.raises(InputError, match=r"t\.jsonl:3: operation"):
            list(read_traces(path))


def test_what_a_trace_costs_is_what_it_names(tmp_path: Path) -> None:
    """Sizes from a file cost nothing: a million pages, hundreds of sizes."""
    path = tmp_path / "t.jsonl"
    sizes = [1 << 20, *range(1, 1 << 20, 2003)]
    path.write_bytes(
        b"\n".join(
            line(pages=pages, ops=[["type", 0], ["pin", 1, pages - 1]], rc=[0, -22])
            for pages in sizes
        )
    )
    started = time.process_time()
    assert [replay(recorded) for recorded in read_traces(path)] == [None] * len(sizes)
    assert time.process_time() - started < 5


def test_pages_that_lie_apart_are_where_they_are_in_a_whole_guest() -> None:
    """With the pages that a trace names, and with all of them: the same answers."""
    pages = 3000
    operations = (
        ("store", 2047, 0, 5, 0x67),
        ("update_va_mapping", 2047, 2047, 0x65),
        ("pin", 1, 2047),
        ("read", 2047, 0),
        ("mmuext_batch", (("pin", 2, 2048), ("unpin", 2047))),
        ("mmu_update_batch", ((2999, 3, 5, 0x67, False), (2999, 4, 2998, 0x65, True))),
        ("read", 2999, 4),
        ("new_user_baseptr", None),
        ("type", 511),
    )
    trace = OperationTrace("t", pages, operations)
    assert mentioned_pages(trace) == {5, 511, 2047, 2048, 2998, 2999}
    runs = _runs([3000, 5, 2999, 511, 2047, 2998, 2048])
    assert [page for run in runs for page in run] == [5, 511, 2047, 2048, 2998, 2999, 3000]
    assert predict(trace) == TraceGuest(pages).answers(operations)
    assert predict(trace)[3] == 5 << 12 | 0x167
    # Each in the range of an L1 of its own: as many tables as pages.
    apart = OperationTrace("t", 20 << 9, tuple(("pin", 1, (n << 9) + 5) for n in range(20)))
    assert predict(apart) == (-22,) * 20


def test_a_guest_has_each_of_its_pages() -> None:
    """However many a trace has; where it names none, it has whatever it needs to answer."""
    for pages in (1, 2, 3, 4, 5, 8, 9, 16, 17):
        last = (("store", pages - 1, 0, 0, 0x66), ("type", pages - 1))
        assert predict(OperationTrace("t", pages, last)) == (0, 0)
    assert predict(OperationTrace("t", 1 << 20, (("boot_baseptr",),))) == (0,)


def test_a_number_that_is_no_integer_is_told_as_far_as_40_characters() -> None:
    for digits in (38, 39):
        with pytest.raises(InputError, match=r"here: not a JSON object: 1\.1+ is no") as error:
            TraceReader().read(b'{"pages": 1.' + b"1" * digits + b"}", "here")
        assert str(error.value).count("1") == 39


def test_refuses_long_lines_and_many_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(line() + b"\n" + line())
    monkeypatch.setattr(traces, "MAX_TRACES", 1)
    with pytest.raises(InputError, match="more than 1 lines"):
        list(read_traces(path))
    monkeypatch.setattr(traces, "MAX_LINE", 50)
    with pytest.raises(InputError, match=r"long\.jsonl:1: a line of 50 bytes or more"):
        list(read_traces(path))


def test_refuses_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read_traces(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_traces(tmp_path))
    garbage = tmp_path / "garbage.jsonl.xz"
    garbage.write_bytes(b"not xz at all")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_traces(garbage))
    cut = tmp_path / "cut.jsonl.xz"
    cut.write_bytes(lzma.compress((line() + b"\n") * 1000)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        list(read_traces(cut))


def test_known_operations_are_forgotten_with_the_number_of_pages() -> None:
    reader = TraceReader()
    reader.read(line(), "one")
    with pytest.raises(InputError, match="two: operation 0"):
        reader.read(line(pages=3), "two")


def test_an_entry_that_is_not_present_may_lie_in_another_frame() -> None:
    """Raw frames differ from run to run; everything else about such an entry is compared."""
    operations = (("mmu_update", 1, 0, 2, 0x66, False), ("read", 1, 0))
    trace = OperationTrace("raw", 4, operations)
    assert replay(RecordedTrace(trace, (0, 0x1234_5066))) is None
    assert replay(RecordedTrace(trace, (0, 0x1234_5064))) is not None
    assert replay(RecordedTrace(trace, (0, 0x1234_5067))) is not None
    empty = OperationTrace("empty", 4, (("read", 1, 0),))
    assert replay(RecordedTrace(empty, (0,))) is None
    assert replay(RecordedTrace(empty, (0x1234_5000,))) is not None  # here the model has none


def test_what_a_load_tells_of_an_entry() -> None:
    """Its page's number; 0xfff for any other frame; what is not present as a signed number."""
    guest = TraceGuest(4)
    first, last = guest.mfn(0), guest.mfn(3)
    for value, told in (
        (first << 12 | 0x67, 0x067), (last << 12 | 0x67, 0x3067),
        (first - 1 << 12 | 1, 0xFFF001), (last + 1 << 12 | 1, 0xFFF001),
        (first << 12 | 2, first << 12 | 2), (1 << 63 | 2, 2 - (1 << 63)), (0, 0),
        (1 << 63, -(1 << 63)), ((1 << 63) - 2, (1 << 63) - 2),
    ):  # fmt: skip
        assert guest.store_value(1, 7, value) == 0
        assert guest.read(1, 7) == told


def test_what_the_guest_does_not_try() -> None:
    """It would cut itself off (guest/replay.c): nothing in the last slot of its own root, and no
    root without that; of a batch one such member is enough.
    """
    guest = TraceGuest(4)
    assert guest.copy_kernel_slots(0) == guest.update_va_mapping(0, 0, 0x65) == 0
    assert guest.new_baseptr(0) == 0
    own, other = (0, 511, 0, 0, False), (1, 511, 0, 0, False)
    slot = 0xFFFF_FF80_0000_0000
    for tried in (
        guest.mmu_update(*own),
        guest.mmu_update_batch((other, own)),
        guest.mmu_update_batch((own, other)),
        guest.mmuext_batch((("tlb_flush", "all"), ("new_baseptr", 1))),
        guest.mmuext_batch((("new_baseptr", 0), ("new_baseptr", 1))),
        guest.multicall((("mmu_update", *other), ("update_va", slot, 0, 0))),
        guest.update_va(slot, 0, 0),
        guest.probe(slot, "read"),
    ):
        assert tried == REFUSED_BY_GUEST
    for tried in (
        guest.mmu_update(*other),
        guest.mmu_update_batch((other, other)),
        guest.mmuext_batch((("tlb_flush", "all"), ("new_baseptr", 0))),
        guest.update_va(slot - 4096, 0, 0),
        guest.probe(slot - 4096, "read"),
    ):
        assert tried != REFUSED_BY_GUEST


@pytest.mark.parametrize(("assists", "told"), [((), 0x2067), (("m2p_strict",), 0xFFF067)])
def test_frames_have_numbers_where_the_root_shows_xens_table(
    assists: tuple[str, ...], told: int
) -> None:
    """VMASST_TYPE_m2p_strict: a root that is user space's, too, shows no machine-to-physical."""
    guest = TraceGuest(4)
    assert [guest.assist(name, on=True) for name in assists] == [0] * len(assists)
    assert guest.store(1, 7, 2, 0x67) == 0
    assert guest.copy_kernel_slots(0) == guest.update_va_mapping(0, 0, 0x65) == 0
    assert guest.new_baseptr(0) == 0
    assert guest.read(1, 7) == 0x2067
    assert guest.new_user_baseptr(0) == 0
    assert guest.read(1, 7) == told


def test_the_guest_does_not_take_its_own_code_away() -> None:
    """The kernel's slot of the loaded root, whichever operation loaded it."""
    for load in (("new_baseptr", 2), ("mmuext_batch", (("pin", 4, 2), ("new_baseptr", 2)))):
        guest = TraceGuest(4)
        assert guest.answers((("copy_kernel_slots", 2), ("update_va_mapping", 2, 2, 0x65))) == (
            0,
            0,
        )
        assert guest.answers([load]) == (0,)
        for refused in (
            ("mmu_update", 2, 511, 0, 0, False),
            ("multicall", (("mmu_update", 2, 511, 0, 0, False),)),
            ("mmu_update_batch", ((2, 511, 0, 0, False),)),
            ("mmu_update_device", 2, 511, "vga", 0x67),
            ("multicall", (("update_va", 0xFFFF_FF80_0000_0000, 0, 0x67),)),
            ("mmuext_batch", (("new_baseptr", 1),)),
        ):
            assert guest.answers([refused]) == (-77777,)
        # Another slot, and the same one of another page, are not its own.
        for done in (("mmu_update", 2, 0, 0, 0, False), ("mmu_update", 0, 511, 0, 0, False)):
            assert guest.answers([done, ("multicall", (done,))]) == (0, 0)
        assert guest.answers([("multicall", (("update_va_mapping", 2, 2, 0x65),))]) == (0,)
        assert guest.answers([("multicall", (("unpin", 2), ("pin", 1, 511 % 4)))]) != (-77777,)


def test_a_root_that_was_not_loaded_is_a_page_like_others() -> None:
    """The batch ends before it."""
    guest = TraceGuest(4)
    assert guest.answers((("copy_kernel_slots", 2), ("update_va_mapping", 2, 2, 0x65))) == (0, 0)
    batch = ("mmuext_batch", (("unpin", 3), ("new_baseptr", 2)))
    assert guest.answers([batch]) == (-22,)
    assert guest.answers([("mmu_update", 2, 511, 0, 0, False)]) == (0,)


def test_devices_are_mapped_by_their_frames() -> None:
    guest = TraceGuest(4)
    for index, (device, frame) in enumerate(
        {"vga": 0xB8, "io_apic": 0xFEC00, "shared_info": 0xF00}.items()
    ):
        assert guest.mmu_update_device(2, index, device, 0x67) == 0
        assert guest.hypervisor.entry(guest.mfn(2), index) == frame << 12 | 0x67
        assert guest.mmu_update_device(2, index, device, 0) == 0
        assert guest.hypervisor.entry(guest.mfn(2), index) == 0


def test_what_dom0_may_do_with_devices() -> None:
    """In a table in use: write to a frame buffer, read an I/O APIC, neither with a local APIC."""
    guest = TraceGuest(4)
    assert guest.update_va_mapping(2, 2, 0x65) == guest.pin(1, 2) == 0
    for device, answer, writable in (("vga", 0, 2), ("io_apic", 0, 0), ("local_apic", -1, 0)):
        assert guest.mmu_update_device(2, 3, device, 0x67) == answer
        assert guest.hypervisor.entry(guest.mfn(2), 3) & 2 == writable


def test_what_may_not_be_probed_for_writing() -> None:
    guest = TraceGuest(4)
    va = guest.va(1)
    assert guest.store_value(1, 0, 0x1234) == 0
    assert guest.update_va_mapping(2, 2, 0x65) == 0
    # The guest's own addresses are not for probing; another mapping of the same pages is.
    assert guest.probe(va, "write") == -77777
    assert guest.probe(0, "write") == -114000


def test_a_difference_names_the_first_operation() -> None:
    recorded = TraceReader().read(line(rc=[-22, 0]), "x")
    found = replay(recorded)
    assert found is not None
    assert (found.number, found.operation, found.answer, found.predicted) == (
        1,
        ("unpin", 3),
        0,
        -22,
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["pin", "unpin", "write", "read", "multicall", "mmuext_batch", "probe"])


@given(
    ops=st.lists(st.tuples(NAMES, JSON, JSON).map(list) | JSON, max_size=4),
    answers=st.lists(st.integers() | JSON, max_size=4),
    pages=JSON | st.integers(1, 9),
)
def test_anything_is_a_trace_or_refused(ops: list[Any], answers: list[Any], pages: Any) -> None:
    text = json.dumps({"pages": pages, "ops": ops, "rc": answers}).encode()
    try:
        recorded = TraceReader().read(text, "fuzz")
    except InputError:
        return
    replay(recorded)


def test_as_much_of_a_file_as_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SECURITY.md: 16 MiB a trace, 1 GiB a file; line ends count."""
    assert (traces.MAX_LINE, traces.MAX_BYTES) == (16 << 20, 1 << 30)
    path = tmp_path / "t.jsonl"
    path.write_bytes((line() + b"\n") * 3)
    size = path.stat().st_size
    for name, enough in (("MAX_BYTES", size), ("MAX_LINE", size // 3 + 1), ("MAX_TRACES", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(traces, name, enough)
            assert len(list(read_traces(path))) == 3
            patch.setattr(traces, name, enough - 1)
            with pytest.raises(InputError, match=r"split the (file|trace)"):
                list(read_traces(path))


def test_what_a_reader_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations, of the traces since it forgot; and the words of a file that it repeats."""
    monkeypatch.setattr(traces, "MAX_KNOWN", 6)
    reader = TraceReader()
    sizes = []
    for number in range(40):
        found = reader.read(line(ops=[["pin", 1, 3], ["write", 1, number, 0, 0]]), "here")
        assert found.trace.ops == (("pin", 1, 3), ("write", 1, number, 0, 0))
        sizes.append(len(reader._known))
    # What is seen again is known; it forgets before a trace, if there is more than enough.
    assert sizes[:8] == [2, 3, 4, 5, 6, 7, 2, 3]
    assert max(sizes) == 7
    kept = reader.read(line(id="n" * 101, xen="4." + "1" * 39), "here")
    assert (kept.trace.name, kept.hypervisor) == ("n" * 100, "4." + "1" * 38)
    short = reader.read(line(id="n" * 100, xen="4." + "1" * 38), "here")
    assert (short.trace.name, short.hypervisor) == (kept.trace.name, kept.hypervisor)
    assert reader.read(json.dumps({"pages": 1, "ops": [], "rc": []}).encode(), "f:7").trace == (
        OperationTrace("f:7", 1, ())
    )


def test_answers_have_64_bits() -> None:
    for answer, good in (
        (-(1 << 63), True), ((1 << 63) - 1, True), (-(1 << 63) - 1, False), (1 << 63, False)
    ):  # fmt: skip
        text = line(rc=[0, answer])
        if good:
            assert TraceReader().read(text, "here").answers == (0, answer)
        else:
            with pytest.raises(InputError, match="numbers of 64 bits"):
                TraceReader().read(text, "here")
