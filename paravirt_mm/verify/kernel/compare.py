"""Compare the models with what real kernel code did: replay of oracle files.

An oracle file holds one machine a line (JSON), and under a key like ``linux_3_6`` what the code of
that kernel did to it. The allocator that models the release runs on the same machine, and every
field of the two records must be equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import attrs

from paravirt_mm.errors import InputError, SpecError
from paravirt_mm.machine.model import Machine
from paravirt_mm.machine.paging import PAGE_SHIFT, X86_64
from paravirt_mm.offers import model_of_kernel
from paravirt_mm.options import PluginSpec
from paravirt_mm.printable import printable
from paravirt_mm.registry import Registry, default_registry
from paravirt_mm.run import Outcome
from paravirt_mm.sources import oracle_machines
from paravirt_mm.sources.checker import Checker
from paravirt_mm.sources.content import opened
from paravirt_mm.verify.kernel.record import Call, Guess, Record, measured
from paravirt_mm.verify.log.words import Words

_KERNEL_KEY = re.compile(r"linux_(\d{1,3}(?:_\d{1,3}){1,3})")
MAX_KERNELS = 32
"""More kernels than this in one record are refused."""
ABSENT = "nothing"
"""What is shown for the side that has less."""


@attrs.frozen
class Mismatch:
    """One field of a machine's record that differs: where first, and what both sides have there.

    ``kernel`` is what the real code did, ``model`` what the model did, in the kernel's own words.
    """

    field: str
    place: str
    kernel: str
    model: str

    def __str__(self) -> str:
        where = f"{self.field}, {self.place}" if self.place else self.field
        return f"{where}: kernel {self.kernel} | model {self.model}"


@attrs.frozen
class Replay:
    """One machine under one kernel: what was compared, and what differs."""

    where: str
    machine: str
    kernel: str
    spec: str
    fields: tuple[str, ...]
    differences: tuple[Mismatch, ...]

    @property
    def agrees(self) -> bool:
        """Whether every field is equal."""
        return not self.differences


def replay_file(path: str, registry: Registry | None = None) -> Iterator[Replay]:
    """Replay every machine of an oracle file, plain or compressed, under every kernel in it.

    Raises InputError, with file and line, where the file is not what it should be.
    """
    registry = registry or default_registry()
    empty = True
    source = printable(path)
    with opened(path, source) as content:
        for where, record in oracle_machines.read_records(content.stream, source):
            empty = False
            yield from replay(record, where, registry)
    if empty:
        raise InputError("holds no machine", source)


def replay(record: Mapping[str, Any], where: str, registry: Registry) -> Iterator[Replay]:
    """Replay one machine under every kernel of its record. Raises InputError."""
    machine = oracle_machines.machine(record, where)
    kernels = {key: match[1] for key in record if (match := _KERNEL_KEY.fullmatch(key))}
    if not kernels:
        raise InputError("no kernel's results: expected a key like linux_3_6", where)
    if len(kernels) > MAX_KERNELS:
        raise InputError(f"results of more than {MAX_KERNELS} kernels", where)
    for key, numbers in kernels.items():
        release = numbers.replace("_", ".")
        expected = expected_record(record[key], key, where)
        spec = _spec(release, machine, registry, where)
        run, got = measured(machine, spec, registry, where)
        if run.verdict.outcome is Outcome.ERROR:
            differences = [Mismatch("run", "", "ends", f"fails: {printable(str(run.verdict))}")]
        else:
            differences = compare(expected, got, Words(tuple(map(int, release.split(".")))))
        fields = tuple(
            field.name
            for field in attrs.fields(Record)
            if field.name == "panic" or getattr(expected, field.name) is not None
        )
        yield Replay(where, machine.name, release, spec, fields, tuple(differences))


def _spec(release: str, machine: Machine, registry: Registry, where: str) -> str:
    """Return the allocator that models a release, with as much brk as the machine has."""
    spec = model_of_kernel(registry, release, machine.mode.name)
    if spec is None:
        raise SpecError(f"{where}: no allocator models Linux {release}")
    options = registry.get(PluginSpec.parse(spec).name).options()
    kernel = machine.kernel
    pages = (kernel.brk_end - kernel.brk_start) >> PAGE_SHIFT
    return f"{spec},brk_pages={pages}" if "brk_pages" in {o.name for o in options} else spec


# -- the expected record ---------------------------------------------------------------------------


def expected_record(value: Any, key: str, where: str) -> Record:
    """Read a kernel's results. Raises InputError that names the key at fault."""
    check = Checker(where)
    table = check.table(value, key)

    def rows(name: str, length: int) -> tuple[tuple[int, ...], ...] | None:
        if name not in table:
            return None
        path = f"{key}.{name}"
        return tuple(
            tuple(
                check.address(number, f"{path}[{index}]")
                for number in check.array(item, f"{path}[{index}]", length=length)
            )
            for index, item in enumerate(check.array(table[name], path))
        )

    def text(name: str) -> str | None:
        content = table.get(name)
        return None if content is None else check.text(content, f"{key}.{name}")

    fields: dict[str, Any] = {
        "panic": text("panic"),
        "steps": _calls(check, table, key),
        "guess": _guesses(check, table, key),
        "brk_tables": rows("brk_tables", 2),
        "tables": rows("tables", 3),
        "tables_sha256": text("tables_sha256"),
        "hook_order": rows("hook_order", 2),
        "hook_order_sha256": text("hook_order_sha256"),
        "leaf_runs": rows("leaf_runs", 3),
        "reserved_after": rows("reserved_after", 2),
    }
    if "table_count" in table:
        counts = check.table(table["table_count"], f"{key}.table_count")
        fields["table_count"] = {
            printable(level, 8): check.address(count, f"{key}.table_count.{printable(level, 8)}")
            for level, count in counts.items()
        }
    return Record(**fields)


