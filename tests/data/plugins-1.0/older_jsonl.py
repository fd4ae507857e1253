"""An observer that writes every event as one JSON line."""

import json
from typing import ClassVar

import attrs

from paravirt_mm import Event, hookimpl


@attrs.frozen
class JsonLines:
    """Write every event as one JSON line.

    path
        File to append to.
    """

    pvmm_api: ClassVar[int] = 1

    path: str = "events.jsonl"

    @hookimpl
    def pvmm_observe(self, event: Event) -> None:
        """Append the event."""
        record = {"event": type(event).__name__, **attrs.asdict(event)}
        with open(self.path, "a") as out:
            out.write(json.dumps(record, default=str) + "\n")
