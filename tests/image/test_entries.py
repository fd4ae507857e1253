"""The numbers of entries, against what Linux kernels of this world have in memory."""

from __future__ import annotations

import pytest

from paravirt_mm.image.entries import FORMATS, NX, PAT, PAT_LARGE, PSE
from paravirt_mm.image.walker import Cpu, reserved_bits


@pytest.mark.parametrize(
    ("mode", "level", "nx", "global_pages", "flags"),
    [
        # What dumps of Linux 6.12 show: 8000000000000163 and 80000000000001e3.
        ("x86_64", 1, True, True, 0x8000_0000_0000_0163),
        ("x86_64", 2, True, True, 0x8000_0000_0000_01E3),
        ("x86_64-la57", 3, True, True, 0x8000_0000_0000_01E3),
        ("x86_64", 1, False, True, 0x163),
        ("x86_64", 1, True, False, 0x8000_0000_0000_0063),
        ("i386-pae", 2, True, True, 0x8000_0000_0000_01E3),
        # No NX in 4 bytes, whatever the CPU can do.
        ("i386", 2, True, True, 0x1E3),
        ("i386", 1, True, True, 0x163),
    ],
)
def test_leaf_flags(mode: str, level: int, nx: bool, global_pages: bool, flags: int) -> None:
    assert FORMATS[mode].leaf_flags(level, nx, global_pages) == flags


def test_table_flags() -> None:
    assert FORMATS["x86_64"].table[1:] == (0, 0x67, 0x67, 0x67)
    # The four entries of a PAE root have neither RW nor USER: these bits are reserved there.
    assert FORMATS["i386-pae"].table[3] == 0x01


def test_pat_moves_in_large_pages() -> None:
    assert PAT == PSE == 1 << 7
    assert PAT_LARGE == 1 << 12
    for mode in ("x86_64", "i386-pae"):
        _, leaf = reserved_bits(FORMATS[mode], 2, Cpu())
        assert not leaf & PAT_LARGE
        assert leaf & 1 << 13


@pytest.mark.parametrize(
    ("mode", "level", "cpu", "bit", "table", "leaf"),
    [
        ("x86_64", 1, Cpu(physical_bits=46), 45, False, False),
        ("x86_64", 1, Cpu(physical_bits=46), 46, True, True),
        ("x86_64", 1, Cpu(physical_bits=46), 52, False, False),
        ("x86_64", 1, Cpu(nx=False), 63, True, True),
        ("x86_64", 4, Cpu(), 7, True, True),
        ("x86_64-la57", 5, Cpu(), 7, True, True),
        ("x86_64", 3, Cpu(gbpages=False), 7, False, True),
        ("x86_64", 3, Cpu(), 29, False, True),
        ("i386-pae", 1, Cpu(physical_bits=36), 36, True, True),
        ("i386-pae", 1, Cpu(physical_bits=52), 52, True, True),
        ("i386-pae", 3, Cpu(), 1, True, True),
        ("i386", 2, Cpu(physical_bits=32), 13, False, True),
        ("i386", 2, Cpu(physical_bits=36), 16, False, False),
        ("i386", 2, Cpu(physical_bits=36), 17, False, True),
        ("i386", 2, Cpu(), 21, False, True),
    ],
)
def test_reserved_bits(mode: str, level: int, cpu: Cpu, bit: int, table: bool, leaf: bool) -> None:
    in_table, in_leaf = reserved_bits(FORMATS[mode], level, cpu)
    assert bool(in_table >> bit & 1) is table
    assert bool(in_leaf >> bit & 1) is leaf


def test_address_and_flags_do_not_meet() -> None:
    for entry_format in FORMATS.values():
        for level in (1, *entry_format.mode.large_levels):
            flags = entry_format.leaf_flags(level)
            assert not flags & entry_format.leaf_address_field(level)
            assert not flags & reserved_bits(entry_format, level, Cpu())[1]
        assert not entry_format.address_field & NX
