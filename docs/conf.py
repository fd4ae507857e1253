"""The documentation site: ``make docs``. Warnings are errors."""

import sys
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

from paravirt_mm._version import __version__

project = "paravirt_mm"
author = "the paravirt_mm authors"
project_copyright = "the paravirt_mm authors"
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["README.md", "_build"]
# Links to files of the source tree lead somewhere on GitHub; tests/docs checks all of them.
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
html_title = "paravirt_mm"
html_copy_source = False


def setup(app: Any) -> None:
    """Write the pages that come from the code itself."""
    sys.path[:0] = [str(Path(__file__).parent)]
    import generate

    app.add_lexer("mermaid", TextLexer)
    app.connect("builder-inited", lambda _: generate.write(Path(__file__).parent / "reference"))
