"""A machine's memory in a line: every mark stands where something of its kind lies, and nothing
that would have a mark of its own lacks one.
"""

from __future__ import annotations

import attrs
import pytest

from paravirt_mm import Machine
from paravirt_mm.machine.ranges import RangeSet
from paravirt_mm.view.memory_map import Scale
from paravirt_mm.view.scene import LINES, Scene
from paravirt_mm.view.strip import ruler, strip, strip_legend
from paravirt_mm.view.survey import Subject

MARKS = {True: " ·─▒█", False: " .-%#"}
"""Nothing, RAM, mapped, set aside in vain, tables: each covers those before it."""


def kinds(machine: Machine, scene: Scene) -> list[RangeSet]:
    mapped = [*scene.premapped]
    mapped += [(low, high) for frame in scene.frames for low, high, _ in frame.mapped]
    return [
        RangeSet(machine.memory_map.ram_pages()),
        RangeSet(mapped),
        RangeSet(scene.idle),
        RangeSet(area.span for area in scene.tables()),
    ]


@pytest.mark.parametrize(("width", "drawn"), [(100, True), (33, False), (7, True)])
def test_marks_stand_where_things_lie(subjects: list[Subject], width: int, drawn: bool) -> None:
    marks = MARKS[drawn]
    for subject in subjects:
        machine = subject.machine
        end = max(machine.map_limit, machine.memory_map.ram_pages().end)
        scale = Scale(end, width)
        for each in subject.exhibits:
            line = strip(machine, each.scene, width, drawn=drawn)
            assert len(line) == width
            assert {*line} <= {*marks}
            for rank, spans in enumerate(kinds(machine, each.scene), 1):
                near = {
                    place
                    for low, high in spans
                    for place in range(int(scale(low)), int(scale(high)) + 2)
                }
                assert {n for n, mark in enumerate(line) if mark == marks[rank]} <= near
                for low, high in spans:
                    first = min(width - 1, int(scale(low)))
                    assert marks.index(line[first]) >= rank, "covered by what is rarer at most"
                    for place in range(first + 1, int(scale(high) - 0.5)):
                        assert marks.index(line[place]) >= rank


def test_a_line_stays_as_wide_as_it_is(subjects: list[Subject]) -> None:
    """Whatever lies beyond its end: boot maps more than a small machine has."""
    subject = subjects[1]
    end = max(subject.machine.map_limit, subject.machine.memory_map.ram_pages().end)
    plain = attrs.evolve(subject.exhibits[0].scene, frames=(), idle=())
    beyond = attrs.evolve(plain, premapped=((2 * end, 3 * end),))
    line = strip(subject.machine, beyond, 50)
    assert len(line) == 50
    assert line[-1] == "─"


def test_a_ruler_has_each_name_where_its_address_is(subjects: list[Subject]) -> None:
    for subject in subjects:
        machine = subject.machine
        end = max(machine.map_limit, machine.memory_map.ram_pages().end)
        line = ruler(machine, 100)
        for address, words in LINES:
            if words in line.split():
                assert line.startswith(words, int(Scale(end, 100)(address)))
            else:
                assert address >= end or len(words) + Scale(end, 100)(address) > 96


def test_marks_are_explained() -> None:
    for drawn, marks in MARKS.items():
        told = [f"{marks[4]} tables", f"{marks[3]} set aside in vain", f"{marks[2]} mapped"]
        assert strip_legend(drawn=drawn) == ", ".join([*told, f"{marks[1]} RAM"])
    assert strip_legend() == strip_legend(drawn=True)
