"""The code blocks of a page of documentation, as things that can be tried."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (paravirt-mm (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
_FILE = re.compile(r"# file: (\S+)\n")


@attrs.frozen
class Block:
    """A block: its language, text, the line where it begins."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name under which the reader is to save it, if there is one."""
        match = _FILE.match(self.text)
        return match[1] if match else None


@attrs.frozen
class Command:
    """A command line of a console block, split as a shell does, and what the page shows of it."""

    words: tuple[str, ...]
    output: tuple[str, ...]
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Block(match[1], match[2], text.count("\n", 0, match.start()) + 2)


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of console blocks, and those that stand indented by themselves."""
    for block in blocks(page):
        if block.language == "console":
            yield from _console(block)
    text = page.read_text(encoding="utf-8")
    for match in _INDENTED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Command(tuple(shlex.split(match[1].replace("\\\n", " "))), (), line)


def _console(block: Block) -> Iterator[Command]:
    chunks: list[tuple[int, str, list[str]]] = []
    for number, text in enumerate(block.text.splitlines(), block.line):
        if text.startswith("$ "):
            chunks.append((number, text[2:], []))
        elif chunks:
            chunks[-1][2].append(text)
    for number, text, output in chunks:
        words = shlex.split(text, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            last = end == len(words)
            # Where the output goes is the shell's affair.
            own = next((n for n, word in enumerate(words[:end]) if word in (">", ">>", "|")), end)
            yield Command(tuple(words[:own]), tuple(output) if last else (), number)
            words = words[end + 1 :]


def shows(output: tuple[str, ...], said: str) -> bool:
    """Tell whether a command said what the page shows; a line ``...`` stands for any lines."""
    lines = [line.rstrip() for line in said.splitlines()]
    at = 0
    for part in "\n".join(output).split("..."):
        wanted = [line.rstrip() for line in part.strip("\n").splitlines()]
        if not wanted:
            continue
        while lines[at : at + len(wanted)] != wanted:
            at += 1
            if at > len(lines):
                return False
        at += len(wanted)
    return True
