"""A line of a boot log beside the line that a model predicts."""

from __future__ import annotations

from enum import StrEnum

import attrs


class LineVerdict(StrEnum):
    """What became of a line."""

    MATCH = "match"
    DIFFERS = "differs"
    UNCHECKED = "cannot be checked"


@attrs.frozen
class LogLine:
    """A printed line (None: only predicted), the predicted one (None: only printed), the verdict.

    ``number`` is that of the printed line in its file; ``why`` explains what is not checked.
    """

    verdict: LineVerdict
    number: int | None
    printed: str | None
    predicted: str | None
    why: str = ""
