"""How many of something, in words."""

from __future__ import annotations

_OF_ONE = {"are": "is", "were": "was"}
"""Verbs of many things, and of one, where the two are not alike."""


def counted(number: int, noun: str, verb: str = "") -> str:
    """Return "1 machine", "2 machines", "3 tries"; "1 log disagrees", "2 logs disagree". The noun
    is given in the singular, the verb in the plural.
    """
    if number != 1:
        return f"{number:,} {_plural(noun)} {verb}".rstrip()
    ending = "es" if verb.endswith("ch") else "s"
    return f"1 {noun} {_OF_ONE.get(verb, f'{verb}{ending}')}" if verb else f"1 {noun}"


def all_of(number: int, noun: str) -> str:
    """Return "the machine", "both machines", "all 3 machines"."""
    if number == 1:
        return f"the {noun}"
    return f"both {_plural(noun)}" if number == 2 else f"all {number:,} {_plural(noun)}"


def _plural(noun: str) -> str:
    """Regular nouns only."""
    if noun.endswith("ss"):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
