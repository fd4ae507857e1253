"""What can go wrong between a trace and real Xen's answer."""

from __future__ import annotations

from paravirt_mm import ParavirtMmError


class LiveError(ParavirtMmError):
    """Base of all failures of a live replay."""


class MissingPieceError(LiveError):
    """Something that a live replay needs is not on this machine.

    ``remedy`` is one sentence naming the Debian package or the option that helps.
    """

    def __init__(self, piece: str, remedy: str) -> None:
        super().__init__(f"{piece}: {remedy}")
        self.piece = piece
        self.remedy = remedy


class BuildError(LiveError):
    """gcc refused the guest; the message ends with what gcc said."""


class XenBootError(LiveError):
    """A boot ended before every trace was answered.

    ``reason`` says how (Xen panic, guest crash, time-out, QEMU's exit code), ``console`` are the
    last lines that the machine printed.
    """

    def __init__(self, reason: str, console: tuple[str, ...] = ()) -> None:
        tail = "".join(f"\n  | {line}" for line in console)
        super().__init__(f"{reason}{tail}")
        self.reason = reason
        self.console = console
