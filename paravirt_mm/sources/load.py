"""Open anything: a path, ``-`` for standard input, or the name of a machine of this package.

The format is told by the first `HEAD_BYTES` of content, not by the name. Compressed files (gzip,
bzip2, xz) are read through; bounds count after decompression. Folders and tar archives hold many
machines, unless they are a copy of /sys/firmware/memmap.
"""

from __future__ import annotations

import io
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.printable import printable
from paravirt_mm.sources import firmware_map, machine_file, oracle_machines
from paravirt_mm.sources.bootlog.facts import BootLog
from paravirt_mm.sources.bootlog.linux import scan_boot_log
from paravirt_mm.sources.bundled import bundled, bundled_machines
from paravirt_mm.sources.iomem import read_iomem

HEAD_BYTES = 1 << 16
"""How much of a file is looked at to tell its format."""
MAX_FILES = 1 << 20
"""A folder or archive with more files than this is refused."""

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_TAR_MAGIC_AT = 257
_IOMEM = re.compile(rb"\s{0,99}[0-9a-f]{8,16}-[0-9a-f]{8,16} : ")
_MACHINE_TOML = re.compile(rb'^[ \t]*format[ \t]*=[ \t]*"paravirt-mm', re.MULTILINE)
_MEMMAP_MEMBER = re.compile(r"(?:.*/)?(\d{1,6})/(start|end|type)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_SUFFIXES = re.compile(
    r"(?:\.(?:txt|log|dmesg|gz|bz2|xz|toml|json|jsonl|tar|tgz))+$", re.IGNORECASE
)

Spec = str | Path
if TYPE_CHECKING:
    _Stream: TypeAlias = io.BufferedReader[Any]


def load(spec: Spec, boot: int | None = None) -> Machine:
    """Return the one machine that ``spec`` describes; ``boot`` chooses among the boots of a log.

    Raises InputError where there is none, or more than one (`load_all` takes those).
    """
    machines = load_all([spec], boot)
    first = next(machines, None)
    if first is None:
        raise InputError("holds no machine", printable(str(spec)))
    if next(machines, None) is not None:
        raise InputError("holds more than one machine; name one of its files", printable(str(spec)))
    return first


def load_all(specs: Iterable[Spec], boot: int | None = None) -> Iterator[Machine]:
    """Yield every machine of ``specs``: files, folders, archives, names of bundled machines.

    Raises InputError at the first that cannot be read; `load_each` goes on instead.
    """
    for _, outcome in load_each(specs, boot):
        if isinstance(outcome, InputError):
            raise outcome
        yield outcome


def load_each(
    specs: Iterable[Spec], boot: int | None = None
) -> Iterator[tuple[str, Machine | InputError]]:
    """Yield ``(source, machine or error)`` for all of ``specs``: one bad log costs no other."""
    for spec in specs:
        path = Path(spec)
        source = printable(str(spec))
        try:
            if str(spec) != "-" and not path.exists():
                yield source, _named(str(spec))
            elif path.is_dir() and not firmware_map.is_memmap(path):
                for file in _files(path, source):
                    yield from _outcomes(file, boot)
            elif path.is_dir():
                yield source, firmware_map.read_folder(path, source, _name(path.resolve().name))
            else:
                yield from _outcomes(path, boot)
        except OSError as error:
            yield source, InputError(f"cannot be read: {printable(str(error))}", source)
        except InputError as error:
            yield source, error


def read_boot_log(spec: Spec, boot: int | None = None) -> BootLog:
    """Read a boot log; ``boot`` chooses one of several in the file, from 1.

    Raises InputError where it cannot be read, is no boot log, holds fewer boots, or contradicts
    itself. A log without memory map is returned, with ``machine`` None and ``missing`` saying why.
    """
    source = printable(str(spec))
    with opened(spec, source) as stream:
        return scan_boot_log(cast(BinaryIO, stream), source, _name(Path(spec).name), boot)


def _named(name: str) -> Machine:
    if name in (names := bundled_machines()):
        return bundled(name)
    raise InputError(
        f"no such file, and no machine of that name comes with the package ({', '.join(names)})",
        printable(name),
    )


def _files(folder: Path, source: str) -> Iterator[Path]:
    count = 0
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                raise InputError(f"more than {MAX_FILES} files", source)
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _outcomes(path: Path, boot: int | None) -> Iterator[tuple[str, Machine | InputError]]:
    source = printable(str(path))
    try:
        with opened(path, source) as stream:
            yield from _machines(stream, source, path.name, boot)
    except InputError as error:
        yield source, error


