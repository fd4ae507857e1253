"""How things show themselves in a notebook.

The classes are far below what can draw them. So they only say that they can be shown, and
`paravirt_mm.view.notebook` is looked up by name when somebody looks.
"""

from __future__ import annotations

from importlib import import_module

_DRAWS = "paravirt_mm.view.notebook"


class Shown:
    """Something that Jupyter shows as HTML, and as a picture where HTML is not wanted."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        text: str = import_module(_DRAWS).html(self)
        return text

    def _repr_svg_(self) -> str | None:
        """Return a picture; None where there is nothing to draw."""
        picture: str | None = import_module(_DRAWS).picture(self)
        return picture
