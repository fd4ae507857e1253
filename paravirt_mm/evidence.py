"""How far each model has been checked, by judge: a data file that the verify commands write.

The file maps a kind of evidence (`KINDS`) to specs, and each spec to how much agreed of how much
was compared.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import attrs

from paravirt_mm.about import CONFIGURATION, ERA
from paravirt_mm.errors import InputError, ParavirtMmError
from paravirt_mm.machine.release import leading_version
from paravirt_mm.options import PluginSpec
from paravirt_mm.registry import Registry, default_registry

EVIDENCE_FILE = Path(__file__).parent / "data" / "verified.json"
MAX_BYTES = 1 << 20
"""A longer file is refused."""
NOT = "not"
"""What is said of a spec without any evidence."""
KINDS = {
    "oracle": "machines on which a kernel's own page-table code was run",
    "logs": "boot logs that were predicted",
    "live": "boots of real kernels in an emulator, recorded or fresh",
    "dom0": "boots of real kernels under real Xen, every hypercall compared",
    "xen": "whole constructions that real Xen accepted, operation by operation",
    "model": "whole constructions that the model of Xen accepted",
    "cpu": "images that an emulated CPU walked",
    "operations": "traces of operations that real Xen and its model answered alike",
    "naive": "odd machines on which a plain model, written apart, did the same",
}
"""Kinds of evidence in the order in which they are told, and what is counted."""


@attrs.frozen
class Evidence:
    """``agree`` of ``compared`` things (`KINDS` says which) agree with the model ``spec``."""

    spec: str
    agree: int
    compared: int


@attrs.frozen
class _Model:
    """What a spec stands for: its key in the file, and where it behaves alike.

    ``family`` is the key without the release; ``era`` what the plugin says of the release (None: it
    says nothing); ``release`` its series.
    """

    key: str
    family: str = ""
    release: str = ""
    era: Hashable = None


def verified(spec: str, registry: Registry | None = None) -> str:
    """Return how far a spec has been checked, by judge: "oracle 400/400, logs 12/12".

    Evidence for any release of a series counts for all of them (3.6.11 by 3.6), and options that
    stand for a kernel's configuration do not count. Where a judge has seen no such release, what it
    said of releases that behave alike (`paravirt_mm.ERA`) is told as theirs: "as 4.9: logs 2/2".
    "not": no judge has seen this model. Raises `SpecError` for a wrong spec.
    """
    registry = registry or default_registry()
    model = _model(spec, registry)
    own: list[str] = []
    alike: dict[str, list[str]] = {}
    for kind, specs in _load(EVIDENCE_FILE).items():
        if model.key in specs:
            own.append(_told(kind, [specs[model.key]]))
        elif model.era is not None and (found := list(_alike(model, specs, registry))):
            releases = [release for release, _ in found]
            alike.setdefault(_run(releases), []).append(_told(kind, [pair for _, pair in found]))
    parts = [", ".join(own)] if own else []
    parts += [f"as {releases}: {', '.join(told)}" for releases, told in alike.items()]
    return "; ".join(parts) or NOT


def _told(kind: str, pairs: Iterable[tuple[int, int]]) -> str:
    agree, compared = map(sum, zip(*pairs, strict=True))
    return f"{kind} {agree}/{compared}"


def _alike(
    model: _Model, specs: Mapping[str, tuple[int, int]], registry: Registry
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield releases that behave like a model's, in their order, with the evidence for them."""
    found = []
    for spec, pair in specs.items():
        if spec.partition(":")[0] == model.family.partition(":")[0]:
            other = _model(spec, registry)
            if (other.family, other.era) == (model.family, model.era):
                found.append((other.release, pair))
    yield from sorted(found, key=lambda item: leading_version(item[0]))


def _run(releases: Sequence[str]) -> str:
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"


def known_specs() -> list[str]:
    """Return every spec that there is evidence about."""
    return sorted({spec for specs in _load(EVIDENCE_FILE).values() for spec in specs})


def recorded(plugin: str) -> dict[str, str]:
    """Return what there is for a plugin: canonical specs, and how far each is checked."""
    found: dict[str, list[str]] = {}
    for kind, specs in _load(EVIDENCE_FILE).items():
        for spec, pair in specs.items():
            if spec.partition(":")[0] == plugin:
                found.setdefault(spec, []).append(_told(kind, [pair]))
    return {spec: ", ".join(parts) for spec, parts in found.items()}


def canonical(spec: str, registry: Registry) -> str:
    """Return a spec with its options sorted, defaults and configuration left out, and the release's
    series.
    """
    return _model(spec, registry).key


def _model(spec: str, registry: Registry) -> _Model:
    parsed = PluginSpec.parse(spec)
    plugin = registry.get(parsed.name)
    instance = plugin.create(dict(parsed.options))
    parts, others = [], []
    release, era = "", None
    for field in sorted(plugin.options(), key=lambda field: field.name):
        value = getattr(instance, field.name)
        if field.metadata.get(CONFIGURATION):
            continue
        if field.name == "kernel" and value is not None:
            release = series(str(value))
            parts.append(f"kernel={release}")
            if ERA in field.metadata:
                era = field.metadata[ERA](str(value))
        elif value != field.default:
            shown = ("no", "yes")[value] if isinstance(value, bool) else value
            parts.append(f"{field.name}={shown}")
            others.append(parts[-1])
    return _Model(_spec(parsed.name, parts), _spec(parsed.name, others), release, era)


def _spec(name: str, options: Sequence[str]) -> str:
    return f"{name}:{','.join(options)}" if options else name


def series(release: str) -> str:
    """Return the series of a release: 3.6 of 3.6.11, 2.6.38 of 2.6.38.8."""
    numbers = release.split(".")
    return ".".join(numbers[: 3 if numbers[:2] == ["2", "6"] else 2])


def record_evidence(
    path: Path, kind: str, evidence: Iterable[Evidence], registry: Registry | None = None
) -> None:
    """Replace the evidence of one kind in a file. Raises InputError where it cannot be written."""
    if kind not in KINDS:
        raise ParavirtMmError(f"{kind!r} is no kind of evidence ({', '.join(KINDS)})")
    registry = registry or default_registry()
    sums: dict[str, list[int]] = {}
    for item in evidence:
        entry = sums.setdefault(canonical(item.spec, registry), [0, 0])
        entry[0] += item.agree
        entry[1] += item.compared
    content = {
        **_load(path),
        kind: {spec: (agree, compared) for spec, (agree, compared) in sorted(sums.items())},
    }
    ordered = {kind: content[kind] for kind in KINDS if kind in content}
    try:
        path.write_text(_dumped(ordered), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(path)) from error
    _parsed.cache_clear()


def _dumped(content: _Content) -> str:
    """Return the file's text, one spec a line."""
    kinds = []
    for kind, specs in content.items():
        lines = [f"  {json.dumps(spec)}: {json.dumps(pair)}" for spec, pair in specs.items()]
        kinds.append(f' "{kind}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


_Content = Mapping[str, Mapping[str, tuple[int, int]]]
"""Kinds, specs of each, and how much agreed of how much was compared."""


def _load(path: Path) -> _Content:
    return _parsed(path) if path.exists() else {}


@cache
def _parsed(path: Path) -> _Content:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"longer than {MAX_BYTES >> 20} MiB", str(path))
        content = json.loads(text)
        return {
            str(kind): {str(spec): (int(pair[0]), int(pair[1])) for spec, pair in specs.items()}
            for kind, specs in content.items()
            if kind in KINDS
        }
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise InputError(f"not a file of evidence: {error}", str(path)) from error
