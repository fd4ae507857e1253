"""The command line, run in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from paravirt_mm.cli.main import main


@dataclass
class Result:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def paravirt_mm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line as its entry point does."""

    def run(*arguments: str, stdin: str = "") -> Result:
        given = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode())))
        monkeypatch.setattr(sys, "argv", ["paravirt-mm", *arguments])
        monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run
