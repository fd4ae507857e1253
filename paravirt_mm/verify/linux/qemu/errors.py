"""What can go wrong with a real kernel, each with a text that says what to do."""

from __future__ import annotations

from paravirt_mm.errors import ParavirtMmError


class LiveLinuxError(ParavirtMmError):
    """Base of everything that this package raises on purpose."""


class LiveUnavailableError(LiveLinuxError):
    """QEMU or a kernel is not there; tests skip with this text."""


class KernelImageError(LiveLinuxError):
    """The kernel file cannot be read, unpacked or understood."""


class MapSpecError(LiveLinuxError, ValueError):
    """The memory map asked for cannot be given to QEMU or booted from."""


class GdbError(LiveLinuxError):
    """QEMU's gdb stub answered nonsense, with an error, or not at all."""


class GdbTimeout(GdbError):
    """QEMU did not answer in time: the machine runs on and on."""


class KernelBootError(LiveLinuxError):
    """The machine did not do what was expected of it: no start, no end, or a strange stop."""
