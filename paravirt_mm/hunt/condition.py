"""What a hunt looks for: a condition on how runs end and on their figures.

Grammar (``NAME`` is a figure; see ``paravirt-mm figures``)::

    condition   = all { "or" all }
    all         = not { "and" not }
    not         = "not" not | comparison
    comparison  = sum [ ( "<" | "<=" | "==" | "!=" | ">=" | ">" ) sum ]
    sum         = product { ( "+" | "-" ) product }
    product     = atom { ( "*" | "/" ) atom }
    atom        = [ "-" ] atom | NUMBER | [ "other." ] NAME | [ "other." ] OUTCOME [ TEXT ]
                | "differs" | "machine." FACT | "(" condition ")"

A number may end in K, M, G or T (binary) and may be hexadecimal. ``other.`` stands for the second
allocator's run. An outcome (``ok``, ``panic``, ``rejected``, ``violation``, ``error``) with a text
in quotes also asks that the verdict contains it. ``differs``: the two runs differ in their end, in
what they map, in where a table lies, or in a figure (`paravirt_mm.differences`).

What has no value (a figure that does not exist for a run, a division by zero, 2^256) makes a
condition neither true nor false, and only what is true is found. `Condition.distance` says how far
a run is from what is looked for, so that a search can go uphill, `Condition.leads` which changes of
the machine may lead there, and an `Account` what of it was true in many runs.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import Protocol

import attrs

from paravirt_mm.differences import differences
from paravirt_mm.errors import SpecError
from paravirt_mm.hunt.account import Account, Number, Sides, Tally
from paravirt_mm.hunt.edits import Change
from paravirt_mm.hunt.facts import FACTS, scaled
from paravirt_mm.machine.paging import MIB, MODES
from paravirt_mm.measure.crashkernel import LIMITS, SIZES
from paravirt_mm.measure.figures import FIGURES
from paravirt_mm.run import Outcome, Run

MAX_LENGTH = 1000
"""A longer condition is refused."""
MAX_DEPTH = 40
"""Parentheses and ``not`` within each other, at the most."""

_LARGEST = 1 << 256
"""What comes of arithmetic and is not smaller has no value; that floats have room for."""
_BITS = 64
"""The longest gap between figures that are to be equal."""

_FITS = {
    f"crashkernel_{size}m_below_{name}": (limit, size * MIB)
    for name, limit in LIMITS
    for size in SIZES
}
"""Figures that are yes or no, and how much room below which limit it takes for a yes: that has a
slope.
"""


@attrs.frozen
class Sight:
    """What a condition looks at: a run, and that of the second allocator where there is one."""

    run: Run
    other: Run | None = None

    def of(self, other: bool) -> Run | None:
        """Return one of the two runs."""
        return self.other if other else self.run


class Term(Protocol):
    """A part of a condition: a number, a truth (1 or 0), or None where there is no value."""

    def value(self, sight: Sight) -> Number | None:
        """Return what the term is worth here."""

    def distance(self, sight: Sight, wanted: bool) -> float:
        """Return how far the term is from being true (``wanted``) or false; 0: it is. Most can
        only be the one or the other.
        """
        value = self.value(sight)
        return 0.0 if value is not None and bool(value) is wanted else 1.0

    def leads(self, sight: Sight, wanted: bool) -> Iterator[Change]:
        """Yield changes of the machine that may make the term true, or false."""
        return iter(())

    def leads_to(self, sight: Sight, goal: Fraction) -> Iterator[Change]:
        """Yield changes of the machine that may make a number of the term."""
        return iter(())

    def parts(self) -> Iterator[Term]:
        """Yield what ``and``, ``or`` and ``not`` are between."""
        yield self

    def enter(self, tally: Tally, sight: Sight) -> None:
        """Enter a run in the tally of the term."""
        tally.enter(self.value(sight), None)


class _Measured(Term, Protocol):
    """What comes of a run, nearly in proportion to something of the machine."""

    def leads_to(self, sight: Sight, goal: Fraction) -> Iterator[Change]:
        value = self.value(sight)
        if value is not None and value > 0 and goal > 0:
            yield partial(scaled, goal / Fraction(value))


@attrs.frozen
class _Literal(Term):
    number: Number

    def value(self, sight: Sight) -> Number | None:
        return self.number


@attrs.frozen
class _Figure(_Measured):
    name: str
    other: bool

    def value(self, sight: Sight) -> Number | None:
        run = sight.of(self.other)
        found = run.figure(self.name) if run is not None else None
        return found if isinstance(found, int | float) else None


@attrs.frozen
class _CrashRoom(_Measured):
    """Bytes for the largest crash kernel below a limit, to the page."""

    limit: int
    other: bool

    def value(self, sight: Sight) -> Number | None:
        run = sight.of(self.other)
        return run.books.room[self.limit].crash_kernel if run is not None and run.books else None


@attrs.frozen
class _Fact(Term):
    name: str

    def value(self, sight: Sight) -> Number | None:
        return FACTS[self.name].of(sight.run.machine)

    def leads_to(self, sight: Sight, goal: Fraction) -> Iterator[Change]:
        fact = FACTS[self.name]
        # Away from what it is, so that a border is passed.
        whole = math.ceil(goal) if goal > fact.of(sight.run.machine) else math.floor(goal)
        if whole >= 0:
            yield lambda choose, machine: fact.given(choose, machine, whole)


@attrs.frozen
class _Ends(Term):
    outcome: Outcome
    text: str
    other: bool

    def value(self, sight: Sight) -> Number | None:
        run = sight.of(self.other)
        if run is None:
            return None
        return int(run.verdict.outcome is self.outcome and self.text in run.verdict.detail)


@attrs.frozen
class _Differs(Term):
    def value(self, sight: Sight) -> Number | None:
        if sight.other is None:
            return None
        return int(next(differences(sight.run, sight.other), None) is not None)


_Inverse = Callable[[Fraction, Fraction], Fraction]

_ARITHMETIC: Mapping[str, Callable[[Number, Number], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_UNDONE: Mapping[str, tuple[_Inverse, _Inverse]] = {
    "+": (operator.sub, operator.sub),
    "-": (operator.add, lambda goal, left: left - goal),
    "*": (operator.truediv, operator.truediv),
    "/": (operator.mul, lambda goal, left: left / goal),
}
"""What the left side would have to be, of the goal and the right side; and the other way round."""
_COMPARISONS: Mapping[str, Callable[[Number, Number], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
_DENIED = {"<": ">=", "<=": ">", "==": "!=", "!=": "==", ">=": "<", ">": "<="}
_BEYOND = {"<": Fraction(-1), ">": Fraction(1), "!=": Fraction(1)}
"""By how much the left side is to be beyond the right one."""
_FINE = Fraction(1, 1000)
"""So much of it is enough where not both are whole numbers."""


@attrs.frozen
class _Arithmetic(Term):
    """Two terms and an operator between numbers."""

    left: Term
    sign: str
    right: Term

    def value(self, sight: Sight) -> Number | None:
        left, right = self.left.value(sight), self.right.value(sight)
        if left is None or right is None or (self.sign == "/" and not right):
            return None
        try:
            result = _ARITHMETIC[self.sign](left, right)
        except OverflowError:  # no float has room for it
            return None
        return result if abs(result) < _LARGEST else None

    def leads_to(self, sight: Sight, goal: Fraction) -> Iterator[Change]:
        left, right = self.left.value(sight), self.right.value(sight)
        if left is None or right is None:
            return
        of_left, of_right = _UNDONE[self.sign]
        with suppress(ZeroDivisionError):
            yield from self.left.leads_to(sight, of_left(goal, Fraction(right)))
        with suppress(ZeroDivisionError):
            yield from self.right.leads_to(sight, of_right(goal, Fraction(left)))


@attrs.frozen
class _Comparison(Term):
    left: Term
    sign: str
    right: Term

    def sides(self, sight: Sight) -> Sides | None:
        """Return what is compared; None where one of them has no value."""
        left, right = self.left.value(sight), self.right.value(sight)
        return None if left is None or right is None else (left, right)

    def value(self, sight: Sight) -> Number | None:
        return self._value_of(self.sides(sight))

    def _value_of(self, sides: Sides | None) -> int | None:
        return None if sides is None else int(_COMPARISONS[self.sign](*sides))

    def distance(self, sight: Sight, wanted: bool) -> float:
        sides = self.sides(sight)
        if sides is None:
            return 1.0
        left, right = sides
        if _COMPARISONS[self.sign](left, right) is wanted:
            return 0.0
        # In parts of the whole, so that figures of different units can stand in one condition;
        # always above 0.
        gap = abs(left - right)
        constant = isinstance(self.left, _Literal) or isinstance(self.right, _Literal)
        if self.sign == ("==" if wanted else "!=") and not constant:
            # Else larger numbers would look nearer to each other, and lead ever further up.
            return min(1.0, math.log2(gap + 2) / _BITS)
        return (gap + 1) / (gap + 2 + min(abs(left), abs(right)))

    def enter(self, tally: Tally, sight: Sight) -> None:
        sides = self.sides(sight)
        tally.enter(self._value_of(sides), sides)

    def leads(self, sight: Sight, wanted: bool) -> Iterator[Change]:
        sides = self.sides(sight)
        if sides is None or _COMPARISONS[self.sign](*sides) is wanted:
            return
        left, right = map(Fraction, sides)
        beyond = _BEYOND.get(self.sign if wanted else _DENIED[self.sign], Fraction(0))
        if left.denominator != 1 or right.denominator != 1:
            beyond *= _FINE
        yield from self.left.leads_to(sight, right + beyond)
        yield from self.right.leads_to(sight, left - beyond)


@attrs.frozen
class _Not(Term):
    term: Term

    def value(self, sight: Sight) -> Number | None:
        found = self.term.value(sight)
        return None if found is None else int(not found)

    def distance(self, sight: Sight, wanted: bool) -> float:
        return self.term.distance(sight, not wanted)

    def leads(self, sight: Sight, wanted: bool) -> Iterator[Change]:
        return self.term.leads(sight, not wanted)

    def parts(self) -> Iterator[Term]:
        return self.term.parts()


@attrs.frozen
class _Joined(Term):
    """Terms of which all must hold (``needs_all``) or one."""

    terms: tuple[Term, ...]
    needs_all: bool

    def value(self, sight: Sight) -> Number | None:
        found = [term.value(sight) for term in self.terms]
        deciding = not self.needs_all
        if any(value is not None and bool(value) is deciding for value in found):
            return int(deciding)
        return None if None in found else int(self.needs_all)

    def distance(self, sight: Sight, wanted: bool) -> float:
        each = [term.distance(sight, wanted) for term in self.terms]
        return sum(each) / len(each) if self.needs_all is wanted else min(each)

    def leads(self, sight: Sight, wanted: bool) -> Iterator[Change]:
        return chain.from_iterable(term.leads(sight, wanted) for term in self.terms)

    def parts(self) -> Iterator[Term]:
        return chain.from_iterable(term.parts() for term in self.terms)


@attrs.frozen
class Condition:
    """A parsed condition. ``needs_other`` tells that it speaks of a second allocator,
    ``needs_extra`` that figures of plugins, or that these can be had, may decide it.
    """

    text: str
    term: Term
    needs_other: bool
    needs_extra: bool
    names: frozenset[str]
    """Figures that it speaks of and that the core does not have: a plugin may."""
    parts: tuple[tuple[str, Term], ...]
    """What ``and``, ``or`` and ``not`` are between, and its text."""

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition that a text states. Raises `SpecError` that shows what is wrong."""
        if len(text) > MAX_LENGTH:
            raise SpecError(f"a condition is no longer than {MAX_LENGTH} characters")
        parser = _Parser(text)
        term = parser.whole()
        names = frozenset(parser.unknown)
        needs_extra = parser.needs_extra or bool(names)
        parts = tuple((parser.texts[id(part)], part) for part in term.parts())
        return cls(text, term, parser.needs_other, needs_extra, names, parts)

    def holds(self, run: Run, other: Run | None = None) -> bool:
        """Tell whether the condition is true of a run."""
        return bool(self.term.value(Sight(run, other)))

    def distance(self, run: Run, other: Run | None = None) -> float:
        """Return how far a run is from the condition: 0 where it holds, at most 1."""
        return self.term.distance(Sight(run, other), True)

    def leads(self, run: Run, other: Run | None = None) -> list[Change]:
        """Return changes of the machine that may lead to what is looked for: they go by what is
        compared and is not as it should be.
        """
        return list(self.term.leads(Sight(run, other), True))

    def account(self) -> Account:
        """Return an account of no runs."""
        return Account([Tally(text) for text, _ in self.parts])

    def enter(self, account: Account, run: Run, other: Run | None = None) -> None:
        """Enter a run in such an account."""
        account.enter(run.verdict)
        sight = Sight(run, other)
        for tally, (_, part) in zip(account.parts, self.parts, strict=True):
            part.enter(tally, sight)

    def __str__(self) -> str:
        return self.text


