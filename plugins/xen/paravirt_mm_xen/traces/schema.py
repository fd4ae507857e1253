"""The JSON schema of a line of a trace file, made from the shapes of operations.

``docs/xen-trace.schema.json`` is what `schema` returns; a test compares.
"""

from __future__ import annotations

from typing import Any

from paravirt_mm_xen.traces.format import (
    ASSISTS,
    DEVICES,
    FLUSHES,
    MAX_BATCH,
    MAX_ENTRY_BITS,
    MAX_OPERATIONS,
    MAX_PAGES,
    SHAPES,
    Field,
)


def _number(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


_FIELDS: dict[Field, dict[str, Any]] = {
    Field.PAGE: _number(0, MAX_PAGES - 1),
    Field.PAGE_OR_NULL: {"anyOf": [_number(0, MAX_PAGES - 1), {"type": "null"}]},
    Field.TARGET: _number(0, MAX_PAGES - 1),
    Field.INDEX: _number(0, 511),
    Field.LEVEL: _number(1, 4),
    Field.FLAGS: _number(0, MAX_ENTRY_BITS),
    Field.VALUE: _number(0, MAX_ENTRY_BITS),
    Field.ADDRESS: _number(0, MAX_ENTRY_BITS),
    Field.PRESERVE: {"type": "boolean"},
    Field.ACCESS: {"enum": ["read", "write"]},
    Field.FLUSH: {"enum": list(FLUSHES)},
    Field.DEVICE: {"enum": list(DEVICES)},
    Field.ASSIST: {"enum": list(ASSISTS)},
}


def schema() -> dict[str, Any]:
    """Return the schema: one line of a file, with its answers."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "paravirt-mm: page-table operations with the answers of a hypervisor",
        "description": "One line of a .jsonl file; docs/live-xen.md tells what operations mean.",
        "type": "object",
        "required": ["pages", "ops", "rc"],
        "properties": {
            "id": {"type": "string"},
            "xen": {"type": "string", "description": "version of the hypervisor that answered"},
            "pages": _number(1, MAX_PAGES),
            "ops": {
                "type": "array",
                "maxItems": MAX_OPERATIONS,
                "items": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in SHAPES]},
            },
            "rc": {
                "description": "one answer an operation",
                "type": "array",
                "maxItems": MAX_OPERATIONS,
                "items": _number(-(1 << 63), (1 << 63) - 1),
            },
        },
        "$defs": {name: _operation(name) for name in SHAPES},
    }


def _operation(name: str) -> dict[str, Any]:
    shape = SHAPES[name]
    fields = [{"const": name}, *(_field(field, name) for field in shape.fields)]
    return _tuple(fields)


def _field(field: Field, name: str) -> dict[str, Any]:
    if field is Field.UPDATES:
        update = _tuple([_FIELDS[field] for field in SHAPES["mmu_update"].fields])
        return _members(update)
    if field is Field.MEMBERS:
        members = SHAPES[name].members
        return _members({"oneOf": [{"$ref": f"#/$defs/{member}"} for member in members]})
    return _FIELDS[field]


def _tuple(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _members(member: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": MAX_BATCH, "items": member}
