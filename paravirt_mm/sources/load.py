"""Open anything: a path, ``-`` for standard input, or the name of a machine of this package.

The format is told by the first bytes of content (`paravirt_mm.sources.content`), not by the name.
Folders and tar archives hold many machines, unless they are a copy of /sys/firmware/memmap.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from paravirt_mm.errors import InputError
from paravirt_mm.machine.model import Machine
from paravirt_mm.printable import printable
from paravirt_mm.sources import archives, firmware_map, machine_file, oracle_machines
from paravirt_mm.sources.archives import MAX_FILES
from paravirt_mm.sources.bootlog.facts import BootLog
from paravirt_mm.sources.bundled import bundled, bundled_machines
from paravirt_mm.sources.content import Content, Spec, content_of, opened
from paravirt_mm.sources.foreign import foreign
from paravirt_mm.sources.iomem import read_iomem
from paravirt_mm.sources.lines import is_journal

Loaded = tuple[str, Machine | InputError]
"""Where something was read from, and the machine that it is, or why it is none."""
NOTHING = "holds no machine: no boot log, firmware map or machine file"

_IOMEM = re.compile(
    rb"(?:[^\n]{0,200}/proc/iomem\s{0,9}\n)?[>|`\s]{0,99}[0-9a-fA-F]{8,16}-[0-9a-fA-F]{8,16} : "
)
"""With what a terminal or a mail puts before it."""
_MACHINE_TOML = re.compile(rb'^[ \t]{0,99}format[ \t]{0,99}=[ \t]{0,99}"paravirt-mm', re.MULTILINE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_SUFFIXES = re.compile(
    r"(?:\.(?:txt|log|dmesg|gz|bz2|xz|zst|zip|toml|json|jsonl|tar|tgz))+$", re.IGNORECASE
)


def load(spec: Spec, boot: int | None = None) -> Machine:
    """Return the one machine that ``spec`` describes; ``boot`` chooses among the boots of a log.

    Raises InputError where there is none, or more than one (`load_all` takes those).
    """
    machines = load_all([spec], boot)
    first = next(machines)
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


def load_each(specs: Iterable[Spec], boot: int | None = None) -> Iterator[Loaded]:
    """Yield ``(source, machine or error)`` for all of ``specs``: one bad log costs no other.

    Every spec yields something: one that holds nothing yields an error that says so.
    """
    for spec in specs:
        source = printable(str(spec))
        found = False
        try:
            for where, outcome in _outcomes(spec, source, boot):
                found = True
                yield where, outcome
        except OSError as error:
            yield source, InputError(f"cannot be read: {printable(str(error), 200)}", source)
        except InputError as error:
            yield source, error
        else:
            if not found:
                yield source, InputError(NOTHING, source)


def read_boot_log(spec: Spec, boot: int | None = None) -> BootLog:
    """Read a boot log; ``boot`` chooses one of several in the file, from 1.

    Raises InputError where it cannot be read, is no boot log, holds fewer boots, or contradicts
    itself. A log without memory map is returned, with ``machine`` None and ``missing`` saying why.
    """
    source = printable(str(spec))
    with opened(spec, source) as content:
        if archives.is_archive(content.head):
            raise InputError("an archive; unpack it, and give its logs", source)
        return _scanned(content, source, machine_name(Path(spec).name), boot)


def machines_in(
    content: Content, source: str, file_name: str, boot: int | None
) -> Iterator[tuple[str, Machine]]:
    """Yield ``(where, machine)`` of what one file holds that is no archive. Raises InputError."""
    head, name = content.head, machine_name(file_name)
    if archives.is_archive(head):
        raise InputError("an archive inside an archive; unpack it", source)
    if is_journal(head):
        yield source, _of_log(content, source, name, boot)
    elif head.lstrip()[:1] == b"{":
        if b'"e820"' in head:
            for where, record in oracle_machines.read_records(content.stream, source):
                yield where, oracle_machines.machine(record, where)
        else:
            yield source, machine_file.read_json(_text(content, source), source)
    elif file_name.endswith(".toml") or _MACHINE_TOML.search(head):
        yield source, machine_file.read_toml(_text(content, source), source)
    elif _IOMEM.match(head):
        yield source, read_iomem(content, source, name)
    else:
        yield source, _of_log(content, source, name, boot)


def files_below(folder: Path, source: str) -> Iterator[Path]:
    """Yield the files of a folder and of those below it, sorted; hidden ones are left out."""
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


def machine_name(file_name: str) -> str:
    """Return a machine name made of a file's: its stem, with harmless characters only."""
    if file_name in {"-", ""}:
        return "stdin"
    stem = _SUFFIXES.sub("", file_name[-255:]) or file_name
    return _UNSAFE.sub("-", stem).strip("-.")[:80] or "machine"


def _outcomes(spec: Spec, source: str, boot: int | None) -> Iterator[Loaded]:
    path = Path(spec)
    if str(spec) != "-" and not path.exists():
        yield source, _named(str(spec))
    elif path.is_dir() and firmware_map.is_memmap(path):
        yield source, firmware_map.read_folder(path, source, machine_name(path.resolve().name))
    elif path.is_dir():
        for file in files_below(path, source):
            where = printable(str(file))
            try:
                yield from _of_file(file, where, boot)
            except InputError as error:
                yield where, error
    else:
        yield from _of_file(spec, source, boot)


def _named(name: str) -> Machine:
    if name in (names := bundled_machines()):
        return bundled(name)
    close = difflib.get_close_matches(name[:80], names, 1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"no such file, and no machine of that name comes with the package{hint} "
        f"({', '.join(names)})",
        printable(name),
    )


def _of_file(spec: Spec, source: str, boot: int | None) -> Iterator[Loaded]:
    with opened(spec, source) as content:
        file_name = Path(spec).name
        if archives.is_archive(content.head):
            yield from _of_archive(content, source, machine_name(file_name), boot)
        else:
            yield from machines_in(content, source, file_name, boot)


def _of_archive(content: Content, source: str, name: str, boot: int | None) -> Iterator[Loaded]:
    """Read a tar archive in passing: a memmap folder, or one source of machines a member."""
    values = firmware_map.Values(source)
    for member in archives.members(content.stream, source):
        where = f"{source}:{printable(member.name, 255)}"
        try:
            if member.problem:
                raise InputError(member.problem, where)
            if not values.take(member.name, member.stream):
                inner = content_of(member.stream, where)
                yield from machines_in(inner, where, Path(member.name).name, boot)
        except InputError as error:
            if error.where == source:
                raise  # it is the archive that cannot be read
            yield where, error
    if values:
        yield source, values.machine(name)


def _scanned(content: Content, source: str, name: str, boot: int | None) -> BootLog:
    if other := foreign(content.head):
        raise InputError(other, source)
    # A tenth of a command's start, and most commands read no log.
    from paravirt_mm.sources.bootlog.read import scan_boot_log

    return scan_boot_log(content, source, name, boot)


def _of_log(content: Content, source: str, name: str, boot: int | None) -> Machine:
    log = _scanned(content, source, name, boot)
    if log.machine is None:
        raise InputError(log.missing or NOTHING, source)
    return log.machine


def _text(content: Content, source: str) -> str:
    whole = content.stream.read(machine_file.MAX_BYTES + 1)
    if len(whole) > machine_file.MAX_BYTES:
        raise InputError(f"longer than {machine_file.MAX_BYTES >> 20} MiB", source)
    try:
        return whole.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", source) from None
