"""Reading what nobody vouches for: every command reads its inputs in a child, within limits.

What a reader cannot stand costs its own input: the error names it, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import attrs

from paravirt_mm.errors import InputError
from paravirt_mm.guard import READING, Limits, Stopped, guarded
from paravirt_mm.machine.model import Machine
from paravirt_mm.offers import brought_machine
from paravirt_mm.printable import printable
from paravirt_mm.sources import bundled_machines
from paravirt_mm.sources.inputs import CarriedPart, Part, divide
from paravirt_mm.sources.load import Loaded, load
from paravirt_mm.sources.machine_file import write_toml

T = TypeVar("T")

SECONDS_PER_MIB = 1.0
"""Of processor time, in addition to `READING`, for large inputs."""


@attrs.frozen
class _Begun:
    """A part is being read from here on."""

    number: int
    source: str


def limits_for(spec: str | Path) -> Limits:
    """Return what reading this input may cost."""
    try:
        size = Path(spec).stat().st_size
    except (OSError, ValueError):
        return READING
    return attrs.evolve(READING, cpu=READING.cpu + SECONDS_PER_MIB * (size >> 20))


def machines(inputs: Iterable[str], boot: int | None = None) -> Iterator[Loaded]:
    """Yield ``(source, machine or error)`` of every input, like `paravirt_mm.sources.load_each`."""
    shipped = frozenset(bundled_machines())
    for spec in inputs:
        brought = brought_machine(spec)
        if brought is not None:
            yield spec, brought
        elif spec in shipped and not Path(spec).exists():
            yield spec, load(spec)
        else:
            yield from _guarded_machines(spec, boot)


def all_machines(inputs: Iterable[str]) -> Iterator[Machine]:
    """Yield the machines of every input. Raises `InputError` for the first that cannot be read."""
    for _, outcome in machines(inputs):
        if isinstance(outcome, InputError):
            raise outcome
        yield outcome


def _guarded_machines(spec: str, boot: int | None) -> Iterator[Loaded]:
    next_part = 0
    begun: _Begun | None = None

    def work(_: int) -> Iterator[_Begun | Loaded]:
        # Forked when it is called: it sees how far the children before it came.
        for number, part in enumerate(islice(divide([spec]), next_part, None), next_part):
            yield _Begun(number, part.source)
            yield from part.machines(boot)

    for item in guarded(work, limits_for(spec)):
        if isinstance(item, _Begun):
            begun, next_part = item, item.number + 1
            continue
        if isinstance(item, Stopped):
            source = begun.source if begun else printable(spec)
            yield source, _stopped(item, source)
            if begun is None:
                return  # It did not even come to the next part: there is no way past this.
            begun = None
        else:
            yield item


def parts(inputs: Iterable[str]) -> Iterator[Part]:
    """Yield the parts of every input, like `paravirt_mm.sources.inputs.divide`: archives are
    unpacked in the child, and one that cannot be costs a part that says why.
    """
    for spec in inputs:
        brought = brought_machine(spec)
        if brought is not None:  # carried: whoever reads it need not have the plugin
            yield CarriedPart(spec, f"{spec}.toml", write_toml(brought).encode())
            continue
        try:
            yield from reading_each(lambda path: divide([path]), spec)
        except InputError as error:
            problem = str(error).removeprefix(f"{error.where}: ")
            yield CarriedPart(printable(spec), Path(spec).name, b"", problem)


def machine(spec: str, boot: int | None = None) -> Machine:
    """Return the one machine of an input. Raises `InputError`."""
    return brought_machine(spec) or reading(load, spec, boot)


def reading(function: Callable[..., T], spec: str | Path, *args: Any) -> T:
    """Return ``function(spec, *args)``, which reads what ``spec`` names. Raises what it raises, and
    `InputError` where it had to be stopped.
    """

    def once(*them: Any) -> list[T]:
        return [function(*them)]

    (answer,) = reading_each(once, spec, *args)
    return answer


def reading_each(function: Callable[..., Iterable[T]], spec: str | Path, *args: Any) -> Iterator[T]:
    """Yield what ``function(spec, *args)`` yields, each within the limits, as `reading` does."""
    for item in guarded(lambda _: function(spec, *args), limits_for(spec)):
        if isinstance(item, Stopped):
            raise _stopped(item, printable(str(spec)))
        yield item


def _stopped(stopped: Stopped, source: str) -> InputError:
    how = "" if stopped.crashed else "took "
    return InputError(f"cannot be read: {how}{stopped}", source)
