"""Watching a kernel by stopping it: a breakpoint at each function, for kernels that cannot be
given probes.

Each stop costs QEMU all code that it has translated, some 2 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paravirt_mm.verify.linux.qemu.code import CALL, ENDBR64, JUMP, NOP5, WATCHED, hook_of
from paravirt_mm.verify.linux.qemu.errors import KernelBootError
from paravirt_mm.verify.linux.qemu.events import Event, EventKind
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory

MAX_STOPS = 2_000_000


class Stops:
    """Runs the machine from breakpoint to breakpoint."""

    def __init__(self, gdb: GdbClient, memory: KernelMemory) -> None:
        self.gdb = gdb
        self.memory = memory
        address = memory.address_of
        self._watched = {address(name): kind for kind, name in WATCHED.items()}
        self._watched[hook_of(memory)] = EventKind.HOOK
        self._split = address(WATCHED[EventKind.RANGE])
        # Functions that the kernel never enters again: addresses to come back to instead of the
        # caller's.
        self._page_given = address("x86_64_start_kernel")
        self._range_done = address("start_kernel")
        self._page_caller: int
        self._range_caller: int
        self._fentry = memory.symbols.get("__fentry__")

    def run(self, ends: frozenset[int], event: Callable[[Event], None]) -> Mapping[str, int]:
        """Run to one of the addresses ``ends``, where breakpoints are; return the registers."""
        for address in (*self._watched, self._page_given, self._range_done):
            self.gdb.insert_breakpoint(address)
        for _ in range(MAX_STOPS):
            self.gdb.resume()
            registers = self.gdb.registers()
            rip = registers["rip"]
            if rip in ends:
                return registers
            if rip == self._range_done:
                self.gdb.insert_breakpoint(self._split)
                self.gdb.write_register("rip", self._range_caller)
            elif rip == self._page_given:
                self.gdb.write_register("rip", self._page_caller)
                event(Event(EventKind.GIVEN, registers["rax"]))
            elif rip in self._watched:
                kind = self._watched[rip]
                event(Event(kind, registers["rdi"], registers["rsi"], registers["rdx"]))
                self._go_on(kind, registers)
            else:
                raise KernelBootError(f"stopped at {rip:#x}, where no breakpoint is")
        raise KernelBootError(f"init_mem_mapping did not end after {MAX_STOPS} events")

    def _go_on(self, kind: EventKind, registers: Mapping[str, int]) -> None:
        """Leave the breakpoint at the beginning of a function.

        QEMU is slow in a page with a breakpoint, and it is the page of the function that maps a
        range whose loops fill the tables: there is none in it until the range is done.
        """
        if kind is EventKind.RANGE:
            self._range_caller = self._come_back(registers, self._range_done)
            self.gdb.remove_breakpoint(self._split)
            return
        if kind is EventKind.ASKED:
            self._page_caller = self._come_back(registers, self._page_given)
        self._step_over(registers["rip"])

    def _step_over(self, rip: int) -> None:
        """One instruction on: resumed at the breakpoint itself, QEMU would stop there again.

        Each time it runs QEMU forgets all code that it has translated, so the instructions that
        functions begin with, which do nothing or jump, are not left to it.
        """
        code = self.memory.code(rip, 5)
        target = rip + 5 + int.from_bytes(code[1:], "little", signed=True)
        if code.startswith(ENDBR64):
            self.gdb.write_register("rip", rip + len(ENDBR64))
        elif code == NOP5 or (code[0] == CALL and target == self._fentry):
            self.gdb.write_register("rip", rip + len(code))
        elif code[0] == JUMP:
            self.gdb.write_register("rip", target)
        else:
            self.gdb.remove_breakpoint(rip)
            self.gdb.step()
            self.gdb.insert_breakpoint(rip)

    def _come_back(self, registers: Mapping[str, int], to: int) -> int:
        """Let the function that begins here return to ``to``; return its caller's address."""
        caller = self.memory.number_at(registers["rsp"])
        self.memory.put_number(registers["rsp"], to)
        return caller
