"""What people ran into between 2010 and 2025, found again by the hunt alone (docs/history.md).

Nothing is planted: each row is a condition in the words of the report of the time, and the machine
that the hunt comes up with must be one on which it is true, and small.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from paravirt_mm.hunt.found import Found
from paravirt_mm.hunt.search import Quarry, hunt

DOCUMENT = Path(__file__).parents[2] / "docs" / "history.md"


@attrs.frozen
class Story:
    """A condition, and how many map entries its smallest machine has at the most."""

    name: str
    quarry: Quarry
    entries: int


STORIES = (
    Story(
        "hundreds of times what is used",
        Quarry("legacy_linear:kernel=3.6", "native", "reserved > 300 * used and used > 0"),
        1,
    ),
    Story(
        "no space for a contiguous block",
        Quarry(
            "legacy_linear:kernel=3.6",
            "native",
            "panic 'Cannot find space for the kernel page tables' and other.ok",
            other="incremental:variant=linux,kernel=3.9",
        ),
        2,
    ),
    Story(
        "crashkernel=512M no longer fits",
        Quarry(
            "legacy_linear:kernel=2.6.38",
            "native",
            "not crashkernel_512m_below_896m and other.crashkernel_512m_below_896m",
            other="legacy_linear:kernel=2.6.39",
        ),
        1,
    ),
    Story(
        "what that cost under Xen",
        Quarry(
            "legacy_linear:kernel=2.6.39",
            "xen",
            "flips_wasted > 0 and other.flips_wasted == 0",
            other="legacy_linear:kernel=2.6.38",
        ),
        1,
    ),
    Story(
        "good_end as the patch of the thread has it: space is found",
        Quarry(
            "legacy_linear:kernel=3.6,good_end=mapped",
            "native",
            "panic 'Cannot find space' and other.ok",
            other="legacy_linear:kernel=3.6,good_end=end",
        ),
        2,
    ),
    Story(
        "good_end as the patch of the thread has it: pages flip",
        Quarry(
            "legacy_linear:kernel=3.6,good_end=end",
            "xen",
            "flips_wasted > 0 and other.flips_wasted == 0 and other.ok",
            other="legacy_linear:kernel=3.6,good_end=mapped",
        ),
        1,
    ),
    Story(
        "pages of 1 GiB are mapped over",
        Quarry(
            "incremental:variant=linux,kernel=3.9",
            "native",
            "violation 'mapped twice' and other.ok",
            other="incremental:variant=linux,kernel=3.10",
        ),
        1,
    ),
    Story(
        "no free large page",
        Quarry(
            "incremental:variant=linux,kernel=6.14",
            "native",
            "panic and other.ok",
            other="incremental:variant=linux,kernel=6.15",
        ),
        3,
    ),
    Story(
        "dom0 on ACPI NVS",
        Quarry("incremental:variant=linux,kernel=6.1", "xen:kernel=6.1", "panic 'on ACPI NVS'"),
        3,
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_found_again(story):
    result = hunt(story.quarry, seconds=240)
    assert result.machine is not None, f"not found in {result.tries} tries"
    found = Found.of(story.quarry, result)
    assert story.quarry.holds(found.machine)
    assert len(found.machine.memory_map) <= story.entries


def test_the_page_tells_each_with_its_command():
    text = DOCUMENT.read_text(encoding="utf-8")
    for story in STORIES:
        command = f"paravirt-mm hunt {story.quarry.allocator}"
        assert command in text
        assert story.quarry.condition in text
