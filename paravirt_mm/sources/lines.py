"""Bounded reading of text that nobody vouches for.

Nothing here holds more than one line, and no line more than `MAX_LINE_BYTES`. Whatever is kept for
people to read goes through `printable`, so that a log cannot talk to a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from paravirt_mm.errors import InputError

MAX_LOG_BYTES = 1 << 28
"""A log longer than this is refused: boot messages are a few hundred KiB."""
MAX_LINE_BYTES = 4096
"""What follows this many bytes of a line is dropped: the kernel prints about 1 KiB at most."""

_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])")
_PREFIX = re.compile(
    r"""
    (?: [>|]+\ ?                                       # quoted in a mail
      | <\d{1,3}>                                      # priority, as in /dev/kmsg
      | \[\s*\d+\.\d+\]\ ?                             # seconds since boot
      | \[\s*[TC]\d+\]\ ?                              # thread or CPU that printed
      | \[\w{3}\ \w{3}\ [ \d]\d\ [\d:]{8}\ \d{4}\]\ ?  # dmesg -T
      | (?:kern|user)\s*:\s*\w+\s*:\ ?                 # dmesg -x
      | (?:(?!\(XEN\))\S{1,64}\s{1,4}){0,8}?kernel(?:\[\d+\])?:\ ?  # syslog, journalctl, logread
    )""",
    re.VERBOSE,
)


def bounded_lines(stream: BinaryIO, source: str) -> Iterator[tuple[int, str]]:
    """Yield ``(number, line)`` from 1, without line ends and terminal control sequences.

    Bytes that are not UTF-8 become U+FFFD. Raises InputError past `MAX_LOG_BYTES` and for UTF-16.
    """
    total = 0
    number = 0
    while chunk := stream.readline(MAX_LINE_BYTES):
        number += 1
        total += len(chunk)
        rest = chunk
        while not rest.endswith(b"\n"):
            rest = stream.readline(1 << 16)
            if not rest:
                break
            total += len(rest)
            if total > MAX_LOG_BYTES:
                break
        if total > MAX_LOG_BYTES:
            raise InputError(
                f"longer than {MAX_LOG_BYTES >> 20} MiB; cut out the boot messages",
                f"{source}:{number}",
            )
        if number == 1 and chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError("this is UTF-16 text; save it as UTF-8", f"{source}:1")
        line = chunk.decode("utf-8", "replace").rstrip("\r\n")
        yield number, _CONTROL_SEQUENCE.sub("", line) if "\x1b" in line else line


def strip_prefixes(line: str) -> str:
    """Return what the kernel printed, without what loggers and mails have put in front of it."""
    position = 0
    while (match := _PREFIX.match(line, position)) and match.end() > position:
        position = match.end()
    return line[position:]