def _calls(check: Checker, table: Mapping[str, Any], key: str) -> tuple[Call, ...] | None:
    if "steps" not in table:
        return None
    calls = []
    for index, item in enumerate(check.array(table["steps"], f"{key}.steps")):
        path = f"{key}.steps[{index}]"
        step = check.table(item, path)
        pieces = []
        for part in check.array(check.need(step, "ranges", path + "."), f"{path}.ranges"):
            start, end, name = check.array(part, f"{path}.ranges", length=3)
            pieces.append(
                (
                    check.address(start, f"{path}.ranges"),
                    check.address(end, f"{path}.ranges"),
                    printable(check.text(name, f"{path}.ranges"), 8),
                )
            )
        start = check.address(check.need(step, "start", path + "."), f"{path}.start")
        end = check.address(check.need(step, "end", path + "."), f"{path}.end")
        calls.append(Call(start, end, tuple(pieces)))
    return tuple(calls)


def _guesses(check: Checker, table: Mapping[str, Any], key: str) -> tuple[Guess, ...] | None:
    if "guess" not in table:
        return None
    guesses = []
    for index, item in enumerate(check.array(table["guess"], f"{key}.guess")):
        path = f"{key}.guess[{index}]"
        block = check.table(item, path)
        start = check.address(check.need(block, "start", path + "."), f"{path}.start")
        top = check.address(check.need(block, "top", path + "."), f"{path}.top")
        used = block.get("used_end")
        guesses.append(
            Guess(start, top, None if used is None else check.address(used, f"{path}.used_end"))
        )
    return tuple(guesses)


# -- comparison ------------------------------------------------------------------------------------


def compare(kernel: Record, model: Record, words: Words) -> list[Mismatch]:
    """Return what differs, field by field, in the order in which a kernel does things.

    Of each field the first difference is given. Fields that the file leaves out are not compared;
    where only a hash is there and differs, the counts by level are told.
    """
    found: list[Mismatch] = []
    if kernel.panic != model.panic:
        found.append(Mismatch("panic", "", _panic(kernel.panic), _panic(model.panic)))
    lists: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("steps", "call", lambda call: _call(call, words)),
        ("guess", "block", lambda guess: _guess(guess, words)),
        ("brk_tables", "page", lambda page: words.brk_table(*page)),
        ("hook_order", "table", _hook),
        ("tables", "table", _table),
        ("leaf_runs", "run", lambda run: f"{words.memory(*run[:2])} {_page_size(run[2])}"),
        ("reserved_after", "region", lambda region: words.reserved(*region)),
    )
    for field, noun, show in lists:
        expected, got = getattr(kernel, field), getattr(model, field)
        if expected is None:
            found += _hash_difference(kernel, model, field)
        elif expected != got:
            found.append(first_difference(field, noun, expected, got, show))
        else:
            found += _hash_difference(kernel, model, field)
    if kernel.table_count is not None and kernel.table_count != model.table_count:
        counts = _counts(kernel.table_count), _counts(model.table_count or {})
        found.append(Mismatch("table_count", "", *counts))
    return found


def first_difference(
    field: str,
    noun: str,
    expected: Sequence[Any],
    got: Sequence[Any],
    show: Callable[[Any], str],
) -> Mismatch:
    """Return the first place where two lists that are not equal differ; ``show`` words an item."""
    pairs = enumerate(zip_longest(expected, got), 1)
    number, (left, right) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    texts = [ABSENT if item is None else show(item) for item in (left, right)]
    place = f"{noun} {number} of {len(expected)}"
    if len(expected) != len(got):
        place += f" (model: {len(got)})"
    return Mismatch(field, place, *texts)


def _hash_difference(kernel: Record, model: Record, field: str) -> Iterator[Mismatch]:
    name = f"{field}_sha256"
    expected, got = getattr(kernel, name, None), getattr(model, name, None)
    if expected is not None and expected != got:
        yield Mismatch(name, _counts(model.table_count or {}), expected, str(got))


def _panic(text: str | None) -> str:
    return "goes on" if text is None else f"panics: {printable(text)}"


def _call(call: Call, words: Words) -> str:
    pieces = ",".join(words.page_range(*piece) for piece in call.ranges)
    return words.mapped_range(call.start, call.end) + pieces


def _guess(guess: Guess, words: Words) -> str:
    used = "none used" if guess.used_end is None else f"used up to {guess.used_end - 1:#x}"
    pages = (guess.top - guess.start) >> PAGE_SHIFT
    return f"tables @ {words.memory(guess.start, guess.top)} ({pages} pages, {used})"


_HOOKS = {1: "alloc_pte", 2: "alloc_pmd", 3: "alloc_pud", 4: "alloc_p4d"}


def _hook(item: tuple[int, int]) -> str:
    level, pfn = item
    return f"{_HOOKS.get(level, f'alloc L{level}')}({pfn:#x})"


def _table(item: tuple[int, int, int]) -> str:
    level, pfn, address = item
    return f"L{level} table in pfn {pfn:#x} for {address:#x}"


def _page_size(level: int) -> str:
    return f"page {X86_64.page_name(level)}" if 1 <= level <= X86_64.root_level else f"L{level}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{level} {count}" for level, count in sorted(counts.items()))
