"""One QEMU process: its command line, its life and its certain end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from types import TracebackType

from paravirt_mm.guard import without_memory_limit
from paravirt_mm.machine.paging import MIB
from paravirt_mm.verify.linux.qemu.errors import GdbError, KernelBootError
from paravirt_mm.verify.linux.qemu.gdbremote import GdbClient
from paravirt_mm.verify.linux.qemu.locate import Kernel
from paravirt_mm.verify.linux.qemu.ram import GuestRam
from paravirt_mm.verify.linux.qemu.spec import PC_LOW_LIMIT, Entry, MapSpec

_TAIL = 16 << 10
_TCG = "tcg,tb-size=64"
"""64 MiB for translated code, of which a boot needs a tenth; QEMU reserves 1 GiB by itself."""


_running: set[subprocess.Popen[bytes]] = set()


def end_all() -> None:
    """End every QEMU that boots a kernel for this process, in whatever thread: those boots fail."""
    for process in tuple(_running):
        process.kill()


def processor(spec: MapSpec) -> str:
    """QEMU's ``-cpu`` value for the map's paging features."""
    wanted = {"pse": spec.pse, "pdpe1gb": spec.gbpages, "la57": spec.levels == 5}
    return ",".join(["qemu64", *(f"{'+' if on else '-'}{name}" for name, on in wanted.items())])


def kernel_parameters(spec: MapSpec) -> str:
    """The kernel's command line."""
    words = ["nokaslr"]
    if spec.entry is Entry.FIRMWARE:
        words += ["earlyprintk=serial,ttyS0,115200", "memmap=exactmap"]
        separator = {1: "@", 3: "#"}  # RAM, ACPI data; anything else is reserved
        for start, end, kind in spec.e820:
            words.append(f"memmap={end - start:#x}{separator.get(kind, '$')}{start:#x}")
    return " ".join([*words, *spec.command_line.split()])


def qemu_arguments(spec: MapSpec, kernel: Kernel) -> list[str]:
    """QEMU's arguments that decide what the guest sees (plumbing left out)."""
    size = spec.layout.size // MIB
    machine = f"pc,max-ram-below-4g={PC_LOW_LIMIT}"
    arguments = ["-machine", machine, "-accel", _TCG, "-cpu", processor(spec), "-m", f"{size}M"]
    if spec.entry is Entry.FIRMWARE:
        arguments += ["-kernel", str(kernel.path), "-append", kernel_parameters(spec)]
    return arguments


class Qemu:
    """A stopped machine with a gdb connection; a context manager that always kills QEMU.

    Everything between the two processes is an unnamed file or a socket pair: no port, no path,
    nothing to clean up. ``timeout`` is the machine's whole life in seconds.
    """

    def __init__(
        self, program: str, spec: MapSpec, kernel: Kernel, ram: GuestRam, timeout: float
    ) -> None:
        self._stack = ExitStack()
        try:
            self._start(program, spec, kernel, ram)
            self.gdb = self._connect(timeout)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Qemu:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def console(self) -> str:
        """The end of what the kernel has printed; control characters are made visible."""
        return _tail(self._console)

    def _start(self, program: str, spec: MapSpec, kernel: Kernel, ram: GuestRam) -> None:
        self._console = self._file("console")
        self._errors = self._file("errors")
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._stack.callback(ours.close)
        size = ram.layout.size
        arguments = [
            *(program, "-S", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *qemu_arguments(spec, kernel),
            *("-machine", "memory-backend=ram"),
            "-object",
            f"memory-backend-file,id=ram,share=on,size={size},mem-path=/proc/self/fd/{ram.fd}",
            *("-chardev", f"socket,id=gdb,fd={theirs.fileno()}", "-gdb", "chardev:gdb"),
            *("-chardev", f"file,id=console,path=/proc/self/fd/{self._console}"),
            *("-serial", "chardev:console"),
        ]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:  # QEMU ends even if this process is killed
            arguments = [setpriv, "--pdeathsig", "KILL", *arguments]
        with theirs, without_memory_limit():  # of a scenario: the guest's RAM is not its own
            self._process = subprocess.Popen(  # noqa: S603 - no shell, words of ours
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(ram.fd, theirs.fileno(), self._console),
            )
        _running.add(self._process)
        self._stack.callback(self._end)

    def _connect(self, timeout: float) -> GdbClient:
        try:
            return GdbClient(self._socket, time.monotonic() + timeout)
        except GdbError as error:
            reason = _tail(self._errors).strip() or error
            raise KernelBootError(f"QEMU did not start: {reason}") from error

    def _file(self, name: str) -> int:
        fd = os.memfd_create(f"paravirt-mm-{name}", os.MFD_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        _running.discard(self._process)


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, _TAIL, max(0, size - _TAIL)).decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\n" else "." for c in text.replace("\r", ""))
