"""Booting a real kernel as PV dom0 under real Xen in QEMU, stopped at every hypercall.

The kernel's image is booted as it is (unpacked: older hypervisors do not know newer compressions).
Breakpoints of QEMU's gdb stub lie on the one function that all PV hypercalls go through
(``xen_hypercall_pv``, since the hypercall page went in December 2024, XSA-466), or in older kernels
on the stubs of the hypercall page; on ``init_mem_mapping`` and where it returns to, on
``init_memory_mapping`` and ``panic``. What a call carries is read from the guest's memory, machine
frames are translated by Xen's machine-to-physical table. There are about 4,000 stops, 100,000 where
leaf entries go through Xen too. At the first hypercall the breakpoints give way to a watched word
(:mod:`.detour`), which costs a fifth; where the kernel's code is not as known they stay, and since
QEMU forgets all translated code when it executes one instruction by itself, too, the instructions
that lie under them are carried out here.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import attrs

from paravirt_mm import MIB, PAGE_SIZE, GdbClient, GdbError, Kernel, printable
from paravirt_mm_xen.dom0.detour import GAP, MOV_EAX, detour
from paravirt_mm_xen.dom0.host import Host, plain_host
from paravirt_mm_xen.dom0.recording import (
    COMMANDS,
    FLUSHES,
    Dom0Recording,
    Kind,
    MappedRange,
    Request,
)
from paravirt_mm_xen.live.build import unpack_hypervisor
from paravirt_mm_xen.live.errors import MissingPieceError, XenBootError
from paravirt_mm_xen.live.pieces import Pieces
from paravirt_mm_xen.live.qemu import die_with_parent

SECONDS = 300.0
"""Time limit of one recording, and of each answer of QEMU's."""

MAX_STOPS = 500_000
MAX_REQUESTS = 1024
"""Requests of one hypercall that are read."""

_MMU_UPDATE, _MULTICALL, _UPDATE_VA_MAPPING, _MMUEXT_OP = 1, 13, 14, 26
"""Numbers of hypercalls (public ``xen.h``), registers in the order rdi, rsi, rdx."""
_STUB, _STUB_MOV = 32, 3
"""Bytes of a stub in the hypercall page, and where in it, behind two pushes, the number is moved to
eax (hypercall_page_initialise_ring3_kernel of Xen)."""
_MULTICALL_ENTRY = struct.Struct("<QQ6Q")
_MMU_UPDATE_REQUEST = struct.Struct("<QQ")
_MMUEXT_REQUEST = struct.Struct("<I4xQQ")
_M2P = 0xFFFF_8000_0000_0000
"""Where a 64-bit guest sees the machine-to-physical table (public ``xen-x86_64.h``)."""
_M2P_CHUNK = 128
_FRAMES = (1 << 40) - 1
_VERSION = re.compile(r"\(XEN\) Xen version (\S+)")
_XEN_PANIC = re.compile(r"Panic on CPU \d+:\n\(XEN\) (.+)")
_ROOT_SLOTS = (*range(256), *range(272, 512))  # of an L4, without Xen's own
_ROOT_SHIFT = 39
_DIRECT_MAP = 0xFFFF_8880_0000_0000
"""Where the direct map begins if nothing in the kernel says otherwise (4.20 and later)."""
_PSE = 1 << 7


