"""What conditions mean, what they refuse, and how far from true a run is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from paravirt_mm import Condition, Outcome, SpecError
from paravirt_mm.hunt.condition import MAX_DEPTH, MAX_LENGTH

FIGURES = {"waste": 1200, "used": 12, "reserved": 1212, "flips_per_table": 1.5, "overrun": 0}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("waste > 1000", True),
        ("waste > 1200", False),
        ("waste >= 1200", True),
        ("waste != 1200", False),
        ("reserved == waste + used", True),
        ("reserved > 100 * used", True),
        ("reserved / used > 101", False),
        ("reserved - waste * 1 <= 12", True),
        ("1 + 2 * 3 == 7", True),
        ("10 - 2 - 3 == 5", True),
        ("(1 + 2) * 3 == 9", True),
        ("-1 < overrun", True),
        ("waste", True),
        ("not waste", False),
        ("overrun", False),
        ("not overrun and not panic", True),
        ("panic or waste > 1K", True),
        ("panic and waste > 1K", False),
        ("waste > 0x4AF", True),
        ("flips_per_table > 1.4", True),
        ("machine.ram == 64M", True),
        ("machine.entries < 2", True),
        ("ok", True),
        ("not ok or overrun > 0", False),
    ],
)
def test_meaning(made, text, holds):
    assert Condition.parse(text).holds(made(FIGURES)) is holds


def test_outcome_with_a_reason(made):
    run = made(outcome=Outcome.PANIC, detail="Cannot find space for the kernel page tables")
    assert Condition.parse("panic").holds(run)
    assert Condition.parse('panic "find space"').holds(run)
    assert not Condition.parse("panic 'ran out'").holds(run)
    assert not Condition.parse("violation").holds(run)


def test_second_allocator(made):
    run, other = made({"waste": 5}), made({"waste": 3}, Outcome.PANIC)
    assert Condition.parse("waste > other.waste").holds(run, other)
    assert Condition.parse("ok and other.panic").holds(run, other)
    assert Condition.parse("differs").holds(run, other)
    assert not Condition.parse("differs").holds(run, made({"waste": 5}))
    assert Condition.parse("waste > other.waste").needs_other
    assert not Condition.parse("waste > 1").needs_other


@pytest.mark.parametrize(
    "text",
    [
        "waste > 1",
        "not waste > 1",
        "waste > 1 and ok",
        "not (waste > 1 or panic)",
        "1 / overrun > 0",
    ],
)
def test_without_a_value_nothing_is_found(made, text):
    """A figure that does not exist makes neither a condition nor its opposite true."""
    run = made({"overrun": 0})
    assert not Condition.parse(text).holds(run)
    assert not Condition.parse("not " + f"({text})").holds(run)


def test_what_decides_needs_no_other_value(made):
    assert Condition.parse("waste > 1 or ok").holds(made({}))
    assert Condition.parse("not (waste > 1 and panic)").holds(made({}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wast > 1", "did you mean 'waste'"),
        ("panik", "did you mean 'panic'"),
        ("machine.ran > 1", "did you mean 'ram'"),
        ("waste >", "ends too early"),
        ("waste > 1 2", "'2' in column 11"),
        ("(waste > 1", "')' is missing"),
        ("waste => 1", "'==' compares"),
        ("waste > 1 && ok", "write 'and'"),
        ("waste > 10%", "waste_percent"),
        ("waste > > 1", "not expected"),
        ("waste > 1; import os", "cannot read"),
        ("__import__('os')", "there is no figure '__import__'"),
        ("waste > 12x", "cannot read"),
        ("", "ends too early"),
        ("not " * (MAX_DEPTH + 1) + "ok", "nested"),
        ("(" * (MAX_DEPTH + 1) + "ok" + ")" * (MAX_DEPTH + 1), "nested"),
        ("-" * (MAX_DEPTH + 1) + "1", "nested"),
        ("waste > 1" + " " * MAX_LENGTH + "0", "no longer than"),
    ],
)
def test_refused(text, says):
    with pytest.raises(SpecError, match=r"condition") as error:
        Condition.parse(text)
    assert says in str(error.value)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(SpecError):
        Condition.parse(text)


NUMBERS = st.integers(0, 100)


@given(NUMBERS, NUMBERS, st.sampled_from(["<", "<=", "==", "!=", ">=", ">"]))
def test_distance_is_nothing_where_it_holds(left, right, sign):
    from paravirt_mm import E820Type, Machine, MemoryMap, PluginSpec, Run, Trace, Verdict

    machine = Machine("made", MemoryMap.sanitise([(0, 1 << 26, E820Type.RAM)]))
    run = Run(machine, PluginSpec("a"), PluginSpec("b"), Trace(), Verdict(Outcome.OK))
    run.__dict__["figures"] = {"waste": left, "used": right}
    condition = Condition.parse(f"waste {sign} used")
    opposite = Condition.parse(f"not waste {sign} used")
    assert (condition.distance(run) == 0) is condition.holds(run)
    assert condition.holds(run) is not opposite.holds(run)
    assert 0 <= condition.distance(run) <= 1


def test_nearer_is_nearer(made):
    condition = Condition.parse("waste > 1000 and flips_per_table > 1")
    far, near = (
        made({"waste": 10, "flips_per_table": 1.0}),
        made({"waste": 900, "flips_per_table": 2}),
    )
    assert condition.distance(near) < condition.distance(far)
