"""What the number of a release does not settle: configuration, and what distributions take from
later releases. Real kernels are known to have made each choice.
"""

from __future__ import annotations

from paravirt_mm import Choice, OpenQuestion

_MODES = ("x86_64", "x86_64-la57")

QUESTIONS = (
    OpenQuestion(
        "3.10",
        "3.11",
        ("i386", "i386-pae", *_MODES),
        (
            Choice(),
            Choice((("brk_pages", "6"),), words="6 pages of brk as in 3.11, taken by RHEL 7"),
        ),
    ),
    OpenQuestion(
        "3.10",
        "4.8",
        _MODES,
        (
            Choice(),
            Choice(
                (("brk_pages", "12"), ("kaslr", "yes")),
                words="randomised direct map taken from 4.8 (12 pages of brk, trampoline)",
            ),
            Choice((("brk_pages", "12"),), words="12 pages of brk as in 4.8"),
        ),
    ),
    OpenQuestion(
        "4.8",
        "99",
        _MODES,
        (
            Choice((("kaslr", "yes"),), words="randomised direct map"),
            Choice(words="CONFIG_RANDOMIZE_MEMORY, direct map not randomised"),
            Choice((("randomize_memory", "no"),), words="no CONFIG_RANDOMIZE_MEMORY"),
        ),
    ),
    OpenQuestion(
        "5.12",
        "6.16",
        ("x86_64",),
        (
            Choice(),
            Choice(
                (("brk_pages", "6"),),
                words="6 pages of brk: neither CONFIG_RANDOMIZE_MEMORY nor CONFIG_X86_5LEVEL",
            ),
        ),
    ),
    OpenQuestion(
        "3.9",
        "99",
        ("i386", "i386-pae", *_MODES),
        (Choice(), Choice(words="4k pages alone (debug_pagealloc)", large_pages=False)),
    ),
)
"""Each with the choices in the order in which they are tried."""
