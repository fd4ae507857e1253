"""A small client of the gdb remote serial protocol, as far as QEMU's x86-64 stub needs it.

Synchronous: one command, one answer, each within a deadline. Only what reading a boot needs is
there: registers, hardware breakpoints, single steps, continue. Memory is not read through it
(:mod:`.ram` does that without a copy through a socket).

Source of facts: "Debugging with gdb", appendix E (Remote Protocol) and H (Target Descriptions).
"""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import attrs

from paravirt_mm.verify.linux.qemu.errors import GdbError, GdbTimeout

REQUIRED_REGISTERS = (
    *("rax", "rcx", "rdx", "rsi", "rdi", "rsp", "rip", "eflags"),
    *("cs", "ss", "ds", "es", "fs", "gs"),
    *("cr0", "cr3", "cr4", "efer"),
)
"""Names without which a boot cannot be driven."""

_MAX_PACKET = 1 << 16
_MAX_DESCRIPTION = 1 << 18
_MAX_REGISTERS = 1000
_REG = re.compile(r'<reg\s+name="(\w{1,32})"\s+bitsize="(\d{1,4})"')
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_INCLUDE = re.compile(r'<xi:include\s+href="([\w.-]{1,64})"')
_GENERAL = ("rax", "rcx", "rdx", "rsi", "rdi", "rsp", "rip")


