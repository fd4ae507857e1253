"""The command line, run in the process of the tests (fixture ``paravirt_mm``); plugins that are
written for it, and what stands for a terminal.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from paravirt_mm.cli.main import main


@dataclass
class Result:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs a command as its entry point does."""

    def run(*arguments: object, stdin: str = "") -> Result:
        given = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode())))
        monkeypatch.setattr(sys, "argv", ["paravirt-mm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run


def written_plugin(folder: Path, hook: str, body: str) -> str:
    """Write an allocator that does otherwise in one hook, in a line; return how it is named."""
    (folder / "mine.py").write_text(
        "import os\nimport attrs\nfrom paravirt_mm import hookimpl\n"
        "from paravirt_mm.testing import AscendingAllocator\n"
        "@attrs.frozen\nclass Fails(AscendingAllocator):\n    @hookimpl\n"
        f"    def {hook}(self):\n        {body}\n"
    )
    return f"{folder}/mine.py:Fails"


GOOD_AND_WATCH = '''
from typing import ClassVar
import attrs
from paravirt_mm import API_VERSION, hookimpl
from paravirt_mm.testing import AscendingAllocator


@attrs.frozen
class Good(AscendingAllocator):
    """Good."""


@attrs.frozen
class Watch:
    pvmm_api: ClassVar[int] = API_VERSION
    path: str = "watched.txt"
    fails_at: str = "nowhere"

    def _say(self, text):
        with open(self.path, "a") as out:
            print(text, file=out)
        if text == self.fails_at:
            raise RuntimeError(f"not {text}")

    @hookimpl
    def pvmm_begin(self):
        self._say("begin")

    @hookimpl
    def pvmm_observe(self, event):
        self._say(type(event).__name__)

    @hookimpl
    def pvmm_end(self):
        self._say("end")
'''
"""An allocator, and an observer that writes down what it hears until it fails."""


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True
