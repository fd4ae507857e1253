"""The statements of docs/bound.md, proved with z3 for all numbers within the limits that they name.

Each function returns a `Statement`: words for people, and a formula that says the opposite. z3
finds numbers for the opposite (the statement is wrong, and the numbers show it) or proves that
there are none. Everything is in pages of 4 KiB unless a name says otherwise; nothing is sampled.

`bound` has the account of pages that these statements speak of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import z3

from paravirt_mm import SpecError

FANOUT = 512
"""Entries of a table with 8-byte entries: x86_64 and PAE."""
TIMEOUT_MS = 60_000
LOWMEM = 896 * 256
"""Pages of lowmem that a 32-bit kernel maps at the most, with the usual split."""
MAX_TOP = 1 << 34
"""Pages up to which memory may reach in statements that name addresses: 64 TiB."""


@attrs.frozen
class Statement:
    """A statement in words, with the formula whose numbers would refute it.

    ``name`` is how to ask for it, ``shown`` the numbers that matter in a refutation.
    """

    name: str
    words: str
    opposite: tuple[z3.BoolRef, ...]
    shown: Mapping[str, z3.ArithRef] = attrs.field(factory=dict)


@attrs.frozen
class Proof:
    """What z3 said: ``proved``, or the numbers of a refutation; neither: it gave up."""

    statement: Statement
    proved: bool
    refutation: Mapping[str, int] | None = None


def prove(statement: Statement) -> Proof:
    """Ask z3. A statement that it neither proves nor refutes in time is not proved."""
    # In a context of its own: otherwise how long it takes depends on what was asked before.
    context = z3.Context()
    solver = z3.Solver(ctx=context)
    solver.set("timeout", TIMEOUT_MS)
    solver.add(z3.And(*statement.opposite).translate(context))
    answer = solver.check()
    if answer == z3.unsat:
        return Proof(statement, proved=True)
    if answer == z3.unknown:
        return Proof(statement, proved=False)
    model = solver.model()
    numbers = {
        name: model.eval(term.translate(context), model_completion=True).as_long()
        for name, term in statement.shown.items()
    }
    return Proof(statement, proved=False, refutation=numbers)


# -- the seven steps -------------------------------------------------------------------------------


def rounds_change_nothing() -> Statement:
    """Rounds get stuck where single spans would, and nowhere else."""
    begin, paid, gained, cost = z3.Ints("begin paid gained cost")
    return Statement(
        "rounds",
        "A round maps as many spans as it can pay for before it may use what they hold. If single "
        "spans, each paid from what the ones before gave, would get stuck at a span, then no round "
        "that begins above it can pay for it either: with BEGIN pages, PAID for the spans between "
        "and GAINED from them, BEGIN + GAINED - PAID < COST implies BEGIN < PAID + COST. And "
        "where single spans go on, a round always maps one at least.",
        (
            z3.And(begin >= 0, paid >= 0, gained >= 0, cost >= 0),
            begin + gained - paid < cost,
            begin >= paid + cost,
        ),
        {"begin": begin, "paid": paid, "gained": gained, "cost": cost},
    )


def deficit_is_enough(levels: int) -> Statement:
    """A budget of the deficit and one full set of tables is never exhausted: the induction step."""
    budget, left, tables, free = z3.Ints("budget left tables free")
    poor = z3.If(tables > free, tables - free, 0)
    return Statement(
        f"enough-{levels}",
        f"With {levels} levels below the root: as long as the budget is at least {levels} pages "
        "more than the deficit that is still to come, the next span can be paid for, and the same "
        "is true after it. So a budget of deficit + levels is enough for every memory map, however "
        "long.",
        (
            budget >= left + levels,
            z3.And(tables >= 0, tables <= levels, free >= 0, free <= FANOUT),
            z3.And(poor <= left, left >= 0),
            z3.Or(budget < tables, budget - tables + free < left - poor + levels),
        ),
        {"budget": budget, "left": left, "tables": tables, "free": free},
    )


def less_is_not_enough(levels: int, deficit: int) -> Statement:
    """With one page less there are spans at which the budget runs out; it is refuted on purpose.

    The spans are those of a block at the top of memory that is wholly taken, and then one that
    begins a new entry of the root.
    """
    spans = z3.Int("spans")
    budget = deficit + levels - 1
    cost = levels + spans - 1
    return Statement(
        f"tight-{levels}-{deficit}",
        f"With {levels} levels below the root, a budget of {budget} pages is enough for every "
        f"machine with a deficit of {deficit}.",
        # The first span of the block costs a table a level, the others their L1; then the next
        # span, which costs a table a level, cannot be paid for.
        (spans >= 1, cost == deficit, budget - cost < levels),
        {"spans_taken_at_the_top": spans},
    )


def seed_reach(brk_pages: int = 64) -> Statement:
    """ "Enough to map 128 MB in the worst case of 4K PAE pages": how far exactly."""
    top, start = z3.Ints("top start")
    full = brk_pages * FANOUT
    # Lowmem lies in one L2 table, which the kernel's own mapping has made already.
    spans = (top - 1) / FANOUT - start / FANOUT + 1
    lowest = z3.And(spans <= brk_pages, start % FANOUT == 0)
    return Statement(
        f"pae-{brk_pages}",
        f"With PAE and 4 KiB pages, {brk_pages} pages of brk map {brk_pages} x 2 MiB downward from "
        "any top that is a multiple of 2 MiB, and more than that less one span from any other.",
        (
            z3.And(top > full, top <= LOWMEM),
            lowest,
            # [start, top) is as much as can be paid for ...
            (top - 1) / FANOUT - (start - 1) / FANOUT + 1 > brk_pages,
            # ... and it is not what the statement says.
            z3.Or(
                z3.And(top % FANOUT == 0, top - start != full),
                z3.And(top % FANOUT != 0, z3.Or(top - start <= full - FANOUT, top - start >= full)),
            ),
        ),
        {"top": top, "start": start},
    )


class _Pfn:
    """A page number by the tables that map it: digits to the base of `FANOUT`, the L1's last.

    Digits and sums instead of divisions are what z3 decides in no time.
    """

    def __init__(self, name: str, value: z3.ArithRef) -> None:
        self.digits = z3.Ints(f"{name}_page {name}_l1 {name}_l2 {name}_l3")
        *lower, _ = self.digits
        places = z3.Sum([digit * FANOUT**level for level, digit in enumerate(self.digits)])
        self.rules = z3.And(
            value == places,
            *(digit >= 0 for digit in self.digits),
            *(digit < FANOUT for digit in lower),
        )

    def table(self, level: int) -> z3.ArithRef:
        """Return the number of the table of ``level`` that maps the page."""
        digits = list(enumerate(self.digits))[level:]
        return z3.Sum([digit * FANOUT ** (place - level) for place, digit in digits])


def _needed(last: _Pfn, first: _Pfn, levels: int) -> z3.ArithRef:
    """Tables for the pages from ``first`` to ``last`` where none is there yet but the root."""
    return z3.Sum([last.table(level) - first.table(level) + 1 for level in range(1, levels + 1)])


def contiguous(levels: int, taken: int, budget: int) -> Statement:
    """RAM in one piece whose topmost ``taken`` pages are not free: is the budget enough?

    ``levels`` of tables are new there: 1 in the lowmem of a PAE kernel, whose own mapping has made
    the L2 table; 3 above the first 512 GiB of a 64-bit one (a fifth level is there already).
    """
    top = z3.Int("top")
    last = _Pfn("last", top - 1)
    first_free = _Pfn("free", top - taken - 1)
    # The span below that of the first free page may begin a new L2, L3 ...
    below = _Pfn("below", (first_free.table(1) - 1) * FANOUT)
    free = first_free.digits[0] + 1
    limit = LOWMEM if levels == 1 else MAX_TOP
    return Statement(
        f"contiguous-{levels}-{taken}-{budget}",
        f"Where {levels} levels of tables are new, and RAM is in one piece of which the topmost "
        f"{taken} pages ({taken // 256} MiB) are taken, a budget of {budget} pages gets to memory "
        f"that it can go on with, wherever below {limit // 256} MiB the top lies.",
        (
            z3.And(top > taken + 2 * FANOUT, top <= limit),
            z3.And(last.rules, first_free.rules, below.rules),
            z3.Or(
                _needed(last, first_free, levels) > budget,
                _needed(last, below, levels) > budget + free,
            ),
        ),
        {"top_pfn": top},
    )


# -- Linux's variant -------------------------------------------------------------------------------


def linux_first_tables(levels: int) -> Statement:
    """The first MiB and the first large page take two sets of tables at the most."""
    block = z3.Int("block")
    new: z3.ArithRef = z3.IntVal(0)
    for level in range(1, levels + 1):
        span = FANOUT**level
        # A table of the first MiB serves the block too if both lie in its span.
        new = new + z3.If(block / span == 0, 0, 1)
    return Statement(
        f"linux-first-{levels}",
        f"With {levels} levels below the root: the first MiB takes {levels} tables, the large page "
        f"where Linux begins {levels} more at the most, so {2 * levels} pages of brk are enough to "
        "have a large page of free memory, wherever it lies.",
        (
            z3.And(block > 0, block % FANOUT == 0, block <= MAX_TOP),
            new > levels,
        ),
        {"block_pfn": block, "tables": new},
    )


def linux_step(growth: int, part: int, whole: int) -> Statement:
    """A step of Linux is paid from what is mapped, if enough of that is free.

    ``growth``: how many times larger than all that is mapped a step may be (32 up to 3.18, 256 from
    3.19 on). ``part`` in ``whole`` mapped pages are free at least.
    """
    mapped, step, low, high, free = z3.Ints("mapped step low high free")
    last, first = _Pfn("last", high - 1), _Pfn("first", low)
    return Statement(
        f"linux-step-{growth}-{part}-{whole}",
        f"On x86_64 with 4 KiB pages: a step of Linux, up to {growth} times what is mapped and of "
        f"whole large pages, can be paid for if {part} in {whole} mapped pages are free, and five "
        "more.",
        (
            z3.And(mapped >= FANOUT, mapped <= MAX_TOP, step <= growth * mapped),
            z3.And(step >= FANOUT, step % FANOUT == 0),
            z3.And(low >= 0, low < high, high - low <= step, high <= MAX_TOP),
            z3.And(low % FANOUT == 0, high % FANOUT == 0),
            whole * (free - 5) >= part * mapped,
            z3.And(last.rules, first.rules),
            _needed(last, first, 3) > free,
        ),
        {"mapped": mapped, "low": low, "high": high, "free": free},
    )


CONTIGUOUS: tuple[tuple[int, int, int], ...] = (
    (1, 0, 1),
    (3, 0, 5),
    (1, 32256, 64),
    (3, 30208, 64),
    (3, 65536, 133),
)
"""(levels of tables that are new, pages that are taken at the top, a budget that is always enough);
the proposal's is 64.
"""
LINUX_SHARES: tuple[tuple[int, int, int], ...] = ((32, 1, 15), (256, 129, 256))
"""(growth of a step, free pages in so many mapped ones)."""


def statements() -> Iterator[Statement]:
    """Yield every statement that must be proved, in the order of docs/bound.md."""
    yield rounds_change_nothing()
    for levels in (2, 3, 4):
        yield deficit_is_enough(levels)
    yield seed_reach()
    for levels, taken, budget in CONTIGUOUS:
        yield contiguous(levels, taken, budget)
    for levels in (2, 3, 4):
        yield linux_first_tables(levels)
    for growth, part, whole in LINUX_SHARES:
        yield linux_step(growth, part, whole)


def find(name: str) -> Statement:
    """Return a statement by name. Raises `SpecError` that lists them."""
    found = {statement.name: statement for statement in statements()}
    if name not in found:
        raise SpecError(f"no statement {name!r} (there are: {', '.join(found)})")
    return found[name]