_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}(?:\.[0-9]{1,9})?[KMGTkmgt]?)(?![\w.])"
    r"|(?P<name>[A-Za-z_][\w.]{0,99})"
    r"|(?P<text>\"[^\"]*\"|'[^']*')"
    r"|(?P<sign><=|>=|==|!=|[-+*/<>()]))"
)
_FOREIGN = (
    ("&", "write 'and'"),
    ("|", "write 'or'"),
    ("!", "write 'not', or '!=' between numbers"),
    ("=", "'==' compares"),
    ("%", "a share is a figure of its own (waste_percent), or a division"),
    ('"', "a text ends with the quote that it begins with"),
    ("'", "a text ends with the quote that it begins with"),
)
"""What other languages write, and how it is said here."""
_WORDS = ("and", "or", "not")
_SUFFIX = {"k": 10, "m": 20, "g": 30, "t": 40}


@attrs.frozen
class _Token:
    kind: str
    text: str
    column: int


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            rest = text[position:].lstrip()
            meant = next((f"; {word}" for sign, word in _FOREIGN if rest.startswith(sign)), "")
            if rest[0].isdigit():
                meant = "; numbers are like 1000, 1.5, 16M or 0x1000, of up to 20 digits"
            meant = meant or "; there are figures, numbers, outcomes, + - * / < > ( ), and, or, not"
            raise SpecError(f"condition {text!r}: cannot read {rest[:20]!r}{meant}")
        yield _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        position = match.end()


