"""The protocol between the host and the guest: both sides say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import paravirt_mm_xen.live.wire as wire
from paravirt_mm_xen.live import OperationTrace, XenBootError
from paravirt_mm_xen.live.build import GUEST_SOURCES
from paravirt_mm_xen.traces.format import MAX_BATCH, REFUSED_BY_GUEST, SHAPES

HEADER = (GUEST_SOURCES / "wire.h").read_text()


def c_number(name: str) -> int:
    found = re.search(rf"#define {name}\s+\(?(-?0x[0-9a-f]+|-?\d+)", HEADER)
    assert found, name
    return int(found[1], 0)


def test_codes_are_those_of_the_guest() -> None:
    c_codes = {
        name.lower(): int(number) for name, number in re.findall(r"WIRE_(\w+) = (\d+),", HEADER)
    }
    assert c_codes.pop("probe_read") == wire.CODES["probe"]
    assert c_codes.pop("probe_write") == wire.CODES["probe"] + 1
    assert c_codes == {name: code for name, code in wire.CODES.items() if name != "probe"}
    assert set(wire.CODES) == set(SHAPES)


def test_constants_are_those_of_the_guest() -> None:
    assert c_number("WIRE_MAGIC") == wire.MAGIC
    assert c_number("WIRE_NO_PAGE") == wire.NO_PAGE
    assert c_number("WIRE_BATCH_MAX") == MAX_BATCH
    assert c_number("ANSWER_REFUSED") == REFUSED_BY_GUEST
    assert wire.RECORD.size == 32


def test_letters_are_those_of_the_guest() -> None:
    main = (GUEST_SOURCES / "main.c").read_text()
    letters = dict(re.findall(r"case (.+?):\s+return console_char\('(.)'\)", main))
    meaning = {
        "0": 0,
        "-XEN_EPERM": -1,
        "-XEN_EBUSY": -16,
        "-XEN_EINVAL": -22,
        "-XEN_ENOSYS": -38,
        "ANSWER_FAULT(14, 3)": -114003,
        "ANSWER_REFUSED": -77777,
    }
    assert {letter: meaning[case] for case, letter in letters.items()} == wire._LETTERS


def test_packing_puts_each_field_in_its_place() -> None:
    batch = ("mmu_update_batch", ((1, 2, 3, 0x65, True), (4, 5, 6, 0, False)))
    trace = OperationTrace("t", 9, (("pin", 3, 7), ("probe", 1 << 47, "write"), batch))
    packed = wire.pack([trace])
    assert wire.HEADER.unpack_from(packed) == (wire.MAGIC, 1, 0)
    assert wire.TRACE.unpack_from(packed, wire.HEADER.size) == (9, 5)
    start = wire.HEADER.size + wire.TRACE.size
    assert list(wire.RECORD.iter_unpack(packed[start:])) == [
        (1, 3, 0, 7, 0, 0, 0, 0),
        (15, 0, 0, 0, 0, 0, 0, 1 << 47),
        (20, 0, 0, 0, 0, 2, 0, 0),
        (4, 1, 2, 1, 3, 0, 0x65, 0),
        (4, 0, 5, 4, 6, 0, 0, 0),
    ]


def test_words_are_packed_as_numbers() -> None:
    """Of the public header; the page that Xen shares is all ones."""
    operations = (
        ("assist", "m2p_strict", True), ("tlb_flush", "all"), ("copy_page", 1, 2),
        ("mmu_update_device", 1, 2, "shared_info", 0x67), ("read", 3, 300),
        ("mmu_update_device", 1, 2, "io_apic", 0), ("multicall", (("unpin", 3),)),
    )  # fmt: skip
    packed = wire.pack([OperationTrace("t", 9, operations)])
    assert list(wire.RECORD.iter_unpack(packed[wire.HEADER.size + wire.TRACE.size :])) == [
        (24, 1, 32, 0, 0, 0, 0, 0),
        (17, 10, 0, 0, 0, 0, 0, 0),
        (19, 0, 0, 1, 2, 0, 0, 0),
        (23, 0, 2, 1, 0, 0, 0x67, (1 << 64) - 1),
        (10, 0, 300, 3, 0, 0, 0, 0),
        (23, 0, 2, 1, 0, 0, 0, 0xFEC00),
        (22, 0, 0, 0, 0, 1, 0, 0),
        (2, 0, 0, 3, 0, 0, 0, 0),
    ]


def test_no_page_is_distinct_from_page_zero() -> None:
    packed = wire.pack(
        [OperationTrace("t", 1, (("new_user_baseptr", None), ("new_user_baseptr", 0)))]
    )
    records = wire.RECORD.iter_unpack(packed[wire.HEADER.size + wire.TRACE.size :])
    assert [record[3] for record in records] == [wire.NO_PAGE, 0]


TRACES = (OperationTrace("a", 1, (("unpin", 0),) * 4), OperationTrace("b", 1, (("unpin", 0),) * 2))


def test_answers_are_read_around_the_hypervisors_own_lines() -> None:
    console = (
        "(XEN) Xen version 4.17.7\r\n@guest xen=4.17.7 pages=9\r\n"
        "#0 .i(XEN) something split the line\r\n-114000;b\r\n(XEN) and more\r\n"
        "#1 1052775;w\r\n@end\r\n(XEN) Hardware Dom0 shutdown: rebooting machine"
    )
    answers = wire.parse_answers(wire.guest_text(console), TRACES)
    assert answers == [(0, -22, -114000, -16), (1052775, -114003)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#0 ....\n", "answered 1 of 2 traces"),
        ("#0 ...\n#1 ..\n", "trace a: 3 answers for 4 operations"),
        ("#0 .....\n#1 ..\n", "trace a: 5 answers"),
        ("#0 ....\n#1 .\n", "trace b: 1 answers for 2 operations"),
        ("#0 ....\n#2 ..\n", "answered trace 2, expected 1"),
        ("#0 ....\n#1 ..\n#2 .\n", "answered trace 2, expected 2"),
        ("#0 ..?.\n#1 ..\n", "no answer: '?.'"),
        ("#0 ...1\n#1 ..\n", "no answer: '1'"),
    ],
)
def test_a_wrong_conversation_is_an_error(text: str, says: str) -> None:
    with pytest.raises(XenBootError, match=re.escape(says)):
        wire.parse_answers(text, TRACES)


def test_the_guest_has_one_source_directory_with_a_linker_script() -> None:
    names = {path.name for path in Path(GUEST_SOURCES).iterdir()}
    assert {"boot.S", "fault.S", "main.c", "guest.ld", "wire.h"} <= names


def test_what_is_no_answer_is_quoted_in_part() -> None:
    with pytest.raises(XenBootError) as raised:
        wire.parse_answers(f"#0 .{'z' * 90}\n", [OperationTrace("t", 1, (("unpin", 0),) * 2)])
    assert str(raised.value).startswith(f"the guest printed no answer: {'z' * 40!r}")
