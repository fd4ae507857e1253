"""Guest memory as a sparse, unnamed file that QEMU and this process share.

QEMU maps the file as the machine's RAM, so what the guest writes can be read here at once, without
asking QEMU, and what is written here before the start is there when the processor starts. Nothing
is left behind: the file has no name and goes with its last user.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import attrs

from paravirt_mm.machine.model import Span
from paravirt_mm.machine.paging import GIB
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.verify.linux.qemu.errors import KernelBootError, MapSpecError

_HIGH = 4 * GIB
"""Where a PC's RAM goes on that does not fit below."""
_MAX_READ = 64 << 20


@attrs.frozen
class RamLayout:
    """Where the machine's RAM lies in guest-physical addresses (bytes, ends exclusive).

    A PC keeps the top of the first 4 GiB for devices: RAM is ``[0, below_4g)`` and, if there is
    more, ``[4 GiB, 4 GiB + above_4g)``.
    """

    below_4g: int
    above_4g: int = 0

    @property
    def size(self) -> int:
        """Bytes of RAM in all."""
        return self.below_4g + self.above_4g

    def file_offset(self, address: int, size: int) -> int | None:
        """Offset of ``[address, address + size)`` in the file, or None where it is not RAM."""
        if address >= 0 and address + size <= self.below_4g:
            return address
        if address >= _HIGH and address + size <= _HIGH + self.above_4g:
            return address - _HIGH + self.below_4g
        return None


class GuestRam:
    """The file; a context manager that closes it."""

    def __init__(self, layout: RamLayout) -> None:
        self.layout = layout
        self.fd = os.memfd_create("paravirt-mm-guest", os.MFD_CLOEXEC)
        try:
            os.truncate(self.fd, layout.size)
        except OSError as error:
            os.close(self.fd)
            raise MapSpecError(f"no sparse file of {layout.size} bytes: {error}") from error

    def __enter__(self) -> GuestRam:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    def read(self, address: int, size: int) -> bytes:
        """Bytes of guest-physical memory; raises KernelBootError where there is no RAM."""
        offset = self.layout.file_offset(address, size)
        if offset is None or size > _MAX_READ:
            raise KernelBootError(f"no RAM at [{address:#x}, {address + size:#x}) to read")
        return os.pread(self.fd, size, offset)

    def beyond(self, known: Iterable[Span]) -> Iterator[tuple[int, bytes]]:
        """Yield addresses and bytes of what may have been written outside of ``known``."""
        rest = RangeSet()
        position = 0
        while (extent := self._next_data(position)) is not None:
            start, position = extent
            rest.add(self._address(start), self._address(position - 1) + 1)
        for low, high in known:
            rest.discard(low, high)
        for low, high in rest:
            for address in range(low, high, _MAX_READ):
                yield address, self.read(address, min(_MAX_READ, high - address))

    def dump(self, path: Path) -> None:
        """Write all of it to a new sparse file, where an offset is a guest-physical address.

        That is what QEMU's ``pmemsave 0 END`` gives. Raises OSError, FileExistsError included.
        """
        with path.open("xb") as out:
            position = 0
            while (extent := self._next_data(position)) is not None:
                start, position = extent
                os.lseek(out.fileno(), self._address(start), os.SEEK_SET)
                while start < position:
                    start += os.sendfile(out.fileno(), self.fd, start, position - start)
            out.truncate(self._address(self.layout.size - 1) + 1)

    def _next_data(self, position: int) -> tuple[int, int] | None:
        """The next piece of the file that is not a hole, within one side of the 4 GiB gap."""
        try:
            start = os.lseek(self.fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        end = os.lseek(self.fd, start, os.SEEK_HOLE)
        low = self.layout.below_4g
        return (start, min(end, low)) if start < low else (start, end)

    def _address(self, offset: int) -> int:
        low = self.layout.below_4g
        return offset if offset < low else _HIGH + offset - low

    def clear(self, address: int, size: int) -> None:
        """Make bytes of guest-physical memory zero; what never was written stays a hole."""
        offset = self.layout.file_offset(address, size)
        if offset is None:
            raise KernelBootError(f"no RAM at [{address:#x}, {address + size:#x}) to clear")
        end = offset + size
        while offset < end and (extent := self._next_data(offset)) is not None:
            start, offset = extent
            if start < end:
                os.pwrite(self.fd, bytes(min(offset, end) - start), start)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into guest-physical memory; raises MapSpecError where there is no RAM."""
        offset = self.layout.file_offset(address, len(data))
        if offset is None:
            raise MapSpecError(f"no RAM at [{address:#x}, {address + len(data):#x}) to write")
        written = os.pwrite(self.fd, data, offset)
        if written != len(data):
            raise MapSpecError(f"only {written} of {len(data)} bytes could be written")
