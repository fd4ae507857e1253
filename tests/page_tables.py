"""Random page tables, sound and damaged, as a hypothesis strategy: for whatever walks tables."""

from __future__ import annotations

import struct

import attrs
from hypothesis import strategies as st

from paravirt_mm.image.entries import FORMATS, NX, PRESENT, PSE
from paravirt_mm.machine.paging import MODES, PAGE_SIZE, PagingMode

ROOT = PAGE_SIZE
"""Physical address of the root in every `RandomTables`: page 0 is never a table."""


@attrs.frozen
class RandomTables:
    """Some pages of memory from physical 0, page tables among them, with the root at `ROOT`."""

    mode: PagingMode
    data: bytes

    def read(self, address: int, size: int) -> bytes | None:
        """Return bytes of memory, or None where there is none."""
        return self.data[address : address + size] if address + size <= len(self.data) else None

    def addresses(self) -> list[int]:
        """Return virtual addresses near the entries that were made, not sign-extended."""
        mode, width = self.mode, self.mode.entry_bytes
        root = self.data[ROOT : ROOT + PAGE_SIZE]
        found = [
            n * mode.entry_span(mode.root_level)
            for n in range(mode.entries(mode.root_level))
            if any(root[n * width : (n + 1) * width])
        ]
        for level in range(mode.root_level - 1, 0, -1):
            span = mode.entry_span(level)
            indexes = (0, 1, 2, mode.entries(level) - 1)
            found = [base + n * span for base in found for n in indexes]
        return found


@st.composite
def page_tables(draw: st.DrawFn, damage: bool = True) -> RandomTables:
    """Draw a tree of a few tables a level; the first entry of the root is never used.

    With ``damage`` some entries are junk: reserved bits, tables that are not in memory, loops.
    """
    mode = MODES[draw(st.sampled_from(sorted(MODES)))]
    entry_format = FORMATS[mode.name]
    per_level = draw(st.integers(1, 3))
    first = {
        level: 1 + (mode.root_level - level) * per_level for level in range(mode.root_level, 0, -1)
    }
    pages = 1 + mode.root_level * per_level
    data = bytearray(pages * PAGE_SIZE)
    bits = mode.physical_bits if mode.entry_bytes == 4 else 40
    for level, start in first.items():
        root = level == mode.root_level
        for table in range(start, start + (1 if root else per_level)):
            last = mode.entries(level) - 1
            slots = st.sampled_from([1, 2, last] if root else [0, 1, 2, last])
            for index in draw(st.sets(slots, min_size=1)):
                entry = 0
                if level > 1 and draw(st.integers(0, 3)):
                    child = first[level - 1] + draw(st.integers(0, per_level - 1))
                    entry = child * PAGE_SIZE | draw(
                        st.sampled_from([0x67, 0x67, 0x63, 0x61, 0x65])
                    )
                elif level == 1 or level in mode.large_levels:
                    frame = draw(st.integers(0, (1 << bits) - 1)) & entry_format.leaf_address_field(
                        level
                    )
                    entry = (
                        frame | draw(st.sampled_from([0x63, 0x61, 0x163, 0x67])) | PSE * (level > 1)
                    )
                if mode.entry_bytes == 8 and entry_format.permissions[level]:
                    entry |= draw(st.sampled_from([0, 0, NX, 1 << 58 if not mode.is_32bit else 0]))
                if not entry_format.permissions[level] and level > 1:
                    entry = entry & ~0xFFF & (1 << 52) - 1 | bool(entry) * PRESENT
                elif damage and not draw(st.integers(0, 5)):
                    entry ^= 1 << draw(st.integers(0, mode.entry_bytes * 8 - 1))
                layout = "<I" if mode.entry_bytes == 4 else "<Q"
                struct.pack_into(layout, data, table * PAGE_SIZE + index * mode.entry_bytes, entry)
    return RandomTables(mode, bytes(data))
