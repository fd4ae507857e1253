"""Watching a kernel without stopping it: code of ours in the guest notes what happens.

When the kernel has reached ``init_mem_mapping``, the first instructions of the functions that are
watched are moved away and replaced by a jump to code that writes the arguments into a list; the
empty paravirt hooks are led there by their pointers. Code and list lie in memory that the kernel's
image covers and nothing uses: between the end of one section and the next, which starts at a large
page so that it can have rights of its own. All of it is mapped by then, executable, in large pages
(``arch/x86/kernel/head_64.S``, level2_kernel_pgt).

When the list is full the machine stops, once in 6,500 events, and it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

import attrs

from paravirt_mm.machine.paging import PAGE_SIZE
from paravirt_mm.machine.ranges import align_up
from paravirt_mm.verify.linux.qemu.code import CALL, JUMP, WATCHED, hook_of, jump, moved
from paravirt_mm.verify.linux.qemu.errors import KernelBootError
from paravirt_mm.verify.linux.qemu.events import Event, EventKind
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory

_GAPS = (("__end_rodata", "_sdata"), ("_etext", "__start_rodata"))
"""Symbols between which the image has nothing, if there is room at all."""
_FILLERS = (b"\0", b"\xcc")
_SMALLEST = 4 * PAGE_SIZE
_LARGEST = 65 * PAGE_SIZE
_EVENT = struct.Struct("<5Q")  # kind, rdi, rsi, rdx, rax
_NEXT, _LIMIT, _CALLER, _CODE = 0, 8, 16, 64
"""Offsets: where the next event goes, where none goes any more, who called alloc_low_pages, code"""
_FUNCTION_START = 32
_HOOKS_SIZE = 1024
"""Bytes of ``pv_ops`` that are looked at: there are some 50 to 90 pointers in it."""
_RETURN = b"\xc3"
_MAX_ROUNDS = 1000


@attrs.frozen
class _Place:
    """Where code and list stand: virtual addresses."""

    start: int
    end: int

    @property
    def events(self) -> int:
        """Where the list begins."""
        return self.start + PAGE_SIZE

    @property
    def limit(self) -> int:
        """Where the list is full."""
        return self.events + (self.end - self.events) // _EVENT.size * _EVENT.size


class Probes:
    """Notes events inside the guest. Made while it stands at ``init_mem_mapping``."""

    def __init__(self, gdb: GdbClient, memory: KernelMemory, place: _Place) -> None:
        self._gdb = gdb
        self._memory = memory
        self._place = place
        self._full: int
        self._used = 0
        self._before: list[tuple[int, bytes]] = []

    @classmethod
    def put(cls, gdb: GdbClient, memory: KernelMemory) -> Probes | None:
        """Write the probes into the guest; None where its code has no room or is not understood."""
        places = [_gap(memory, *names) for names in _GAPS]
        place = max(places, key=lambda place: place.end - place.start)
        if place.end - place.start < _SMALLEST:
            return None
        probes = cls(gdb, memory, place)
        return probes if probes._write() else None

    def run(self, ends: frozenset[int], event: Callable[[Event], None]) -> Mapping[str, int]:
        """Run to one of the addresses ``ends``, where breakpoints are; return the registers."""
        self._gdb.insert_breakpoint(self._full)
        for _ in range(_MAX_ROUNDS):
            self._gdb.resume()
            registers = self._gdb.registers()
            for one in self._events():
                event(one)
            if registers["rip"] in ends:
                self._take_away()
                return registers
            if registers["rip"] != self._full:
                raise KernelBootError(f"stopped at {registers['rip']:#x}, where no breakpoint is")
            self._memory.put_number(self._place.start + _NEXT, self._place.events)
            self._gdb.write_register("rip", self._full + 1)  # a byte that does nothing
        raise KernelBootError("init_mem_mapping did not end")

    def _take_away(self) -> None:
        """Leave the guest's memory as the kernel made it."""
        filler = self._memory.code(self._place.end - 1, 1)
        self._memory.put(self._place.events, filler * self._used)
        for address, data in self._before:
            self._memory.put(address, data)

    def _events(self) -> Iterator[Event]:
        """Read the list."""
        place = self._place
        end = self._memory.number_at(place.start + _NEXT)
        if not place.events <= end <= place.limit:
            raise KernelBootError(f"the probes' list ends at {end:#x}, outside of its place")
        self._used = max(self._used, end - place.events)
        for kind, rdi, rsi, rdx, rax in _EVENT.iter_unpack(
            self._memory.code(place.events, end - place.events)
        ):
            yield Event(EventKind(kind), rax if kind == EventKind.GIVEN else rdi, rsi, rdx)

    def _write(self) -> bool:
        memory, place = self._memory, self._place
        code = _Code(place.start)
        note = code.here
        self._full = code.note()
        given = code.given(note)
        patches: list[tuple[int, bytes]] = []
        fentry = memory.symbols.get("__fentry__")
        for kind, name in WATCHED.items():
            function, probe = memory.address_of(name), code.here
            code.probe(kind, note)
            if kind is EventKind.ASKED:
                code.come_back(given)
            room = moved(memory.code(function, _FUNCTION_START), function, code.here, fentry)
            if room is None:
                return False
            offset, goes_on, kept = room
            code.put(kept)
            code.jump(function + goes_on)
            patches.append((function + offset, jump(function + offset, probe)))
        hooks = self._hooks()
        if not hooks:
            return False
        patches += [(slot, code.here.to_bytes(8, "little")) for slot in hooks]
        code.probe(EventKind.HOOK, note)
        code.put(_RETURN)
        variables = struct.pack("<2Q", place.events, place.limit).ljust(_CODE, b"\0")
        patches.append((place.start, variables + bytes(code.data)))
        for address, data in patches:
            self._before.append((address, memory.code(address, len(data))))
            memory.put(address, data)
        return True

    def _hooks(self) -> list[int]:
        """Return where the pointers to the empty hook stand."""
        symbols = self._memory.symbols
        table = symbols.get("pv_ops", symbols.get("pv_mmu_ops"))
        if table is None:
            return []
        hook = hook_of(self._memory)
        data = self._memory.code(table, _HOOKS_SIZE)
        return [
            table + 8 * n for n, (to,) in enumerate(struct.iter_unpack("<Q", data)) if to == hook
        ]