def _number(text: str) -> Number:
    if text[:2].lower() == "0x":
        return int(text, 16)
    shift = _SUFFIX.get(text[-1].lower(), 0)
    digits = text[:-1] if shift else text
    value: Number = float(digits) if "." in digits else int(digits)
    return value * (1 << shift)


class _Parser:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at = 0
        self.depth = 0
        self.needs_other = self.needs_extra = False
        self.unknown: set[str] = set()
        self.texts: dict[int, str] = {}
        """What was read for a term, by its id."""

    def whole(self) -> Term:
        if not self.tokens:
            raise self._error("it is empty; try 'panic' or 'waste > 1000'")
        term = self.condition()
        if self.at != len(self.tokens):
            raise self._unexpected(self.tokens[self.at])
        return term

    def condition(self) -> Term:
        return self._joined(self._all, "or", needs_all=False)

    def _all(self) -> Term:
        return self._joined(self._not, "and", needs_all=True)

    def _joined(self, part: Callable[[], Term], word: str, *, needs_all: bool) -> Term:
        terms = [part()]
        while self._takes(word):
            terms.append(part())
        return terms[0] if len(terms) == 1 else _Joined(tuple(terms), needs_all)

    def _not(self) -> Term:
        if not self._takes("not"):
            return self._comparison()
        self._deeper()
        term = _Not(self._not())
        self.depth -= 1
        return term

    def _comparison(self) -> Term:
        first = self.tokens[self.at : self.at + 1]
        term = self._sum()
        if sign := self._takes(*_COMPARISONS):
            term = _Comparison(term, sign, self._sum())
        last = self.tokens[self.at - 1]
        self.texts.setdefault(id(term), self.text[first[0].column : last.column + len(last.text)])
        return term

    def _sum(self) -> Term:
        left = self._product()
        while sign := self._takes("+", "-"):
            left = _Arithmetic(left, sign, self._product())
        return left

    def _product(self) -> Term:
        left = self._atom()
        while sign := self._takes("*", "/"):
            left = _Arithmetic(left, sign, self._atom())
        return left

    def _atom(self) -> Term:
        token = self._next()
        if token.kind == "number":
            return _Literal(_number(token.text))
        if token.text == "-":
            self._deeper()
            negative = _Arithmetic(_Literal(0), "-", self._atom())
            self.depth -= 1
            return negative
        if token.text == "(":
            self._deeper()
            term = self.condition()
            if not self._takes(")"):
                raise self._error("a ')' is missing")
            self.depth -= 1
            return term
        if token.kind == "name" and token.text not in _WORDS:
            return self._named(token.text)
        raise self._unexpected(token)

    def _named(self, name: str) -> Term:
        if name == "differs":
            self.needs_other = self.needs_extra = True
            return _Differs()
        scope, dot, rest = name.partition(".")
        if scope == "machine" and dot:
            if rest not in FACTS:
                raise self._error(f"there is no {name!r}{_close(rest, FACTS, '')}", FACTS)
            return _Fact(rest)
        other = scope == "other" and bool(dot)
        self.needs_other |= other
        name = rest if other else name
        if name in set(Outcome):
            self.needs_extra |= name == Outcome.ERROR
            return _Ends(Outcome(name), self._quoted(), other)
        if name not in FIGURES:
            if "." not in name:
                raise self._error(
                    f"there is no figure {name!r}{_close(name, FIGURES, other=other)}"
                )
            self.unknown.add(name)
        if name in _FITS:
            limit, size = _FITS[name]
            return _Comparison(_CrashRoom(limit, other), ">=", _Literal(size))
        return _Figure(name, other)

    def _quoted(self) -> str:
        if self.at < len(self.tokens) and self.tokens[self.at].kind == "text":
            return self._next().text[1:-1]
        return ""

    def _takes(self, *texts: str) -> str:
        """Take the next token if it is one of these."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if token is None or token.text not in texts:
            return ""
        self.at += 1
        return token.text

    def _next(self) -> _Token:
        if self.at == len(self.tokens):
            raise self._error("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")

    def _unexpected(self, token: _Token) -> SpecError:
        meant = ""
        if token.kind == "text":
            meant = "; a text stands behind an outcome: panic 'ran out'"
        elif token.text in _COMPARISONS:
            meant = "; join two comparisons with 'and'"
        elif token.text in _WORDS:
            meant = "; a figure, a number or an outcome does"
        elif token.text.lower() in _SUFFIX:
            meant = f"; a unit follows its number at once: 16{token.text}"
        elif token.kind != "sign" or token.text == "(":
            meant = "; between two conditions stands 'and' or 'or'"
        return self._error(
            f"{token.text!r} in column {token.column + 1} is not expected there{meant}"
        )

    def _error(self, message: str, allowed: Mapping[str, object] | None = None) -> SpecError:
        known = f" (there are: {', '.join(allowed)})" if allowed else ""
        return SpecError(f"condition {self.text!r}: {message}{known}")


def _close(
    name: str,
    names: Mapping[str, object],
    otherwise: str = "; `paravirt-mm figures` lists them",
    *,
    other: bool = False,
) -> str:
    """Return what was meant, in words. ``other``: it is said of the second allocator."""
    if name.lower() in FACTS:
        return f"; did you mean 'machine.{name.lower()}'?"
    if name == "mode" or name in MODES:
        return "; --mode keeps to paging modes"
    if name == "differs":
        return "; 'differs' stands alone: it compares with the second allocator"
    known = {str(word).lower(): str(word) for word in (*names, *Outcome)}
    if not other:
        known["differs"] = "differs"
    close = difflib.get_close_matches(name.lower(), known, 1)
    return f"; did you mean {known[close[0]]!r}?" if close else otherwise
