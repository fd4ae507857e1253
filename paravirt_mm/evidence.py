"""How far each allocator spec has been verified: a data file that the verify commands write.

The file maps a kind of evidence (``oracle``: the real kernel's code, ``logs``: boot logs, ``live``:
a kernel booted in an emulator) to specs, and each spec to how much agreed of how much was compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from paravirt_mm.about import CONFIGURATION
from paravirt_mm.errors import InputError, ParavirtMmError
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry

DATA_FILE = Path(__file__).parent / "data" / "verified.json"
MAX_BYTES = 1 << 20
"""A longer file is refused."""
NOT = "not"
"""What is said of a spec without any evidence."""
_UNITS = {"oracle": "machines", "logs": "logs", "live": "boots"}


@attrs.frozen
class Evidence:
    """``agree`` of ``compared`` machines, logs or boots agree with the allocator ``spec``."""

    spec: str
    agree: int
    compared: int


def verified(spec: str, registry: Registry | None = None) -> str:
    """Return how far a spec has been verified, in a few words: "oracle 400/400, logs 12/12".

    "not": there is no evidence for this allocator with these options. A release counts as verified
    by evidence for any release of its series (3.6.11 by 3.6), and options that stand for a kernel's
    configuration do not count. Raises `SpecError` for a wrong spec.
    """
    key = canonical(spec, registry or default_registry())
    parts = []
    for kind, specs in _load(DATA_FILE).items():
        if key in specs:
            agree, compared = specs[key]
            parts.append(f"{kind} {agree}/{compared}")
    return ", ".join(parts) or NOT


def known_specs() -> list[str]:
    """Return every spec that there is evidence about."""
    return sorted({spec for specs in _load(DATA_FILE).values() for spec in specs})


def recorded(plugin: str) -> dict[str, str]:
    """Return what there is for a plugin: canonical specs, and how far each is verified."""
    found: dict[str, list[str]] = {}
    for kind, specs in _load(DATA_FILE).items():
        for spec, (agree, compared) in specs.items():
            if spec.partition(":")[0] == plugin:
                found.setdefault(spec, []).append(f"{kind} {agree}/{compared}")
    return {spec: ", ".join(parts) for spec, parts in found.items()}


def canonical(spec: str, registry: Registry) -> str:
    """Return a spec with its options sorted, defaults and configuration left out, and the release's
    series.
    """
    parsed = PluginSpec.parse(spec)
    plugin = registry.get(parsed.name)
    instance = plugin.create(dict(parsed.options))
    parts = []
    for field in sorted(plugin.options(), key=lambda field: field.name):
        value = getattr(instance, field.name)
        if field.metadata.get(CONFIGURATION):
            continue
        if field.name == "kernel":
            parts.append(f"kernel={series(str(value))}")
        elif value != field.default:
            shown = ("no", "yes")[value] if isinstance(value, bool) else value
            parts.append(f"{field.name}={shown}")
    return f"{parsed.name}:{','.join(parts)}" if parts else parsed.name


def series(release: str) -> str:
    """Return the series of a release: 3.6 of 3.6.11, 2.6.38 of 2.6.38.8."""
    numbers = release.split(".")
    return ".".join(numbers[: 3 if numbers[:2] == ["2", "6"] else 2])


def record(
    path: Path, kind: str, evidence: Iterable[Evidence], registry: Registry | None = None
) -> None:
    """Replace the evidence of one kind in a file. Raises InputError where it cannot be written."""
    if kind not in _UNITS:
        raise ParavirtMmError(f"{kind!r} is no kind of evidence ({', '.join(_UNITS)})")
    registry = registry or default_registry()
    sums: dict[str, list[int]] = {}
    for item in evidence:
        entry = sums.setdefault(canonical(item.spec, registry), [0, 0])
        entry[0] += item.agree
        entry[1] += item.compared
    content = {**(_load(path) if path.exists() else {}), kind: dict(sorted(sums.items()))}
    ordered = {kind: content[kind] for kind in _UNITS if kind in content}
    try:
        path.write_text(_dumped(ordered), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(path)) from error
    _parsed.cache_clear()


def _dumped(content: dict[str, Any]) -> str:
    """Return the file's text, one spec a line."""
    kinds = []
    for kind, specs in content.items():
        lines = [f"  {json.dumps(spec)}: {json.dumps(pair)}" for spec, pair in specs.items()]
        kinds.append(f' "{kind}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def _load(path: Path) -> dict[str, dict[str, Any]]:
    return _parsed(path) if path.exists() else {}


@cache
def _parsed(path: Path) -> dict[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > MAX_BYTES:
            raise InputError(f"longer than {MAX_BYTES >> 20} MiB", str(path))
        content = json.loads(text)
        return {
            str(kind): {str(spec): (int(pair[0]), int(pair[1])) for spec, pair in specs.items()}
            for kind, specs in content.items()
            if kind in _UNITS
        }
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise InputError(f"not a file of evidence: {error}", str(path)) from error
