"""Machines in TOML or JSON of our own: the format is documented in ``docs/machine-file.md``.

Both carry the same keys. TOML has hexadecimal numbers; in JSON they are strings like "0x1000".
Reading is strict: an unknown key is an error, so that a misspelt one is noticed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from paravirt_mm.errors import InputError
from paravirt_mm.machine.e820 import E820Type, MemoryMap
from paravirt_mm.machine.model import CpuFeatures, KernelImage, Machine, Provenance
from paravirt_mm.machine.paging import MODES
from paravirt_mm.printable import printable
from paravirt_mm.sources.assume import KernelHints, place_kernel
from paravirt_mm.sources.checker import Checker, once
from paravirt_mm.sources.e820_words import log_type
from paravirt_mm.sources.possible import checked

FORMAT = "paravirt-mm-machine-1"
"""First key of every file; the number changes when a reader of old files would misread new ones."""
MAX_BYTES = 16 << 20
"""A longer machine file is refused."""
MAX_DOTS = 64
"""A line of TOML with more dots is refused: reading deep dotted keys takes quadratic time."""

_KEYS = frozenset(
    {"format", "name", "mode", "memory", "host_memory", "boot_mapped", "initrd", "reserved"}
    | {"max_pfn", "max_low_pfn", "features", "kernel", "provenance"}
)
_FEATURES = frozenset({"pse", "gbpages", "nx"})
_KERNEL = ("start", "end", "brk_start", "brk_end")
_LINKED_END = "linked_end"
_PROVENANCE = frozenset({"source", "title", "kernel_release", "assumed"})


def read_toml(text: str, source: str) -> Machine:
    """Return the machine of a TOML document. Raises InputError with file, line and key."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MAX_DOTS:
            raise InputError(f"more than {MAX_DOTS} dots in a line", f"{source}:{number}")
    try:
        return _machine(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        where = f"{source}:{at[1] if at else text.count(chr(10)) + 1}"
        raise InputError(f"not TOML: {printable(str(error), 200)}", where) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not TOML: {printable(str(error), 200)}", source) from None


def read_json(text: str, source: str) -> Machine:
    """Return the machine of a JSON document. Raises InputError with file, line and key."""
    try:
        document = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", f"{source}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", source) from None
    return _machine(document, source)


def _machine(document: Any, source: str) -> Machine:
    check = Checker(source)
    table = check.table(document, "document")
    if (given := table.get("format")) != FORMAT:
        shown = printable(repr(given), 60)
        check.fail("format", f'must be "{FORMAT}", not {shown}' if "format" in table else "missing")
    check.only(table, _KEYS)
    mode_name = check.text(table.get("mode", "x86_64"), "mode")
    if mode_name not in MODES:
        check.fail("mode", f"{printable(repr(mode_name), 40)} is none of {', '.join(MODES)}")
    mode = MODES[mode_name]
    memory = _memory(check, check.array(check.need(table, "memory"), "memory"))
    if not memory.ram_pages():
        check.fail("memory", "has no whole page of usable memory")
    features = check.table(table.get("features", {}), "features")
    check.only(features, _FEATURES, "features.")
    provenance = _provenance(check, table, source)
    kernel, assumed = _kernel(check, table, memory, provenance, mode_name)
    optional: dict[str, Any] = {}
    if "boot_mapped" in table:
        optional["boot_mapped"] = check.address(table["boot_mapped"], "boot_mapped")
    if "host_memory" in table:
        entries = check.array(table["host_memory"], "host_memory")
        optional["host_map"] = _memory(check, entries, "host_memory")
    machine = Machine(
        name=_name(check, table),
        memory_map=memory,
        mode=mode,
        features=CpuFeatures(
            pse=check.flag(features.get("pse", True), "features.pse"),
            gbpages=check.flag(features.get("gbpages", False), "features.gbpages"),
            nx=check.flag(features.get("nx", mode.has_nx), "features.nx"),
        ),
        kernel=kernel,
        reserved=tuple(
            check.span(item, f"reserved[{index}]")
            for index, item in enumerate(check.array(table.get("reserved", []), "reserved"))
        ),
        initrd=check.span(table["initrd"], "initrd") if "initrd" in table else None,
        provenance=Provenance(
            provenance.source,
            provenance.title,
            provenance.kernel_release,
            (*provenance.assumed, *assumed),
        ),
        max_pfn_hint=_pfn(check, table, "max_pfn"),
        max_low_pfn_hint=_pfn(check, table, "max_low_pfn"),
        **optional,
    )
    return checked(machine, source)


def _name(check: Checker, table: Mapping[str, Any]) -> str:
    name = check.text(check.need(table, "name"), "name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", name):
        check.fail(
            "name", f"{printable(repr(name), 100)}: letters, digits, . _ + - only, 80 at most"
        )
    return name


def _pfn(check: Checker, table: Mapping[str, Any], key: str) -> int | None:
    return check.pfn(table[key], key) if key in table else None


def _memory(check: Checker, items: list[Any], name: str = "memory") -> MemoryMap:
    entries = []
    for index, item in enumerate(items):
        key = f"{name}[{index}]"
        parts = check.array(item, key, length=3)
        start, end = check.span(parts[:2], key)
        words = check.text(parts[2], f"{key}[2]")
        kind = log_type(words)
        if kind is None:
            known = ", ".join(kind.label for kind in E820Type)
            check.fail(f"{key}[2]", f"{printable(repr(words), 40)} is none of {known}, type N")
        entries.append((start, end, kind))
    return MemoryMap.sanitise(entries)


def _kernel(
    check: Checker,
    table: Mapping[str, Any],
    memory: MemoryMap,
    provenance: Provenance,
    mode_name: str,
) -> tuple[KernelImage, tuple[str, ...]]:
    if "kernel" not in table:
        return place_kernel(memory, MODES[mode_name], None, KernelHints())
    kernel = check.table(table["kernel"], "kernel")
    check.only(kernel, frozenset((*_KERNEL, _LINKED_END)), "kernel.")
    start, end, brk_start, brk_end = (
        check.address(check.need(kernel, key, "kernel."), f"kernel.{key}") for key in _KERNEL
    )
    linked_end = None
    if _LINKED_END in kernel:
        linked_end = check.address(kernel[_LINKED_END], f"kernel.{_LINKED_END}")
    if not start <= end <= brk_start <= brk_end <= (linked_end or brk_end):
        check.fail("kernel", f"{', '.join(_KERNEL)} and {_LINKED_END} must ascend")
    return KernelImage(start, end, brk_start, brk_end, linked_end), ()


def _provenance(check: Checker, table: Mapping[str, Any], source: str) -> Provenance:
    given = check.table(table.get("provenance", {}), "provenance")
    check.only(given, _PROVENANCE, "provenance.")
    texts = {
        key: printable(check.text(given[key], f"provenance.{key}"), 1000)
        for key in ("source", "title", "kernel_release")
        if key in given
    }
    assumed = check.array(given.get("assumed", []), "provenance.assumed")
    return Provenance(
        source=texts.get("source", source),
        title=texts.get("title", ""),
        kernel_release=texts.get("kernel_release"),
        assumed=tuple(
            printable(check.text(item, f"provenance.assumed[{index}]"), 1000)
            for index, item in enumerate(assumed)
        ),
    )


# -- writing ---------------------------------------------------------------------------------------


def _tables(machine: Machine) -> dict[str, Any]:
    """Return the document for ``machine``, in the order in which people want to read it."""
    provenance = {
        key: value
        for key, value in (
            ("title", machine.provenance.title),
            ("source", machine.provenance.source),
            ("kernel_release", machine.provenance.kernel_release),
            ("assumed", list(machine.provenance.assumed)),
        )
        if value
    }
    kernel = machine.kernel
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": machine.name,
        "mode": machine.mode.name,
        "boot_mapped": machine.boot_mapped,
    }
    if machine.initrd is not None:
        document["initrd"] = list(machine.initrd)
    if machine.max_pfn_hint is not None:
        document["max_pfn"] = machine.max_pfn_hint
    if machine.max_low_pfn_hint is not None:
        document["max_low_pfn"] = machine.max_low_pfn_hint
    document["reserved"] = [list(span) for span in machine.reserved]
    document["memory"] = [[e.start, e.end, e.type.label] for e in machine.memory_map]
    if machine.host_map is not None:
        document["host_memory"] = [[e.start, e.end, e.type.label] for e in machine.host_map]
    document["features"] = {
        "pse": machine.features.pse,
        "gbpages": machine.features.gbpages,
        "nx": machine.features.nx,
    }
    document["kernel"] = {key: getattr(kernel, key) for key in _KERNEL}
    if kernel.linked_end is not None:
        document["kernel"][_LINKED_END] = kernel.linked_end
    document["provenance"] = provenance
    return document


def write_toml(machine: Machine) -> str:
    """Return ``machine`` as TOML; `read_toml` gives an equal machine back."""
    lines: list[str] = []
    for key, value in _tables(machine).items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_toml(item)}" for name, item in value.items())]
        else:
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value and not isinstance(value[0], int):
        return "[\n" + "".join(f"  {_toml_row(item)},\n" for item in value) + "]"
    return _toml_row(value)


def _toml_row(item: Any) -> str:
    if isinstance(item, list):
        return "[" + ", ".join(_toml(part) for part in item) + "]"
    return _toml(item)


def write_json(machine: Machine) -> str:
    """Return ``machine`` as JSON; `read_json` gives an equal machine back."""
    return json.dumps(_hex(_tables(machine)), indent=1, ensure_ascii=False) + "\n"


def _hex(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hex(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hex(item) for item in value]
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) else value
