"""Lines of text that nobody vouches for, bounded in number and length, without what was put around.

Nothing here holds more than a block of text and one line, no line is longer than `MAX_LINE_BYTES`,
and a line costs its own length. What loggers, terminals and mails have put around the kernel's
words is taken off.
"""

from __future__ import annotations

import base64
import html
import json
import quopri
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import BinaryIO

from paravirt_mm.errors import InputError
from paravirt_mm.sources.content import Content
from paravirt_mm.sources.wrapped import Wrapping, wrapping

MAX_LOG_BYTES = 1 << 28
"""A log longer than this is refused: boot messages are a few hundred KiB."""
MAX_LINES = 1 << 22
"""So is one of more lines."""
MAX_LINE_BYTES = 4096
"""What follows this many bytes of a line is dropped: the kernel prints about 1 KiB at most."""
LINES_AFTER = 2
"""So many lines after one that is wanted are looked at: more pieces a line is hardly cut into."""
MAX_RECORD_BYTES = 1 << 22
"""A longer record of a journal in JSON is cut."""

_BLOCK = 262144
_CONTROL_SEQUENCE = re.compile(
    r"(?:\x1b|\^\[|\#033)(?:\[[0-?]{0,32}[ -/]{0,8}[@-~]|[@-_])|[\x00-\x08\x0a-\x1f\x7f\ufeff]"
)
_PREFIX = re.compile(
    r"""
    (?: (?:\w{1,3}(?=>))?[>|`]+\ ?                       # quoted in a mail, in markup
      | (?:(?:"[^"]{0,64}"|[\w.:+-]{1,40}),){1,8}"      # the last column of a table
      | <\d{1,3}>(?:1\s\S{1,40}\s\S{1,255}\skernel\s\S{1,128}\s\S{1,32}\s(?:-|\[[^]]{0,512}\])\s)?
                                                       # priority, as in /dev/kmsg; RFC 5424
      | \d{1,3},\d{1,20},\d{1,20},[-c][^;]{0,64};      # a record of /dev/kmsg
      | \[\s*\d+\.\d+\]\ ?                             # seconds since boot
      | \[\s*\+?\d[\dT:.,+\ -]{4,40}Z?\]\ ?            # date and time, as consoles put it
      | \[\s*[TC]\d+\]\ ?                              # thread or CPU that printed
      | \[\w{3}\ \w{3}\ [ \d]\d\ [\d:]{8}\ \d{4}\]\ ?  # dmesg -T
      | \[\w{3}\ ?\ ?\d{1,2}\ [\d:]{5,8}\]\ ?          # dmesg -e
      | \d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]{0,10}(?:Z|[+-]\d\d:?\d\d)?\ (?=[^\s\w]|\w+:)
                                                       # dmesg --time-format iso
      | \s{0,64}_?MESSAGE=                             # journalctl -o export, verbose
      | \((?:early|d\d{1,5}|v\d{1,5}|d\d{1,5}v\d{1,5})\)\ ?   # a guest's console, as Xen shows it
      | (?:kern|user)\s*:\s*\w+\s*:\ ?                 # dmesg -x
      | (?:(?!\(XEN\))\S{1,64}\s{1,4}){0,8}?kernel(?:\[\d+\])?:\ ?  # syslog, journalctl, logread
    )""",
    re.VERBOSE,
)
_COLOUR = re.compile(rb"\x1b\[[0-?]{0,32}[ -/]{0,8}[@-~]")
_TAG = re.compile(
    r"</?(?:html|body|p|br|pre|code|span|div|font|b|i|a|li|td|tr|table)\b[^<>]{0,256}>"
)
_ASCII = str.maketrans({"\u00a0": " ", "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u2014": "-"})
"""What web pages and word processors make of blanks and hyphens."""
_BASE64_BODY = re.compile(
    rb"^content-transfer-encoding:\s*base64\s*$", re.IGNORECASE | re.MULTILINE
)
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]{4,}={0,2}\s*")
_QUOTED_PRINTABLE = re.compile(
    rb"quoted-printable|=3D=3D>|last_pfn =3D|BIOS-e820:[^\n]{0,80}=\r?\n", re.IGNORECASE
)
_LONE_RETURN = re.compile(rb"\r(?![\r\n])")
"""A line end of serial consoles and of old computers."""
_JOURNAL = re.compile(
    rb'\A[\s\x1e\[-]*(?:data:\s*)?\{[\s\S]*?"(?:MESSAGE|message|msg|dmesg|log|line)"\s*:'
)
_IN_JOURNAL = re.compile(
    r'"(?:(?:__REALTIME_TIMESTAMP|time)"\s*:\s*"?(?P<at>\d{1,20}(?:\.\d{1,9})?)'
    r'|(?:MESSAGE|message|msg|log|line)"\s*:\s*(?P<text>"[^"\\]*(?:\\.[^"\\]*)*"|\[[\d,\s]*\]))'
)