@contextmanager
def opened(spec: Spec, source: str) -> Iterator[_Stream]:
    """Open for reading, decompressed; what reading can raise becomes InputError."""
    with ExitStack() as stack:
        try:
            if str(spec) == "-":
                stream = cast("_Stream", sys.stdin.buffer)
            else:
                stream = cast("_Stream", stack.enter_context(_open_file(spec, source)))
            if unpacked := _unpacked(stream):
                stack.enter_context(unpacked)
                stream = stack.enter_context(io.BufferedReader(unpacked, HEAD_BYTES))
            yield stream
        except InputError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot be read: {printable(reason)}", source) from None
        except Exception as error:
            # lzma and tarfile are imported only where a file needs them: their errors go by name.
            if type(error).__name__ == "LZMAError" or type(error).__module__ == "tarfile":
                raise InputError(f"cannot be read: {printable(str(error))}", source) from None
            raise


def _open_file(spec: Spec, source: str) -> BinaryIO:
    try:
        return Path(spec).open("rb", buffering=HEAD_BYTES)
    except ValueError:
        raise InputError("a path cannot hold a NUL", source) from None


def _unpacked(stream: _Stream) -> io.RawIOBase | None:
    """Return what decompresses ``stream``; None where it is not compressed."""
    head = stream.peek(6)
    unpacker: Any = None
    if head.startswith(_GZIP):
        import gzip

        unpacker = gzip.GzipFile(fileobj=stream)
    elif head.startswith(_BZIP2):
        import bz2

        unpacker = bz2.BZ2File(stream)
    elif head.startswith(_XZ):
        import lzma

        unpacker = lzma.LZMAFile(stream)  # noqa: SIM115 - the caller closes it
    return cast("io.RawIOBase | None", unpacker)


def _machines(
    stream: _Stream, source: str, file_name: str, boot: int | None, nested: bool = False
) -> Iterator[tuple[str, Machine]]:
    head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    name = _name(file_name)
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        if nested:
            raise InputError("an archive inside an archive; unpack it", source)
        yield from _archive(stream, source, name, boot)
    elif head.lstrip()[:1] == b"{":
        if b'"e820"' in head:
            for where, record in oracle_machines.read_records(stream, source):
                yield where, oracle_machines.machine(record, where)
        else:
            yield source, machine_file.read_json(_text(stream, source), source)
    elif file_name.endswith(".toml") or _MACHINE_TOML.search(head):
        yield source, machine_file.read_toml(_text(stream, source), source)
    elif _IOMEM.match(head):
        yield source, read_iomem(stream, source, name)
    else:
        log = scan_boot_log(stream, source, name, boot)
        if log.machine is None:
            raise InputError(log.missing or "holds no machine", source)
        yield source, log.machine


def _archive(
    stream: _Stream, source: str, name: str, boot: int | None
) -> Iterator[tuple[str, Machine]]:
    """Read a tar archive in passing: a memmap folder, or one machine source a member."""
    import tarfile

    values: dict[tuple[int, str], str] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for count, member in enumerate(archive):
            if count > MAX_FILES:
                raise InputError(f"more than {MAX_FILES} files", source)
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                continue
            if entry := _MEMMAP_MEMBER.fullmatch(member.name):
                content = file.read(firmware_map.MAX_VALUE_BYTES)
                values[int(entry[1]), entry[2]] = content.decode("ascii", "replace")
                if len(values) > firmware_map.MAX_ENTRIES * len(firmware_map.PARTS):
                    raise InputError(f"more than {firmware_map.MAX_ENTRIES} entries", source)
                continue
            where = f"{source}:{printable(member.name)}"
            inner = io.BufferedReader(cast(io.RawIOBase, file), HEAD_BYTES)
            yield from _machines(inner, where, Path(member.name).name, boot, nested=True)
    if values:
        yield source, firmware_map.from_values(values, source, name)


def _text(stream: _Stream, source: str) -> str:
    content = stream.read(machine_file.MAX_BYTES + 1)
    if len(content) > machine_file.MAX_BYTES:
        raise InputError(f"longer than {machine_file.MAX_BYTES >> 20} MiB", source)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", source) from None


def _name(file_name: str) -> str:
    """Return a machine name made of a file's: its stem, with harmless characters only."""
    if file_name in ("-", ""):
        return "stdin"
    stem = _SUFFIXES.sub("", file_name) or file_name
    return _UNSAFE.sub("-", stem).strip("-.")[:80] or "machine"