def record(
    image: Path,
    pieces: Pieces,
    host: Host | None = None,
    *,
    parameters: str = "",
    seconds: float = SECONDS,
) -> Dom0Recording:
    """Boot ``image`` as dom0 on ``host``, and write down its hypercalls until ``init_mem_mapping``
    returns, or the kernel panics in it. ``parameters`` are more words for its command line.

    Raises `paravirt_mm.ParavirtMmError` for an image that cannot be read, `MissingPieceError` for
    a kernel that cannot be a PV dom0, and `XenBootError` for a boot that does not get there.
    """
    host = host or plain_host()
    kernel = Kernel.load(image)
    entries = _entries(kernel)
    with ExitStack() as stack:
        files = tempfile.TemporaryDirectory(prefix="paravirt-mm-dom0-")
        directory = Path(stack.enter_context(files))
        (directory / "vmlinux").write_bytes(kernel.unpacked())
        xen = unpack_hypervisor(pieces, directory)
        machine = stack.enter_context(
            _Machine(pieces.qemu, xen, directory, host, seconds, parameters)
        )
        (start,) = struct.unpack_from("<I", xen.read_bytes(), _ELF32_ENTRY)
        files.cleanup()  # QEMU has read them: whoever is killed from now on leaves nothing
        try:
            if host.e820:
                give_map(machine.gdb, start, host)
            recorder = _Recorder(machine.gdb, entries, kernel.symbols)
            recorder.run()
        except GdbError as error:
            raise XenBootError(f"{kernel.release}: {machine.why(error)}", machine.tail()) from None
        log = machine.console()
    version = _VERSION.search(log)
    bss_end = kernel.symbols["__bss_stop"] - _KERNEL_MAP
    return Dom0Recording(
        kernel=kernel.version,
        xen=version[1] if version else "",
        host_mib=host.mib,
        dom0_mib=host.pages * PAGE_SIZE // MIB,
        image=(kernel.physical_range[0], bss_end, *recorder.brk, kernel.physical_range[1]),
        log=tuple(printable(line) for line in log.splitlines()),
        calls=tuple(recorder.calls()),
        begin=recorder.begin,
        mappings=tuple(recorder.mappings),
        tables=tuple(recorder.tables()),
        panic=recorder.panic,
        e820=host.e820,
        pages=host.pages,
    )


def give_map(gdb: GdbClient, entry: int, host: Host) -> None:
    """Exchange the memory map that the boot loader gives to Xen, before Xen begins at ``entry``."""
    gdb.insert_breakpoint(entry)
    gdb.resume()
    gdb.remove_breakpoint(entry)
    information = gdb.read_register("rbx") & 0xFFFF_FFFF
    entries = b"".join(
        _MULTIBOOT_ENTRY.pack(_MULTIBOOT_ENTRY.size - 4, start, end - start, kind)
        for start, end, kind in host.e820
    )
    for offset in range(0, len(entries), _PACKET):
        part = entries[offset : offset + _PACKET]
        _write(gdb, _MAP_PLACE + offset, part)
    where = struct.pack("<II", len(entries), _MAP_PLACE)
    _write(gdb, information + _MULTIBOOT_MAP, where)


def _write(gdb: GdbClient, address: int, data: bytes) -> None:
    gdb.expect_ok(f"M{address:x},{len(data):x}:{data.hex()}")


_ELF32_ENTRY = 24
_MULTIBOOT_MAP = 44
"""Where ``mmap_length`` and ``mmap_addr`` stand (Multiboot 0.6.96, "Boot information format")."""
_MULTIBOOT_ENTRY = struct.Struct("<IQQI")
_MAP_PLACE = 0x10000
"""Low memory that neither the firmware nor Xen's trampoline uses."""
_PACKET = 0x400
_PUSH_RCX = 0x51
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_BRK_SYMBOLS = ("pgt_buf_end", "pgt_buf_top")
"""Page numbers: what is left of brk for the first tables (``early_alloc_pgt_buf``)."""
_NEEDED = ("init_mem_mapping", "init_memory_mapping", "panic", "__bss_stop", *_BRK_SYMBOLS)


def _entries(kernel: Kernel) -> dict[int, int | None]:
    """Addresses that hypercalls go through; the number of the hypercall, None: it is in rax."""
    symbols = kernel.symbols
    missing = [name for name in _NEEDED if name not in symbols]
    if "startup_xen" not in symbols:
        missing.append("startup_xen")
    if "xen_hypercall_pv" not in symbols and "hypercall_page" not in symbols:
        missing.append("hypercall_page")
    if missing:
        raise MissingPieceError(
            f"{kernel.release} has no {missing[0]}",
            "take a kernel with CONFIG_XEN_PV and CONFIG_XEN_DOM0 (Debian: linux-image-amd64)",
        )
    if "xen_hypercall_pv" in symbols:
        return {symbols["xen_hypercall_pv"]: None}
    page = symbols["hypercall_page"]
    numbers = (_MMU_UPDATE, _MULTICALL, _UPDATE_VA_MAPPING, _MMUEXT_OP)
    return {page + _STUB * number + _STUB_MOV: number for number in numbers}


