"""What text is written on: how wide it is, and whether it takes colours and drawn lines."""

from __future__ import annotations

import attrs

RED, GREEN, BOLD, RESET = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


@attrs.frozen
class Paper:
    """``width`` in columns; ``colour``: a terminal that knows colours, and a reader who wants them;
    ``drawn``: characters beyond ASCII can be written.
    """

    width: int = 100
    colour: bool = False
    drawn: bool = True

    def good(self, text: str) -> str:
        """Return text that tells something better than the rest."""
        return f"{GREEN}{text}{RESET}" if self.colour else text

    def bad(self, text: str) -> str:
        """Return text that tells something worse than the rest."""
        return f"{RED}{text}{RESET}" if self.colour else text

    def strong(self, text: str) -> str:
        """Return text that stands out."""
        return f"{BOLD}{text}{RESET}" if self.colour else text


PLAIN = Paper()
"""A file or a pipe."""