@attrs.frozen(slots=False)
class RegisterLayout:
    """The stub's own description: each register's number, its size, its place in ``g``."""

    number: Mapping[str, int]
    size: Mapping[str, int]

    @classmethod
    def from_xml(cls, description: str) -> RegisterLayout:
        """Read ``<reg name= bitsize=>`` elements, numbered from 0 in order; raises GdbError.

        A pattern is enough, and safer than an XML parser on text from outside.
        """
        found = _REG.findall(_COMMENT.sub("", description))[:_MAX_REGISTERS]
        names = [name for name, _ in found]
        missing = [name for name in REQUIRED_REGISTERS if name not in names]
        if missing:
            raise GdbError(f"gdb stub describes no register {missing[0]!r}")
        return cls(
            number={name: number for number, name in enumerate(names)},
            size={name: int(bits) // 8 for name, bits in found},
        )

    def unpack(self, packet: bytes, wanted: Collection[str]) -> dict[str, int]:
        """Values of the ``wanted`` registers from the answer to ``g``; raises GdbError."""
        places = {name: self._places[name] for name in wanted}
        for name, (_start, end) in places.items():
            if end > len(packet):
                raise GdbError(f"gdb stub sent no value for register {name!r}")
        return {
            n: int.from_bytes(packet[start:end], "little") for n, (start, end) in places.items()
        }

    def unpack_all(self, packet: bytes) -> dict[str, int]:
        """Values of all registers that the answer to ``g`` holds."""
        held = (name for name, (_start, end) in self._places.items() if end <= len(packet))
        return self.unpack(packet, tuple(held))

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each register stands in the answer to ``g``."""
        ends = itertools.accumulate(self.size.values())
        return {
            name: (end - size, end)
            for (name, size), end in zip(self.size.items(), ends, strict=True)
        }


class GdbClient:
    """One connection to a stopped virtual machine.

    ``deadline`` is a ``time.monotonic()`` value: whatever is under way then ends in GdbError.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline
        self._buffer = bytearray()
        # Asking for the description also makes QEMU accept single registers ('p' and 'P').
        target = self._read_description("target.xml")
        included = [self._read_description(name) for name in _INCLUDE.findall(target)[:16]]
        self._layout = RegisterLayout.from_xml("".join([target, *included]))

    def command(self, text: str) -> str:
        """Send one packet and return the answer's text; raises GdbError on silence or garbage."""
        payload = text.encode("ascii")
        self._send(b"$%s#%02x" % (payload, sum(payload) & 0xFF))
        if self._next_byte() != ord("+"):
            raise GdbError(f"gdb stub did not acknowledge {_shown(text)}")
        return self._read_packet()

    def expect_ok(self, text: str) -> None:
        """Send a command that is answered with OK; raises GdbError otherwise."""
        answer = self.command(text)
        if answer != "OK":
            raise GdbError(f"gdb stub refused {_shown(text)}: {_shown(answer)}")

    def registers(self) -> Mapping[str, int]:
        """rax, rcx, rdx, rsi, rdi, rsp and rip of the processor."""
        return self._layout.unpack(self._register_packet(), _GENERAL)

    def all_registers(self) -> Mapping[str, int]:
        """Every register that the stub sends at once."""
        return self._layout.unpack_all(self._register_packet())

    def _register_packet(self) -> bytes:
        answer = self.command("g")
        try:
            return bytes.fromhex(answer)
        except ValueError as error:
            raise GdbError(f"gdb stub sent no registers: {_shown(answer)}") from error

    def monitor(self, command: str) -> str:
        """Give a command to QEMU's monitor, and return what it prints."""
        answer = self.command(f"qRcmd,{command.encode().hex()}")
        text = bytearray()
        try:
            while answer.startswith("O") and answer != "OK" and len(text) < _MAX_PACKET:
                text += bytes.fromhex(answer[1:])
                answer = self._read_packet()
        except ValueError as error:
            raise GdbError(f"gdb stub sent no text: {_shown(answer)}") from error
        if answer != "OK":
            raise GdbError(f"gdb stub refused {command!r}: {_shown(answer)}")
        return text.decode("ascii", "replace")

    def read_register(self, name: str) -> int:
        """One register by name, control registers included."""
        answer = self.command(f"p{self._layout.number[name]:x}")
        try:
            return int.from_bytes(bytes.fromhex(answer), "little")
        except ValueError as error:
            raise GdbError(f"gdb stub sent no {name}: {_shown(answer)}") from error

    def write_register(self, name: str, value: int) -> None:
        """Set one register by name, control registers included."""
        data = value.to_bytes(self._layout.size[name], "little")
        self.expect_ok(f"P{self._layout.number[name]:x}={data.hex()}")

    def insert_breakpoint(self, address: int) -> None:
        """Hardware breakpoint: no instruction is replaced, so code may be put there later."""
        self.expect_ok(f"Z1,{address:x},1")

    def remove_breakpoint(self, address: int) -> None:
        """Take a breakpoint away again."""
        self.expect_ok(f"z1,{address:x},1")

    def resume(self) -> None:
        """Run until the next breakpoint."""
        self._run("c")

    def step(self) -> None:
        """Execute one instruction."""
        self._run("s")

    def _read_description(self, name: str) -> str:
        text = ""
        while len(text) <= _MAX_DESCRIPTION:
            answer = self.command(f"qXfer:features:read:{name}:{len(text):x},7f0")
            if not answer.startswith(("m", "l")):
                raise GdbError(f"gdb stub has no register description {name!r}")
            text += answer[1:]
            if answer.startswith("l"):
                return text
        raise GdbError(f"gdb stub's register description {name!r} does not end")

    def _run(self, command: str) -> None:
        answer = self.command(command)
        if answer.startswith("W"):
            raise GdbError("the machine reset itself (a triple fault) or QEMU was told to end")
        if not answer.startswith(("S05", "T05")):
            raise GdbError(f"the machine did not stop at a breakpoint: {_shown(answer)}")

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """What the socket is asked for ends at the deadline."""
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            yield
        except TimeoutError as error:
            problem = "no answer from QEMU's gdb stub within the time allowed"
            raise GdbTimeout(problem) from error
        except OSError as error:
            raise GdbError(f"QEMU closed its gdb connection: {error}") from error

    def _send(self, data: bytes) -> None:
        with self._in_time():
            self._socket.sendall(data)

    def _next_byte(self) -> int:
        if not self._buffer:
            self._receive()
        return self._buffer.pop(0)

    def _receive(self) -> None:
        with self._in_time():
            data = self._socket.recv(_MAX_PACKET)
        if not data:
            raise GdbError("QEMU closed its gdb connection")
        self._buffer += data

    def _read_packet(self) -> str:
        if self._next_byte() != ord("$"):
            raise GdbError("gdb stub sent something that is no packet")
        while (end := self._buffer.find(b"#")) < 0:
            if len(self._buffer) > _MAX_PACKET:
                raise GdbError(f"gdb stub sent a packet of more than {_MAX_PACKET} bytes")
            self._receive()
        body = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        digits = bytes((self._next_byte(), self._next_byte()))
        self._send(b"+")
        try:
            if int(digits, 16) != sum(body) & 0xFF:
                raise GdbError("gdb stub sent a packet with a wrong checksum")
        except ValueError as error:
            raise GdbError("gdb stub sent a packet with a wrong checksum") from error
        return body.decode("ascii", "replace")


def _shown(text: str) -> str:
    """As much of a packet as tells it from others."""
    return repr(text[:80])
