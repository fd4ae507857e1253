"""Replaying traces on real Xen: as many boots as their memory needs."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from paravirt_mm_xen.live import qemu
from paravirt_mm_xen.live.build import build_guest, unpack_hypervisor
from paravirt_mm_xen.live.errors import XenBootError
from paravirt_mm_xen.live.pieces import Pieces, find_pieces
from paravirt_mm_xen.live.wire import guest_text, pack, parse_answers
from paravirt_mm_xen.traces.format import OperationTrace, check

BOOT_PAGES = 1 << 18
"""Pages (1 GiB) that the traces of one boot share; a single larger trace gets a boot alone."""

BOOT_OPERATIONS = 500_000
"""Operations after which a new boot begins."""

_GREETING = re.compile(r"^@guest xen=(\S+) pages=(\d+)$", re.MULTILINE)
_PAGE = 4096
_MIB = 1 << 20


@attrs.define
class LiveXen:
    """A built guest and an unpacked hypervisor, ready to boot any number of times.

    Use as ``with LiveXen.open() as xen: answers = xen.replay(traces)``.
    """

    pieces: Pieces
    directory: Path
    hypervisor: Path
    guest: Path
    cpu: str = qemu.CPU  #: QEMU's processor
    options: str = ""  #: for Xen's command line
    seconds: float | None = None  #: time limit of one boot; by default from its size
    boots: int = 0
    version: str | None = None  #: of Xen, as it told the guest; known after the first boot

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, xen: str | Path | None = None, *, seconds: float | None = None
    ) -> Iterator[LiveXen]:
        """Finds the pieces (`find_pieces`) and builds the guest in a temporary directory.

        Raises `paravirt_mm_xen.live.errors.MissingPieceError` or ``BuildError``.
        """
        pieces = find_pieces(xen)
        with tempfile.TemporaryDirectory(prefix="paravirt-mm-xen-") as name:
            directory = Path(name)
            yield cls(
                pieces=pieces,
                directory=directory,
                hypervisor=unpack_hypervisor(pieces, directory),
                guest=build_guest(pieces, directory),
                seconds=seconds,
            )

    def replay(self, traces: Iterable[OperationTrace]) -> list[tuple[int, ...]]:
        """Real Xen's answers, trace by trace, one an operation.

        Raises `paravirt_mm.errors.InputError` for a malformed trace, before anything is
        booted with it, and `XenBootError` for a boot that goes wrong.
        """
        return [answer for group in _boots(traces) for answer in self._boot(group)]

    def _boot(self, traces: Sequence[OperationTrace]) -> list[tuple[int, ...]]:
        packed = pack([check(trace) for trace in traces])
        pages = sum(trace.pages for trace in traces)
        operations = sum(len(trace.ops) for trace in traces)
        file = self.directory / "traces.bin"
        console = self.directory / "console.log"
        boot = qemu.XenBoot(
            qemu=self.pieces.qemu,
            hypervisor=self.hypervisor,
            guest=self.guest,
            traces=file,
            guest_mib=_guest_mib(pages, len(packed)),
            cpu=self.cpu,
            options=self.options,
            seconds=self.seconds or 60 + pages / 5_000 + operations / 2_000,
        )
        try:
            file.write_bytes(packed)
            text = guest_text(qemu.run(boot, console))
        finally:
            file.unlink(missing_ok=True)
            console.unlink(missing_ok=True)
        greeting = _GREETING.search(text)
        if greeting is None:
            raise XenBootError("the guest did not greet", tuple(text.splitlines()[-15:]))
        self.boots += 1
        self.version = greeting[1]
        return parse_answers(text, traces)


def _guest_mib(pages: int, input_bytes: int) -> int:
    """Memory for the domain: arena and its tables, p2m list, input, guest and rounding."""
    tables = pages // 512 + pages // 512**2 + 2
    p2m = pages * 8
    used = (pages + tables) * _PAGE + p2m + 2 * input_bytes
    return used // _MIB + 32


def _boots(traces: Iterable[OperationTrace]) -> Iterator[list[OperationTrace]]:
    """Groups of traces that fit into one boot, in order."""
    group: list[OperationTrace] = []
    pages = operations = 0
    for trace in traces:
        too_much = pages + trace.pages > BOOT_PAGES or operations + len(trace.ops) > BOOT_OPERATIONS
        if group and too_much:
            yield group
            group, pages, operations = [], 0, 0
        group.append(trace)
        pages += trace.pages
        operations += len(trace.ops)
    if group:
        yield group