def is_journal(head: bytes) -> bool:
    """Tell whether a file that begins like this holds messages in JSON: a journal, dmesg -J."""
    return _JOURNAL.match(head) is not None


def strip_prefixes(line: str) -> str:
    """Return what the kernel printed, without what loggers and mails have put in front of it."""
    position = 0
    while match := _PREFIX.match(line, position):
        position = match.end()
    return from_position(line, position)


def from_position(line: str, position: int) -> str:
    """Return a line from there on, without what closes the marks that stand before it."""
    rest = line[position:].rstrip()
    for mark in '`|"':
        if mark in line[:position]:
            rest = rest.rstrip(mark + " ")
    return rest


def bounded_lines(
    content: Content, source: str, wanted: Sequence[str] = (), cut: Wrapping | None = None
) -> Iterator[tuple[int, str]]:
    """Yield ``(number, line)`` from 1, without line ends and terminal control sequences.

    With ``wanted``, only lines that hold one of these words, and `LINES_AFTER` after each, are
    yielded.
    Lines that are ``cut`` (`wrapping_of`) are joined.
    Bytes that are not UTF-8 become U+FFFD. Raises InputError past `MAX_LOG_BYTES` and `MAX_LINES`.
    """
    returns = len(_LONE_RETURN.findall(content.head)) > content.head.count(b"\n")
    if is_journal(content.head):
        yield from _journal(content.stream, source)
        return
    if _BASE64_BODY.search(content.head):
        yield from _each(_blocks(_Base64(content.stream), source, returns), source)
        return
    if _QUOTED_PRINTABLE.search(content.head):
        yield from _mail(_blocks(content.stream, source, returns), source)
        return
    if cut is not None:
        whole = cut.joined(_each(_blocks(content.stream, source, returns), source))
        yield from _wanted(whole, wanted)
        return
    words = [word.encode() for word in wanted] or [b""]
    number = 0
    left = 0
    for block in _blocks(content.stream, source, returns):
        if not left and not any(word in block for word in words):
            number += block.count(b"\n")
        else:
            for raw in block.split(b"\n")[:-1]:
                number += 1
                found = any(word in raw for word in words)
                if found or left:
                    yield number, _plain(raw[:MAX_LINE_BYTES].decode("utf-8", "replace"))
                left = LINES_AFTER if found else max(left - 1, 0)
        _check_count(number, source)


def wrapping_of(content: Content) -> Wrapping | None:
    """Return how the long lines of a log are cut; None: they are not, or a journal's format or a
    mail's encoding says by itself what a line is.
    """
    head = content.head
    if is_journal(head) or _BASE64_BODY.search(head) or _QUOTED_PRINTABLE.search(head):
        return None
    return wrapping(head.decode("utf-8", "replace"))


def _each(blocks: Iterator[bytes], source: str) -> Iterator[tuple[int, str]]:
    """Yield all lines with their numbers."""
    number = 0
    for block in blocks:
        for raw in block.split(b"\n")[:-1]:
            number += 1
            yield number, _plain(raw[:MAX_LINE_BYTES].decode("utf-8", "replace"))
        _check_count(number, source)


