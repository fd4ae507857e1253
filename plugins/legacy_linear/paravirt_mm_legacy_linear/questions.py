"""What the number of a release does not settle: stable and distribution patches, configuration,
firmware quirks. Real kernels are known to have made each choice.
"""

from __future__ import annotations

from paravirt_mm import Choice, OpenQuestion

_USUAL = Choice()
_BOTH_32BIT = ("i386", "i386-pae")

QUESTIONS = (
    OpenQuestion(
        "3.2",
        "3.7",
        ("x86_64", *_BOTH_32BIT),
        (
            _USUAL,
            Choice(
                (("guess", "pieces"),),
                words="guess=pieces: the formula of 3.7, taken by stable and distribution kernels",
            ),
            Choice(
                (("guess", "whole"),),
                words="guess=whole: the formula up to 3.4, to which stable kernels went back",
            ),
            Choice(
                (("guess", "first-piece"),),
                words="guess=first-piece: the formula of 3.5, taken by distribution kernels",
            ),
        ),
    ),
    OpenQuestion(
        "2.6.32",
        "2.6.33",
        ("x86_64",),
        (
            _USUAL,
            Choice(
                (("guess", "pieces"),),
                words="guess=pieces: the formula of 3.7, taken by RHEL 6 (2.6.32-573)",
            ),
        ),
    ),
    OpenQuestion(
        "3.4",
        "3.7",
        ("x86_64",),
        (
            _USUAL,
            Choice(
                (("calls", "regions"),),
                words="calls=regions: one call a region above 4 GiB, as 3.7 and 3.4.39",
            ),
        ),
    ),
    OpenQuestion(
        "3.0",
        "3.1",
        ("x86_64",),
        (
            _USUAL,
            Choice((("good_end", "mapped"),), words="good_end=mapped: as 3.1 and stable 3.0.9"),
        ),
    ),
    OpenQuestion(
        "2.6.29",
        "3.9",
        _BOTH_32BIT,
        (
            _USUAL,
            Choice((("fixmap_entries", "500"),), words="fixmap of at most 512 entries (few CPUs)"),
            Choice(
                (("fixmap_entries", "1100"),),
                words="fixmap of more than 1024 entries (many CPUs, or aligned to 256)",
            ),
        ),
    ),
    OpenQuestion(
        "2.6.27",
        "2.6.37",
        ("x86_64", *_BOTH_32BIT),
        (
            _USUAL,
            Choice(
                reserved=((0x0, 0x10000),),
                words="first 64 KiB taken: memory-corruption check, or the low-64K quirk",
            ),
        ),
    ),
    OpenQuestion(
        "2.6.33",
        "2.6.37",
        ("x86_64",),
        (
            _USUAL,
            Choice(
                reserved=((0x10000, 0x16000),),
                words="trampoline (2 pages) and ACPI wakeup code (4) found first",
            ),
        ),
    ),
    OpenQuestion(
        "2.6.33",
        "2.6.37",
        _BOTH_32BIT,
        (
            _USUAL,
            Choice(
                reserved=((0x10000, 0x15000),),
                words="trampoline (1 page) and ACPI wakeup code (4) found first",
            ),
        ),
    ),
)
"""Each with the choices in the order in which they are tried."""
