"""What conditions mean, what they refuse, and how far from true a run is."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import attrs
import pytest
from hypothesis import given, strategies as st

from paravirt_mm import (
    Condition,
    E820Type,
    Machine,
    MemoryMap,
    Outcome,
    PluginSpec,
    Run,
    SpecError,
    Trace,
    Verdict,
)
from paravirt_mm.hunt import condition
from paravirt_mm.hunt.condition import MAX_DEPTH, MAX_LENGTH
from paravirt_mm.hunt.facts import FACTS

MIB, RAM = 1 << 20, E820Type.RAM
FIGURES = {
    "waste": 1200,
    "used": 12,
    "reserved": 1212,
    "flips_per_table": 1.5,
    "overrun": 0,
    "crashkernel_largest_below_4g": 256 * MIB,
}


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
        ("waste - overrun == 1200 and waste * overrun == 0", True),
        ("7 / 2 == 3.5 and 0 / 7 == 0 and 12 / 4 / 3 == 1", True),
        ("2K == 2048 and 1.5k == 1536 and 3M == 3 * 1024K", True),
        ("1G == 1024m and 2T == 2048g and 0x1F == 31 and 0XfF == 255", True),
        ("- 3 + 5 == 2 and 2 - -3 == 5", True),
        ("crashkernel_256m_below_4g and not crashkernel_512m_below_4g", True),
        ("crashkernel_512m_below_4g or crashkernel_512m_below_4g > 1", False),
        ("crashkernel_128m_below_4g + 1 == 2", True),
        ("panic and panic or ok", True),
        ("ok or panic and panic", True),
        ("not panic and ok", True),
        ("not (ok and waste)", False),
        ("1 < 1 or 1 > 1 or 1 != 1", False),
        ("1 <= 1 and 1 >= 1 and 1 == 1", True),
    ],
)
def test_meaning(made, text, holds):
    """And what holds, and only that, is at no distance."""
    run, condition = made(FIGURES), Condition.parse(text)
    assert condition.holds(run) is holds
    assert (condition.distance(run) == 0) is holds
    assert 0 <= condition.distance(run) <= 1
    assert Condition.parse(f"not ({text})").holds(run) is not holds


def test_facts_of_the_machine():
    raw = [(0, 4 * MIB, RAM), (4 * MIB, 5 * MIB, E820Type.ACPI), (6 * MIB, 64 * MIB + 5, RAM)]
    machine = Machine(
        "m", MemoryMap.sanitise(raw), reserved=tuple((n << 20, n + 1 << 20) for n in range(7))
    )
    run = Run(machine, PluginSpec("a"), PluginSpec("b"), Trace(), Verdict(Outcome.OK))
    for fact, value in (
        ("ram", 62 * MIB), ("entries", 3), ("pieces", 2), ("max_pfn", 0x4000), ("reserved", 7)
    ):  # fmt: skip
        assert Condition.parse(f"machine.{fact} == {value}").holds(run)
        assert not Condition.parse(f"machine.{fact} != {value}").holds(run)
        assert Condition.parse(f"machine.{fact} == 1").distance(run) > 0


@pytest.mark.parametrize(
    ("text", "distance"),
    [
        # Of numbers: how much of what they are lies between them, below 1 as long as they are any.
        ("overrun != 0", 1 / 2),
        ("overrun > 0", 1 / 2),
        ("waste > 2200", 1001 / 2202),
        ("waste < 200", 1001 / 1202),
        ("waste != 1200", 1 / 1202),
        ("crashkernel_512m_below_4g", (256 * MIB + 1) / (512 * MIB + 2)),
        ("-1000 > 0", 1001 / 1002),
        ("waste == 2200", 1001 / 2202),
        # Two figures that are to be equal: by the gap alone, in bits of 64, however large they are.
        ("waste == reserved - 6", 3 / 64),
        ("waste * 1G == reserved * 1G - 6G - 6G + 2", 2 / 64),
        ("not waste != reserved - 6", 3 / 64),
        ("waste * 1T * 1T == used * 2", 1),
        # Of what only is or is not: all the way.
        ("panic", 1),
        ("not ok", 1),
        ("overrun", 1),
        ("not waste", 1),
        ("1 - 1", 1),
        # Without a value: as far as can be, and so is the opposite.
        ("unused.figure > 1", 1),
        ("not unused.figure > 1", 1),
        ("waste / overrun > 1", 1),
        ("not unused.figure", 1),
        # Of what must all hold the mean, of what one is enough the nearest; denied, they change.
        ("panic and overrun > 0", 3 / 4),
        ("panic and ok", 1 / 2),
        ("panic and ok and ok and ok", 1 / 4),
        ("panic or overrun > 0", 1 / 2),
        ("not (ok and waste)", 1),
        ("not (ok and overrun == 0)", 1 / 2),
        ("not (ok or panic)", 1 / 2),
        ("not not panic", 1),
    ],
)
def test_how_far_from_true_a_run_is(made, text, distance):
    run = made(FIGURES)
    assert Condition.parse(text).distance(run) == pytest.approx(distance, rel=1e-12)
    assert not Condition.parse(text).holds(run)


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("waste > 2399", [2]),
        ("2399 < waste", [2]),
        ("waste >= 2400", [2]),
        ("not (waste > 400 or panic) and used == 8", [Fraction(1, 3), Fraction(2, 3)]),
        ("waste == reserved", [Fraction(1212, 1200), Fraction(1200, 1212)]),
        ("flips_per_table == 0.75", [Fraction(1, 2)]),
        ("crashkernel_512m_below_4g", [2]),
        ("waste == 1", [Fraction(1, 1200)]),
        ("waste != 1200", [Fraction(1201, 1200)]),
        ("flips_per_table > 1.75", [Fraction(1751, 1500)]),
        # Through arithmetic, whatever stands on which side.
        ("(waste + 1200) / 2 == 2400", [3]),
        ("3600 - waste == 1200", [2]),
        ("waste - 1200 == 1200", [2]),
        ("waste * 2 == 4800", [2]),
        ("4800 / waste == 2", [2]),
        ("0 * waste == 1", []),  # by no factor
        ("waste / overrun == 1", []),
        # Of the machine a number, beyond what it is less or more than.
        ("machine.ram == 16M", [("ram", 16 << 20)]),
        ("machine.entries == 3", [("entries", 3)]),
        ("machine.entries > 3", [("entries", 4)]),
        ("3 <= machine.pieces", [("pieces", 3)]),
        ("not machine.pieces < 3", [("pieces", 3)]),
        ("machine.reserved != 0", [("reserved", 1)]),
        ("machine.entries < 1", [("entries", 0)]),
        ("machine.entries * 2 == 7", [("entries", 4)]),
        ("machine.entries < 0", []),
        ("machine.pieces == waste", [("pieces", 1200), Fraction(1, 1200)]),
        # What is as it should be stays as it is.
        ("waste == 1200", []),
        ("waste > 400 or used == 8", [Fraction(2, 3)]),
        ("not waste < 400 and not not used == 8", [Fraction(2, 3)]),
        ("overrun > 3", []),  # no factor makes something of nothing
        ("waste == 0 or waste > -1 or -1 > waste or unused.figure > 1 or ok or waste", []),
    ],
)
def test_what_may_lead_there(made, monkeypatch, text, leads):
    """Factors for figures, numbers for facts."""
    monkeypatch.setattr(condition, "scaled", lambda ratio, *_: ratio)
    for name, fact in FACTS.items():
        told = attrs.evolve(fact, given=lambda _c, _m, wanted, name=name: (name, wanted))
        monkeypatch.setitem(FACTS, name, told)
    found = Condition.parse(text).leads(made(FIGURES))
    assert [lead(None, None) for lead in found] == leads


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("waste > 2000 and not panic",
         ["waste > 2000: never true; nearest 1,200 against 2,000", "panic: true in 1 of 3"]),
        ("( waste==7 )or unused.figure < 1",
         ["waste==7: never true; nearest 5 against 7 and 12 against 7",
          "unused.figure < 1: without a value"]),
        ("waste / 10 > 0.1", ["waste / 10 > 0.1: always true; nearest 0.5 against 0.1"]),
        ("not (waste <= 12 and panic 'no')", ["waste <= 12: true in 2 of 3",
                                              "panic 'no': never true"]),
        ("waste", ["waste: always true"]),
        ("other.waste > 1 or crashkernel_512m_below_4g",
         ["other.waste > 1: without a value",
          "crashkernel_512m_below_4g: never true; nearest 0 against 536,870,912"]),
    ],
)  # fmt: skip
def test_what_is_told_of_runs_in_vain(made, text, says):
    """What of it was true, and how near the rest came; in batches as in one go."""
    looked_for = Condition.parse(text)
    runs = [made({"waste": 12}), made({"waste": 5}, Outcome.PANIC, "ran out"),
            made({"waste": 1200})]  # fmt: skip
    whole, parts = looked_for.account(), looked_for.account()
    for run in runs:
        looked_for.enter(whole, run)
        part = looked_for.account()
        looked_for.enter(part, run)
        parts.merge(part)
    ends = ["ended 2 times: ok", "ended once: panic: ran out"]
    assert list(whole.lines()) == list(parts.lines()) == [*says, *ends]
    assert whole == parts
    assert whole.record()["ends"]["panic"] == {"runs": 1, "first": "panic: ran out"}
    assert [part["text"] for part in whole.record()["parts"]] == [s.split(": ")[0] for s in says]


def test_lengths_and_depths_that_are_taken(made):
    """1000 characters, 40 within each other; side by side as many as there is room for."""
    run = made(FIGURES)
    assert (MAX_LENGTH, MAX_DEPTH) == (1000, 40)
    for text in (
        "ok" + " " * 998,
        "(" * 40 + "ok" + ")" * 40,
        "not " * 40 + "ok",
        "-" * 40 + "1",
        " and ".join(["(ok)"] * 60),
        " or ".join(["not ok"] * 50 + ["ok"]),
        "1 == " + "-".join(["1"] + ["-0"] * 60),
    ):
        assert Condition.parse(text).holds(run)


def test_names_of_plugins_and_whether_another_run_is_needed():
    for text, needs_other, names in (
        ("waste > 1", False, set()),
        (
            "xen.hypercalls > 1 and waste > other.xen.batches",
            True,
            {"xen.hypercalls", "xen.batches"},
        ),
        ("other.ok", True, set()),
        ("differs", True, set()),
        ("differs and ok", True, set()),
        ("other.waste > 1 and ok", True, set()),
        ("machine.ram > 1", False, set()),
    ):
        condition = Condition.parse(text)
        assert (condition.needs_other, condition.names) == (needs_other, names)
        assert (condition.text, str(condition)) == (text, text)
        assert condition.needs_extra == (bool(names) or "differs" in text)
    for text, extra in (("ok", False), ("error", True), ("panic or other.error", True)):
        assert Condition.parse(text).needs_extra is extra


def test_outcome_with_a_reason(made):
    run = made(outcome=Outcome.PANIC, detail="Cannot find space for the kernel page tables")
    assert Condition.parse("panic").holds(run)
    assert Condition.parse('panic "find space"').holds(run)
    assert not Condition.parse("panic 'ran out'").holds(run)
    assert not Condition.parse("violation").holds(run)
    for text in ("xCannot", "tablesx"):
        assert not Condition.parse(f"panic '{text}'").holds(run)
    assert Condition.parse('panic "find space" and panic').distance(run) == 0
    assert Condition.parse("panic 'ran out'").distance(run) == 1
    assert Condition.parse("ok 'find space' or panic").holds(run)
    assert not Condition.parse("ok 'find space'").holds(run)


def test_second_allocator(made):
    run, other = made({"waste": 5}), made({"waste": 3}, Outcome.PANIC)
    assert Condition.parse("waste > other.waste").holds(run, other)
    assert Condition.parse("ok and other.panic").holds(run, other)
    assert not Condition.parse("panic or other.ok").holds(run, other)
    for text in ("other.waste > 1", "other.panic", "differs", "not other.ok"):
        assert Condition.parse(text).holds(run, other)
        assert Condition.parse(text).distance(run, other) == 0
        # Without a second run there is nothing to say of it.
        assert not Condition.parse(text).holds(run)
        assert not Condition.parse(f"not ({text})").holds(run)
        assert Condition.parse(text).distance(run) == 1
    assert Condition.parse("differs").distance(run, run) == 1
    for text in ("flips == tables", "tables == flips", "flips == 3", "3 == flips"):
        assert Condition.parse(text).distance(made({"tables": 3})) == 1, "what is missing is far"
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
        "1 + waste > 0",
        "waste + 1 > 0",
        # Too large for floats, or to be compared with one.
        "overrun < " + "99999999999999999999T * " * 10 + "99999999999999999999T / 3",
        "overrun < 1.5 * " + "99999999999999999999T * " * 10 + "99999999999999999999T",
        "overrun + 0.5 < " + "65536T * 65536T * " * 2 + "65536T * 65536",
    ],
)
def test_without_a_value_nothing_is_found(made, text):
    """A figure that does not exist makes neither a condition nor its opposite true."""
    run = made({"overrun": 0})
    assert not Condition.parse(text).holds(run)
    assert not Condition.parse("not " + f"({text})").holds(run)
    assert Condition.parse(text).distance(run) > 0
    assert not Condition.parse(text).leads(run)


@pytest.mark.parametrize("text", ["my.word > 1", "my.word", "my.word + 1 > 0"])
def test_words_are_no_numbers(made, text):
    run = made({"my.word": "yes"})
    assert not Condition.parse(text).holds(run)
    assert not Condition.parse(f"not ({text})").holds(run)


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
        ("waste > 1 || ok", "write 'or'"),
        ("!ok", "write 'not', or '!=' between numbers"),
        ("waste = 1", "'==' compares"),
        ("waste > 10%", "waste_percent"),
        ("waste > > 1", "not expected"),
        ("waste > 1; import os", "cannot read"),
        ("__import__('os')", "there is no figure '__import__'"),
        ("waste > 12x", "cannot read"),
        ("", "it is empty; try 'panic'"),
        ("  ", "it is empty"),
        ("OK", "did you mean 'ok'"),
        ("max_pfn > 3", "did you mean 'machine.max_pfn'"),
        ("RAM > 1G", "did you mean 'machine.ram'"),
        ("differ", "did you mean 'differs'"),
        ("other.differs", "'differs' stands alone"),
        ("waste > 1e3", "numbers are like 1000, 1.5, 16M or 0x1000"),
        ("waste > " + "9" * 21, "of up to 20 digits"),
        ("waste > ５", "numbers are like"),
        ('panic "', "a text ends with the quote that it begins with"),
        ("'panic'", "a text stands behind an outcome"),
        ("panic panic", "between two conditions stands 'and' or 'or'"),
        ("1 < waste < 2", "join two comparisons with 'and'"),
        ("другое > 1", "there are figures, numbers, outcomes"),
        ("not " * (MAX_DEPTH + 1) + "ok", "nested"),
        ("(" * (MAX_DEPTH + 1) + "ok" + ")" * (MAX_DEPTH + 1), "nested"),
        ("-" * (MAX_DEPTH + 1) + "1", "nested"),
        ("waste > 1" + " " * MAX_LENGTH + "0", "no longer than"),
        ("ok" + " " * 999, "no longer than 1000"),
        ("(" * 41 + "ok" + ")" * 41, "nested more than 40"),
        ("waste 'x' > 1", "not expected"),
        ("ok 'x' 'y'", "'y'\" in column 8"),
        ("ok 'and' and", "ends too early"),
        ("machine", "there is no figure 'machine'"),
        ("other", "there is no figure 'other'"),
        ("machine.nothing", "there is no 'machine.nothing'"),
        ("other.differs", "there is no figure 'differs'"),
        ("waste > 1 > 2", "'>' in column 11"),
        ("1 +", "ends too early"),
        ("machine.RAM > 1", "there is no 'machine.RAM'; did you mean 'machine.ram'?"),
        ("waste > " + "$" * 30, f"cannot read {'$' * 20!r};"),
        ("(ok) and " + "(" * 41 + "ok" + ")" * 41, "nested"),
        ("not panic and " + "not " * 41 + "ok", "nested"),
        ("-1 < 0 and " + "-" * 41 + "1 < 0", "nested"),
        ("panic and and ok", "'and' in column 11 is not expected there; a figure, a number or"),
        ("1 + not ok > 2", "'not' in column 5 is not expected there; a figure"),
        ("waste > 16 M", "'M' in column 12 is not expected there; a unit follows its number at"),
        ("mode == i386", "there is no figure 'mode'; --mode keeps to paging modes"),
        ("x86_64", "--mode"),
        ("ok (panic)", "'(' in column 4 is not expected there; between two conditions stands"),
    ],
)
def test_refused(text, says):
    with pytest.raises(SpecError, match=r"condition") as error:
        Condition.parse(text)
    assert says in str(error.value)


def test_of_a_sign_that_nobody_expects_nothing_more_is_said():
    with pytest.raises(SpecError, match=r"'\)' in column 4 is not expected there$"):
        Condition.parse("ok )")


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(SpecError):
        Condition.parse(text)


NUMBERS = st.integers(0, 100)


@given(NUMBERS, NUMBERS, st.sampled_from(["<", "<=", "==", "!=", ">=", ">"]))
def test_distance_is_nothing_where_it_holds(left, right, sign):
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
