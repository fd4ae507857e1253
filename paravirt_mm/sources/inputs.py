"""Inputs divided into parts that can be read on their own, in another process or on another host.

A part names or carries what it takes to make its machines, and says by a digest whether it is still
the same one later. Files stay files; members of archives and lines of record files are carried, so
that an archive is unpacked once.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.printable import printable
from paravirt_mm.sources import archives, firmware_map
from paravirt_mm.sources.content import content_of, opened, reading
from paravirt_mm.sources.load import NOTHING, Loaded, files_below, load_each, machines_in
from paravirt_mm.sources.oracle_machines import MAX_RECORD_BYTES

MAX_PART_BYTES = 64 << 20
"""What is longer is not carried: it costs an error, not the memory."""

_RECORD_FILE = re.compile(r"\.jsonl(?:\.(?:gz|bz2|xz|zst|zip))?$", re.IGNORECASE)


class Part(Protocol):
    """One part of the inputs."""

    @property
    def source(self) -> str:
        """Where it comes from, for people; harmless to print."""

    def digest(self) -> str:
        """Return what changes when the part does."""

    def machines(self, boot: int | None) -> Iterator[Loaded]:
        """Read it: ``(source, machine or error)``, like `paravirt_mm.sources.load_each`."""


@attrs.frozen
class FilePart:
    """A file, a copy of /sys/firmware/memmap, or the name of a bundled machine."""

    path: str

    @property
    def source(self) -> str:
        """The path as given."""
        return printable(self.path)

    def digest(self) -> str:
        """Name, size and time of change."""
        try:
            status = Path(self.path).stat()
        except (OSError, ValueError):
            return self.path
        return f"{self.path}\0{status.st_size}\0{status.st_mtime_ns}"

    def machines(self, boot: int | None) -> Iterator[Loaded]:
        """Read the file."""
        return load_each([self.path], boot)


@attrs.frozen
class CarriedPart:
    """The content of an archive's member, of a line of a record file, or of standard input.

    ``problem`` says why there is no content.
    """

    source: str
    name: str
    content: bytes = attrs.field(repr=False)
    problem: str = ""

    def digest(self) -> str:
        """Name and content."""
        return f"{self.source}\0{hashlib.sha256(self.content).hexdigest()}"

    def machines(self, boot: int | None) -> Iterator[Loaded]:
        """Read the content."""
        try:
            if self.problem:
                raise InputError(self.problem, self.source)
            with reading(self.source):
                content = content_of(io.BytesIO(self.content), self.source)
                for _, machine in machines_in(content, self.source, self.name, boot):
                    yield self.source, machine
        except InputError as error:
            yield self.source, error


@attrs.frozen
class GeneratedPart:
    """One machine of `paravirt_mm.testing.generate`."""

    seed: int
    number: int

    @property
    def source(self) -> str:
        """Seed and number."""
        return f"generated-{self.seed}-{self.number}"

    def digest(self) -> str:
        """The same."""
        return self.source

    def machines(self, boot: int | None) -> Iterator[Loaded]:
        """Make it."""
        from paravirt_mm.sources.generated import generated

        yield self.source, generated(self.number, self.seed)


def divide(specs: Iterable[str]) -> Iterator[Part]:
    """Yield the parts of files, folders, archives and names of bundled machines, in order.

    What cannot be opened or holds nothing becomes a part as well: reading it gives the error.
    """
    for spec in specs:
        path = Path(spec)
        if spec == "-" or not path.is_dir():
            yield from _parts_of_file(spec)
        elif firmware_map.is_memmap(path):
            yield FilePart(spec)
        else:
            found = False
            try:
                for file in files_below(path, printable(spec)):
                    found = True
                    yield from _parts_of_file(str(file))
            except InputError as error:
                yield CarriedPart(printable(spec), path.name, b"", _message(error))
            else:
                if not found:
                    yield CarriedPart(printable(spec), path.name, b"", NOTHING)


def _parts_of_file(spec: str) -> Iterator[Part]:
    path = Path(spec)
    source = printable(spec)
    try:
        if spec != "-" and not path.is_file():
            yield FilePart(spec)
            return
        with opened(spec, source) as content:
            if archives.is_archive(content.head):
                yield from _members(content.stream, spec, source)
            elif _RECORD_FILE.search(path.name):
                yield from _records(content.stream, spec, source)
            elif spec == "-":
                yield _carried(source, "-", content.stream, "give a file")
            else:
                yield FilePart(spec)
    except InputError as error:
        yield CarriedPart(source, path.name, b"", _message(error))


def _message(error: InputError) -> str:
    return str(error).removeprefix(f"{error.where}: ")


def _carried(source: str, name: str, stream: BinaryIO, remedy: str, problem: str = "") -> Part:
    content = b"" if problem else stream.read(MAX_PART_BYTES + 1)
    if len(content) > MAX_PART_BYTES:
        content, problem = b"", f"longer than {MAX_PART_BYTES >> 20} MiB; {remedy}"
    return CarriedPart(source, name, content, problem)


def _members(stream: BinaryIO, spec: str, source: str) -> Iterator[Part]:
    """Yield the members of a tar archive; one that copies /sys/firmware/memmap stays whole."""
    found = False
    for member in archives.members(stream, source):
        if not found and spec != "-" and firmware_map.is_part(member.name):
            yield FilePart(spec)
            return
        found = True
        where = f"{source}:{printable(member.name, 255)}"
        name = Path(member.name).name
        yield _carried(where, name, member.stream, "unpack the archive", member.problem)
    if not found:
        yield CarriedPart(source, Path(spec).name, b"", NOTHING)


def _records(stream: BinaryIO, spec: str, source: str) -> Iterator[Part]:
    number, found = 0, False
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if line.strip():
            found = True
            yield CarriedPart(f"{source}:{number}", "record.json", line)
    if not found:
        yield CarriedPart(source, Path(spec).name, b"", NOTHING)
