"""The child process of `paravirt_mm.sweep.guard`: ``python -m paravirt_mm.sweep.child FD``.

It gets the settings, then parts with the number of records that are known already, and answers with
records and None at the end of a part. It ends when its parent does.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from paravirt_mm.guard import limit_memory
from paravirt_mm.registry import default_registry
from paravirt_mm.sweep.settings import RunRecord, Settings
from paravirt_mm.sweep.work import records

_GRACE = 5.0
"""Seconds beyond twice the limit after which a child whose parent is gone ends by itself."""


def serve(connection: Connection) -> None:
    """Work until the parent hangs up."""
    settings: Settings = connection.recv()
    registry = default_registry()
    limit_memory(settings.memory_limit)
    while True:
        part, done = connection.recv()
        _watch(settings)
        for record in records(part, settings, registry, done):
            connection.send(record)
            _watch(settings)
            if isinstance(record, RunRecord):
                del record  # its figures are the largest thing that is left of a run
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(None)


def _watch(settings: Settings) -> None:
    signal.setitimer(signal.ITIMER_REAL, 2 * settings.time_limit + _GRACE)


def main() -> None:
    """Serve on the descriptor of the command line; nothing that a plugin prints goes anywhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, BrokenPipeError):
        serve(connection)


if __name__ == "__main__":
    main()