class _Machine:
    """QEMU with Xen and the kernel, stopped before its first instruction."""

    def __init__(
        self,
        qemu: Path,
        xen: Path,
        directory: Path,
        host: Host,
        seconds: float,
        parameters: str,
    ) -> None:
        self._files = ExitStack()
        self._log, self._errors = (
            self._files.enter_context((directory / name).open("w+b"))
            for name in ("console.log", "qemu.log")
        )
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        ours, theirs = socket.socketpair()
        self._socket = ours
        memory = host.pages * (PAGE_SIZE >> 10)
        options = (
            "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=error dom0=pv "
            f"dom0_mem={memory}K,max:{memory}K dom0_max_vcpus=1"
        )
        modules = "vmlinux earlyprintk=xen console=hvc0 ignore_loglevel nokaslr"
        modules = f"{modules} {parameters}".rstrip()
        if host.e820:
            options += " no-real-mode e820-mtrr-clip=no"
        if host.initrd:
            with (directory / "initrd").open("wb") as initrd:
                initrd.truncate(host.initrd)
            modules += ",initrd"
        gbpages = "+pdpe1gb" if host.gbpages else "-pdpe1gb"
        command = [
            *die_with_parent(),
            str(qemu.absolute()),
            *("-S", "-accel", "tcg", "-cpu", f"max,-smap,{gbpages}", "-smp", "1"),
            *("-m", str(host.mib)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", xen.name, "-append", options),
            *("-initrd", modules),
            *("-chardev", f"socket,id=gdb,fd={theirs.fileno()}", "-gdb", "chardev:gdb"),
            *("-serial", "file:console.log"),
        ]
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - a list of our own making, no shell
                    command,
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                self._files.close()
                raise XenBootError(f"{command[0]} cannot be started: {error}") from None
        try:
            self.gdb = GdbClient(ours, self._deadline)
        except GdbError as error:
            failed = XenBootError(f"QEMU did not start: {self.why(error)}", self.tail())
            self._end()
            raise failed from None

    def __enter__(self) -> _Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def console(self) -> str:
        """What Xen and the kernel have printed."""
        return _text(self._log).replace("\r", "")

    def tail(self) -> tuple[str, ...]:
        """The last lines of it."""
        return tuple(printable(line, 200) for line in self.console().splitlines()[-12:])

    def why(self, error: GdbError) -> str:
        """Why the connection has ended: what Xen or QEMU said last, or that the time was over."""
        if found := _XEN_PANIC.search(self.console()):
            return f"Xen gave up: {printable(found[1], 200)}"
        said = _text(self._errors).strip().splitlines()
        if said:
            text = printable(said[-1].removeprefix("qemu-system-x86_64: "), 200)
            needs = text.endswith("Cannot allocate memory")
            return f"QEMU: {text}" + (": take a machine with less RAM" if needs else "")
        if time.monotonic() >= self._deadline:
            return (
                f"no end of its direct map within {self._seconds:g} s: it hangs, or "
                "needs more time (linux:timeout=SECONDS)"
            )
        return str(error)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._files.close()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("ascii", "replace")


@attrs.frozen
class _Seen:
    """A request as it was made, in machine frames."""

    kind: Kind
    hypercall: int
    arguments: tuple[int, ...]


class _Recorder:
    """Runs the machine from hypercall to hypercall."""

    def __init__(
        self, gdb: GdbClient, entries: Mapping[int, int | None], symbols: Mapping[str, int]
    ) -> None:
        self._gdb = gdb
        self._entries = self._stops = entries
        self._may_lead = True
        self._start = symbols["init_mem_mapping"]
        self._mapping = symbols["init_memory_mapping"]
        self._panic = symbols["panic"]
        self._brk = [symbols[name] for name in _BRK_SYMBOLS]
        self._direct_map = symbols.get("page_offset_base")
        self._gap = symbols.get(GAP[0], 0), symbols.get(GAP[1], 0)
        self._under: dict[int, bytes] = {}
        self._seen: list[_Seen] = []
        self._levels: dict[int, int] = {}
        self._bases: dict[int, int] = {}
        self._pfns: dict[int, int] = {}
        self.begin: int
        self.brk: tuple[int, int]
        self.mappings: list[MappedRange] = []
        self.panic: str | None = None

    def run(self) -> None:
        """Up to the end of ``init_mem_mapping``; then look at the tables that stand."""
        gdb = self._gdb
        for address in (*self._entries, self._start, self._panic):
            gdb.insert_breakpoint(address)
        end = None
        last: object = None
        for number in range(MAX_STOPS):
            gdb.resume()
            registers = gdb.registers()
            rip = registers["rip"]
            if rip == end:
                break
            if rip == self._panic:
                self._note_panic(registers["rdi"], inside=end is not None)
                break
            if rip == self._start:
                self.begin = len(self._seen)
                first, top = map(self._word, self._brk)
                self.brk = first * PAGE_SIZE, top * PAGE_SIZE
                end = self._word(registers["rsp"])
                gdb.remove_breakpoint(rip)
                gdb.insert_breakpoint(end)
                gdb.insert_breakpoint(self._mapping)
                continue
            if rip == self._mapping:
                said = registers["rdi"], registers["rsi"], len(self._seen)
                self.mappings.append(MappedRange(*said))
                gdb.step()
                continue
            if rip not in self._stops:
                raise GdbError(f"stopped at {rip:#x}, where no breakpoint is")
            if self._may_lead and self._lead():
                continue
            called = self._stops[rip]
            if called is None:
                called = registers["rax"] & 0xFFFF_FFFF
            arguments = tuple(registers[name] for name in ("rdi", "rsi", "rdx"))
            seen = list(self._requests(called, number, arguments))
            # An interrupt may take the processor away from the breakpoint and bring it back there.
            again = *arguments, registers["rsp"], registers["rcx"], [one.arguments for one in seen]
            if again != last:
                self._seen += seen
            last = again
            if rip in self._entries:
                self._pass(registers)
        else:
            raise GdbError(f"init_mem_mapping did not end after {MAX_STOPS} stops")
        self._look()

    def _lead(self) -> bool:
        """Have hypercalls stop behind a watched word, as from this one, if it can be done."""
        self._may_lead = False
        way = detour(self._entries, self._gap, self._memory)
        if way is None:
            return False
        for address in self._entries:
            self._gdb.remove_breakpoint(address)
        for address, code in way.patches:
            _write(self._gdb, address, code)
        self._gdb.expect_ok(f"Z2,{way.watched:x},8")
        self._stops = dict.fromkeys(way.stops)
        return True

    def _pass(self, registers: Mapping[str, int]) -> None:
        """Carry out the instruction under a breakpoint, a ``mov`` to eax or a ``push`` of rcx."""
        gdb, rip = self._gdb, registers["rip"]
        code = self._under.get(rip)
        if code is None:
            code = self._under[rip] = self._memory(rip, 5)
        if code[0] == MOV_EAX:
            gdb.write_register("rax", int.from_bytes(code[1:], "little"))
            gdb.write_register("rip", rip + 5)
        elif code[0] == _PUSH_RCX:
            _write(gdb, registers["rsp"] - 8, registers["rcx"].to_bytes(8, "little"))
            gdb.write_register("rsp", registers["rsp"] - 8)
            gdb.write_register("rip", rip + 1)
        else:
            gdb.step()

    def _note_panic(self, address: int, *, inside: bool) -> None:
        text = self._memory(address, 200).split(b"\0")[0].decode("ascii", "replace").strip()
        if not inside:
            raise GdbError(f"panic before init_mem_mapping: {printable(text)}")
        self.panic = printable(text)

    def calls(self) -> Iterator[Request]:
        """What was asked, in the domain's own frame numbers."""
        numbers: dict[int, int] = {}
        for seen in self._seen:
            hypercall = numbers.setdefault(seen.hypercall, len(numbers))
            yield self._call(seen, hypercall)

    def _call(self, seen: _Seen, hypercall: int) -> Request:
        match seen.kind:
            case Kind.MMU_UPDATE:
                ptr, value = seen.arguments
                table = ptr >> 12
                return Request(
                    seen.kind,
                    hypercall,
                    pfn=self._pfn(table),
                    index=ptr >> 3 & 511,
                    level=self._levels.get(table, 0),
                    target=self._target(value),
                    flags=_flags(value),
                )
            case Kind.UPDATE_VA_MAPPING:
                va, value = seen.arguments
                return Request(
                    seen.kind, hypercall, va=va, target=self._target(value), flags=_flags(value)
                )
            case Kind.MMUEXT_OP:
                command, argument = seen.arguments
                return Request(
                    seen.kind,
                    hypercall,
                    command=COMMANDS.get(command, f"command {command}"),
                    pfn=-1 if command in FLUSHES else self._pfn(argument),
                )

    def _requests(self, called: int, hypercall: int, given: tuple[int, ...]) -> Iterator[_Seen]:
        first, second, _ = given
        match called:
            case 1:
                data = self._array(first, second, _MMU_UPDATE_REQUEST)
                for request in _MMU_UPDATE_REQUEST.iter_unpack(data):
                    yield _Seen(Kind.MMU_UPDATE, hypercall, request)
            case 14:
                yield _Seen(Kind.UPDATE_VA_MAPPING, hypercall, (first, second))
            case 26:
                data = self._array(first, second, _MMUEXT_REQUEST)
                for command, argument, _ in _MMUEXT_REQUEST.iter_unpack(data):
                    yield _Seen(Kind.MMUEXT_OP, hypercall, (command, argument))
            case 13:
                data = self._array(first, second, _MULTICALL_ENTRY)
                for inner, _, *arguments in _MULTICALL_ENTRY.iter_unpack(data):
                    if inner != _MULTICALL:
                        yield from self._requests(inner, hypercall, tuple(arguments[:3]))

    def _array(self, address: int, count: int, shape: struct.Struct) -> bytes:
        number = count & 0x7FFF_FFFF  # bit 31 asks for pre-emption
        if number > MAX_REQUESTS:
            raise GdbError(f"a hypercall with {number} requests")
        return self._memory(address, number * shape.size)

    def _memory(self, address: int, size: int) -> bytes:
        """The guest's memory at a virtual address."""
        data = bytearray()
        while len(data) < size:
            part = min(size - len(data), 0x700)
            answer = self._gdb.command(f"m{address + len(data):x},{part:x}")
            try:
                data += bytes.fromhex(answer)
            except ValueError:
                raise GdbError(f"no memory at {address:#x}: {answer[:40]!r}") from None
        return bytes(data)

    def _word(self, address: int) -> int:
        """64 bits of it."""
        (word,) = struct.unpack("<Q", self._memory(address, 8))
        return int(word)

    def _target(self, entry: int) -> int:
        return self._pfn(entry >> 12 & _FRAMES) if entry else -1

    def _pfn(self, mfn: int) -> int:
        return self._pfns.get(mfn, -1)

    def tables(self) -> Iterator[tuple[int, int, int]]:
        """Level, number, and the physical address that it maps from, of each table of the direct
        map that has a frame of the domain's."""
        for mfn, base in self._bases.items():
            if mfn in self._pfns:
                yield self._levels[mfn], self._pfns[mfn], base

    def _look(self) -> None:
        """Levels of the tables that stand, and the domain's numbers of all frames named."""
        root = self._gdb.read_register("cr3") >> 12
        first = _DIRECT_MAP
        if self._direct_map is not None:
            first = self._word(self._direct_map)
        first = first >> _ROOT_SHIFT & 511
        self._gdb.expect_ok("Qqemu.PhyMemMode:1")
        tables: dict[int, int | None] = {root: None}
        self._levels[root] = 4
        for level in (4, 3, 2):
            children: dict[int, int | None] = {}
            for table, base in tables.items():
                slots = _ROOT_SLOTS if level == 4 else range(512)
                entries = struct.unpack("<512Q", self._memory(table << 12, 4096))
                for slot in slots:
                    if entries[slot] & 1 and not (level < 4 and entries[slot] & _PSE):
                        if level == 4:
                            of = slot - first << _ROOT_SHIFT if 0 <= slot - first < 128 else None
                        else:
                            of = None if base is None else base + (slot << 12 + 9 * (level - 1))
                        child = entries[slot] >> 12 & _FRAMES
                        # A table may be in use for the kernel's own mapping, too.
                        children[child] = children.get(child) if of is None else of
            self._levels.update((table, level - 1) for table in children)
            self._bases.update((mfn, base) for mfn, base in children.items() if base is not None)
            tables = children
        self._gdb.expect_ok("Qqemu.PhyMemMode:0")
        for mfn in {*self._named(), *self._bases}:
            if mfn not in self._pfns:
                self._translate(mfn // _M2P_CHUNK * _M2P_CHUNK)

    def _named(self) -> Iterator[int]:
        for seen in self._seen:
            first, second = seen.arguments
            if seen.kind is Kind.MMU_UPDATE:
                yield first >> 12
            if seen.kind is Kind.MMUEXT_OP:
                if first not in FLUSHES:
                    yield second
            elif second:
                yield second >> 12 & _FRAMES

    def _translate(self, first: int) -> None:
        try:
            data = self._memory(_M2P + first * 8, _M2P_CHUNK * 8)
        except GdbError:
            return  # behind the host's memory, or a device
        for offset, (pfn,) in enumerate(struct.iter_unpack("<Q", data)):
            if pfn <= _FRAMES:
                self._pfns[first + offset] = pfn


def _flags(entry: int) -> int:
    return entry & (0xFFF | 0xFFF << 52)