class _Code:
    """Machine code, growing from `_CODE` behind the beginning of a `_Place`."""

    def __init__(self, start: int) -> None:
        self._start = start
        self.data = bytearray()

    @property
    def here(self) -> int:
        """The address of what comes next."""
        return self._start + _CODE + len(self.data)

    def put(self, code: bytes) -> None:
        """Append instructions that do the same everywhere."""
        self.data += code

    def jump(self, target: int, opcode: int = JUMP) -> None:
        """Append a jump, or a call."""
        self.put(jump(self.here, target, opcode))

    def variable(self, instruction: bytes, offset: int) -> None:
        """Append an instruction that ends with the address of a variable, relative to its end."""
        end = self.here + len(instruction) + 4
        self.put(instruction + (self._start + offset - end).to_bytes(4, "little", signed=True))

    def note(self) -> int:
        """Append the routine that adds an event; registers and flags stay as they are.

        Returns the address that is reached when the list is full: one byte that does nothing.
        """
        self.put(b"\x9c\x50\x51")  # pushf; push rax; push rcx
        self.variable(b"\x48\x8b\x05", _NEXT)  # mov rax, next
        self.put(b"\x48\x8b\x4c\x24\x20\x48\x89\x08")  # the kind, which the probe has pushed
        self.put(b"\x48\x89\x78\x08\x48\x89\x70\x10\x48\x89\x50\x18")  # rdi, rsi, rdx
        self.put(b"\x48\x8b\x4c\x24\x08\x48\x89\x48\x20")  # rax as it was
        self.put(b"\x48\x83\xc0" + bytes([_EVENT.size]))  # add rax, size
        self.variable(b"\x48\x89\x05", _NEXT)  # mov next, rax
        self.variable(b"\x48\x3b\x05", _LIMIT)  # cmp rax, limit
        self.put(b"\x72\x01")  # jb behind the next byte
        full = self.here
        self.put(b"\x90\x59\x58\x9d\xc3")  # nop; pop rcx; pop rax; popf; ret
        return full

    def probe(self, kind: EventKind, note: int) -> None:
        """Append the call that adds an event of a kind."""
        self.put(bytes([0x6A, kind]))  # push kind
        self.jump(note, CALL)
        self.put(b"\x48\x8d\x64\x24\x08")  # lea rsp, [rsp + 8]: flags stay

    def given(self, note: int) -> int:
        """Append what a function returns to: it notes the value and goes on at the caller."""
        given = self.here
        self.variable(b"\xff\x35", _CALLER)  # push caller
        self.probe(EventKind.GIVEN, note)
        self.put(_RETURN)
        return given

    def come_back(self, given: int) -> None:
        """Append what makes the function that begins here return to ``given``."""
        self.put(b"\x50\x48\x8b\x44\x24\x08")  # push rax; mov rax, [rsp + 8]
        self.variable(b"\x48\x89\x05", _CALLER)  # mov caller, rax
        self.variable(b"\x48\x8d\x05", given - self._start)  # lea rax, given
        self.put(b"\x48\x89\x44\x24\x08\x58")  # mov [rsp + 8], rax; pop rax


def _gap(memory: KernelMemory, first: str, second: str) -> _Place:
    """Return the whole pages at the end of what lies between two symbols that hold nothing."""
    start, end = (memory.symbols.get(name, 0) for name in (first, second))
    end -= end % PAGE_SIZE
    start = max(align_up(start, PAGE_SIZE), end - _LARGEST)
    if start >= end:
        return _Place(end, end)
    data = memory.code(start, end - start)
    used = min(len(data.rstrip(filler)) for filler in _FILLERS)
    return _Place(align_up(start + used, PAGE_SIZE), end)
