"""One boot of Xen and the guest in QEMU, from the command line to the console's text."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from paravirt_mm_xen.live.errors import XenBootError

CPU = "max,-smap"  # QEMU 7.2 mishandles SMAP on the way back to a PV guest
_XEN_MEMORY_MIB = 192  # for Xen itself, besides the domain's
MAX_CONSOLE = 512 << 20  #: bytes that a boot may print
_TAIL_LINES = 15
_LOOK_SECONDS = 0.5
_LAST_BYTES = 4096
_LAST_WORDS = re.compile(rb"^\(XEN\).*(?:[Cc]rash(?:ed|ing)|Reboot in five seconds)", re.MULTILINE)
"""What Xen says when it or dom0 has crashed, before it waits five seconds (machine_restart)."""
_END = re.compile(r"^@end$", re.MULTILINE)
_TROUBLE = (
    (re.compile(r"\(XEN\) Panic on CPU"), "Xen panicked"),
    (
        re.compile(r"\(XEN\).*(?:Dom0|domain 0|d0(?:v\d+)? ).*crash", re.IGNORECASE),
        "the guest crashed",
    ),
    (re.compile(r"^!", re.MULTILINE), "the guest gave up"),
)


@attrs.frozen
class XenBoot:
    """What to boot: files, the domain's memory, a time limit; QEMU's processor, and options for
    Xen besides those that it always gets."""

    qemu: Path
    hypervisor: Path
    guest: Path
    traces: Path
    guest_mib: int
    seconds: float
    cpu: str = CPU
    options: str = ""

    @property
    def directory(self) -> Path:
        """Where QEMU runs."""
        return self.traces.parent

    def command(self) -> list[str]:
        """QEMU's command line. Software CPU; no network, no screen, console on standard output."""
        xen = (
            "console=com1 com1=115200,8n1 loglvl=error guest_loglvl=error"
            f" dom0=pv dom0_mem={self.guest_mib}M dom0_max_vcpus=1 {self.options}"
        )
        # QEMU separates modules with commas (a doubled one is literal) and ends names at blanks:
        # relative names keep the directory's own name out of it.
        guest, traces = (
            os.path.relpath(path, self.directory).replace(",", ",,")
            for path in (self.guest, self.traces)
        )
        return [
            *die_with_parent(),
            str(self.qemu.absolute()),
            *("-accel", "tcg", "-cpu", self.cpu, "-smp", "1"),
            *("-m", str(self.guest_mib + _XEN_MEMORY_MIB)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
            *("-serial", "stdio", "-monitor", "none", "-no-reboot"),
            *("-kernel", str(self.hypervisor.absolute()), "-append", xen),
            *("-initrd", f"{guest},{traces}"),
        ]


def run(boot: XenBoot, console: Path) -> str:
    """Boots and waits for the machine to end; returns what the console showed.

    The console's file is left for the caller to delete. Raises `XenBootError` if QEMU cannot
    be started, outlives its time limit (it is killed then), or ends before the guest was done.
    """
    with console.open("wb") as output, _running(boot, output.fileno()) as process:
        timed_out = not _ended(process, console, boot.seconds)
    with console.open("rb") as printed:
        data = printed.read(MAX_CONSOLE + 1)
    text = data.decode("ascii", "replace").replace("\r", "")
    if len(data) > MAX_CONSOLE:
        raise XenBootError(f"over {MAX_CONSOLE} bytes on the console", _tail(text))
    if timed_out:
        reason = f"no end after {boot.seconds:g} s: the guest or Xen hangs, or is too slow"
        raise XenBootError(_trouble(text) or reason, _tail(text))
    if not _END.search(text):
        reason = f"QEMU ended with code {process.returncode} before the guest was done"
        raise XenBootError(_trouble(text) or reason, _tail(text))
    return text


def _ended(process: subprocess.Popen[bytes], console: Path, seconds: float) -> bool:
    """Wait, up to so many seconds, until QEMU ends or has nothing to say any more."""
    deadline = time.monotonic() + seconds
    said = False
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(left, _LOOK_SECONDS))
            return True
        if said:
            return True
        with console.open("rb") as printed:
            printed.seek(max(0, console.stat().st_size - _LAST_BYTES))
            said = _LAST_WORDS.search(printed.read(_LAST_BYTES)) is not None
    return False


@contextlib.contextmanager
def _running(boot: XenBoot, output: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is gone when the block is left, however it is left."""
    command = boot.command()
    try:
        process = subprocess.Popen(  # noqa: S603 - a list of our own making, no shell
            command,
            cwd=boot.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise XenBootError(f"{command[0]} cannot be started: {error}") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def die_with_parent() -> list[str]:
    """A prefix that has the kernel kill QEMU if this process is killed (util-linux)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _trouble(text: str) -> str | None:
    return next((reason for pattern, reason in _TROUBLE if pattern.search(text)), None)


def _tail(text: str) -> tuple[str, ...]:
    lines = [line[:200] for line in text.splitlines() if line.strip()]
    return tuple(lines[-_TAIL_LINES:])
