"""The way past a watched word, run on an emulated processor: what the kernel's own code does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paravirt_mm_xen.dom0.detour import detour

TEXT, PAGE = 0x8100_0000, 0x1000
GAP = (TEXT + 0x1123, TEXT + 4 * PAGE)
STACK = TEXT + 0x10_0000
CALLING = bytes.fromhex("5141530f05415b59c3")  # push rcx, push r11, syscall; pops; ret
SYSCALL = b"\x0f\x05"
NUMBERS = (1, 13, 14, 26)


REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "eflags"),
)


def stub(number: int) -> bytes:
    """What Xen writes into the hypercall page."""
    return bytes.fromhex("514153b8") + number.to_bytes(4, "little") + bytes.fromhex("0f05415b59c3")


def memory(filler: bytes = b"\0") -> bytearray:
    return bytearray(CALLING.ljust(0x200, b"\xcc") + filler * (4 * PAGE - 0x200))


def reader(data: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda address, size: bytes(data[address - TEXT :][:size])


def until_syscall(code: bytes, start: int) -> tuple[dict[str, int], bytes, list[int]]:
    """Registers, the stack, and where words of code's memory are written, up to the syscall."""
    unicorn = pytest.importorskip("unicorn", reason="needs the extra 'cpu'")
    x86 = unicorn.x86_const
    numbers = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in REGISTERS}
    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    cpu.mem_map(TEXT, len(code))
    cpu.mem_write(TEXT, code)
    cpu.mem_map(STACK - PAGE, PAGE)
    for value, (name, number) in enumerate(numbers.items()):
        if name not in ("rsp", "eflags"):
            cpu.reg_write(number, 0x1111_2222_3333_0000 + value)
    cpu.reg_write(numbers["rsp"], STACK - 0x80)
    written: list[int] = []

    def note(_cpu: Any, _kind: int, address: int, size: int, *_: Any) -> None:
        if address < STACK - PAGE:
            written.append(address)
            assert size == 8

    cpu.hook_add(unicorn.UC_HOOK_MEM_WRITE, note)
    end: list[int] = []

    def stop(cpu: Any, address: int, *_: Any) -> None:
        if code[address - TEXT :].startswith(SYSCALL):
            end.append(address)
            cpu.emu_stop()

    cpu.hook_add(unicorn.UC_HOOK_CODE, stop)
    cpu.emu_start(start, 0, count=20)
    assert len(end) == 1
    registers = {name: cpu.reg_read(number) for name, number in numbers.items()}
    return registers, bytes(cpu.mem_read(STACK - PAGE, PAGE)), written


@pytest.mark.parametrize("filler", [b"\0", b"\xcc"])
@pytest.mark.parametrize("paged", [False, True], ids=["one function", "hypercall page"])
def test_the_way_does_what_stood_there_and_writes_the_word(filler: bytes, paged: bool) -> None:
    data = memory(filler)
    entries: dict[int, int | None] = {TEXT: None}
    if paged:
        entries = {TEXT + 32 * number + 3: number for number in NUMBERS}
        for number in NUMBERS:
            data[32 * number : 32 * number + 14] = stub(number)
    before = bytes(data)
    way = detour(entries, GAP, reader(data))
    assert way is not None
    for address, code in way.patches:
        data[address - TEXT : address - TEXT + len(code)] = code
    assert len(way.stops) == len(entries)
    for entry, number in entries.items():
        start = entry - (3 if paged else 0)
        registers, stack, written = until_syscall(before, start)
        assert until_syscall(bytes(data), start) == (registers, stack, [way.watched])
        assert written == []
        if number is not None:
            assert registers["rax"] == number
    # Behind the store, with the number in rax, the machine stands at one of the stops.
    for stop in way.stops:
        assert data[stop - TEXT - 7 : stop - TEXT - 4] == bytes.fromhex("488905")
    # The word has a page without code.
    assert {address // PAGE for address, _ in way.patches}.isdisjoint({way.watched // PAGE})


@pytest.mark.parametrize(
    ("change", "entries", "gap"),
    [
        ({}, {TEXT: None}, (TEXT + 2 * PAGE + 1, TEXT + 4 * PAGE)),
        ({}, {TEXT: None}, (TEXT + PAGE, TEXT + 4 * PAGE - 8)),
        ({}, {TEXT: None}, (0, 0)),
        ({2 * PAGE: 1}, {TEXT: None}, GAP),
        ({4 * PAGE - 1: 1}, {TEXT: None}, GAP),
        ({3: 0x90}, {TEXT: None}, GAP),
        ({}, {TEXT: None, TEXT + 0x40: 14}, GAP),
    ],
    ids=["small", "no whole page", "none", "used", "used to the end", "other code", "other stub"],
)
def test_where_there_is_no_way(
    change: dict[int, int], entries: dict[int, int | None], gap: tuple[int, int]
) -> None:
    data = memory()
    assert detour({TEXT: None}, (TEXT + 2 * PAGE, TEXT + 4 * PAGE), reader(data)) is not None
    for offset, value in change.items():
        data[offset] = value
    assert detour(entries, gap, reader(data)) is None