def _wanted(lines: Iterator[tuple[int, str]], wanted: Sequence[str]) -> Iterator[tuple[int, str]]:
    left = 0
    for number, line in lines:
        found = not wanted or any(word in line for word in wanted)
        if found or left:
            yield number, line[:MAX_LINE_BYTES]
        left = LINES_AFTER if found else max(left - 1, 0)


def _check_count(number: int, source: str) -> None:
    if number > MAX_LINES:
        raise InputError(
            f"more than {MAX_LINES} lines; cut out the boot messages", f"{source}:{number}"
        )


def _mail(blocks: Iterator[bytes], source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a mail, with the encoding called quoted-printable taken off."""
    number = 0
    start = b""
    for block in blocks:
        for raw in block.split(b"\n")[:-1]:
            number += 1
            line = (start + raw.rstrip())[:MAX_LINE_BYTES]
            if line.endswith(b"="):
                start = line[:-1]
                continue
            start = b""
            yield number, _plain(quopri.decodestring(line).decode("utf-8", "replace"))
        _check_count(number, source)


def _plain(line: str) -> str:
    """Return a line without line end, control sequences and the markup of web pages."""
    return _CONTROL_SEQUENCE.sub("", html.unescape(_TAG.sub("", line)).translate(_ASCII))


def _blocks(stream: BinaryIO | _Base64, source: str, returns: bool) -> Iterator[bytes]:
    """Yield whole lines, many at a time; what is too long is dropped."""
    total = 0
    rest = b""
    while block := stream.read(_BLOCK):
        total += len(block)
        if total > MAX_LOG_BYTES:
            raise InputError(
                f"longer than {MAX_LOG_BYTES >> 20} MiB; cut out the boot messages", source
            )
        if b"\0" in block:  # a crash may leave pages of them in a file
            block = block.translate(None, b"\0")  # twenty times as fast as to replace them
        if returns:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        if end:
            whole = rest + block[:end]
            # Colour may begin inside what is looked for, and a blank may be another one.
            yield _COLOUR.sub(b"", whole.replace(b"\xc2\xa0", b" "))
            rest = b""
        rest = (rest + block[end:])[:MAX_LINE_BYTES]
    if rest:
        yield rest + b"\n"


def _journal(stream: BinaryIO, source: str) -> Iterator[tuple[int, str]]:
    """Yield the messages of records in JSON, oldest first, whatever the journal's order.

    Numbers ascend; where the newest stands first they are counted from the end.
    """
    found: list[tuple[float | None, int, int, str]] = []
    total = 0
    stamp: float | None = None
    number = 0
    while raw := stream.readline(MAX_RECORD_BYTES):
        number += 1
        total += len(raw)
        if total > MAX_LOG_BYTES >> 2 or number > MAX_LINES or len(found) > MAX_LINES >> 2:
            raise InputError(
                "a journal longer than any boot; cut out the boot messages", f"{source}:{number}"
            )
        for match in _IN_JOURNAL.finditer(raw.decode("utf-8", "replace")):
            if match["at"]:
                stamp = float(match["at"])
            else:
                found += [
                    (stamp, len(found), number, _plain(line[:MAX_LINE_BYTES]))
                    for line in _message(match["text"]).splitlines()
                ]
    stamps = [at for at, *_ in found if at is not None]
    newest_first = bool(stamps) and stamps[0] > stamps[-1]
    if newest_first:
        # The lines of one message stand in their order all the same.
        found.sort(key=itemgetter(1), reverse=True)
    for *_, at, line in found:
        yield number + 1 - at if newest_first else at, line


class _Base64:
    """A mail, with what is encoded as base64 in it as the bytes that it stands for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Return some bytes; none only at the end."""
        parts: list[bytes] = []
        total = 0
        while total < size and (line := self._stream.readline(MAX_LINE_BYTES)):
            text = line.rstrip()
            if _BASE64_LINE.fullmatch(text) and len(text) % 4 == 0:
                line = base64.b64decode(text)
            parts.append(line)
            total += len(line)
        return b"".join(parts)


def _message(text: str) -> str:
    """Read a message: a string of JSON, or a list of its bytes."""
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    if isinstance(value, list):
        return bytes(byte & 255 for byte in value).decode("utf-8", "replace")
    return str(value)
