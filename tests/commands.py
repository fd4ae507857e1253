"""The command line, run in the process of the tests (fixture ``paravirt_mm``)."""

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
