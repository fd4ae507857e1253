"""The child process of `paravirt_mm.sweep.guard`: ``python -m paravirt_mm.sweep.child FD``.

It gets the settings and says when it is ready, then gets parts with the number of records that are
known already, and answers with records, as children of `paravirt_mm.guard` do. It ends when its
parent does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

from paravirt_mm.errors import ParavirtMmError
from paravirt_mm.guard import end_with_parent, limit_memory, send_items
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import default_registry
from paravirt_mm.sources.inputs import Part
from paravirt_mm.sweep.settings import Record, Settings
from paravirt_mm.sweep.work import records

READY = "ready"


def serve(connection: Connection) -> None:
    """Work until the parent hangs up."""
    settings: Settings = connection.recv()
    registry = default_registry()
    for role, specs in (("allocator", settings.allocators), ("backend", settings.backends)):
        for text in specs:
            with suppress(ParavirtMmError):  # its rows will say so
                registry.make(PluginSpec.parse(text), role)
    limit_memory(settings.memory_limit)
    connection.send(READY)
    while True:
        part, done = connection.recv()

        def work(part: Part = part, done: int = done) -> Iterator[Record]:
            return records(part, settings, registry, done)

        send_items(connection, work, settings.limits)


def main() -> None:
    """Serve on the descriptor of the command line; nothing that a plugin prints goes anywhere."""
    end_with_parent()
    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, ConnectionError):
        serve(connection)


if __name__ == "__main__":
    main()
