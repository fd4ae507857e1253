"""Lines of boot logs that several tests feed to their readers, and the boot that they tell of."""

from __future__ import annotations

from paravirt_mm.sources.bootlog.linux import PrintedBoot

LOW = "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable"
HIGH = "BIOS-e820: [mem 0x0000000000100000-0x000000001fffffff] usable"
UPDATE = "e820: update [mem 0x10000000-0x1000ffff] usable ==> reserved"
LAST_PFN = "e820: last_pfn = 0x20000 max_arch_pfn = 0x400000000"


def fed(*lines: str) -> PrintedBoot:
    """Return what is known of a boot after these lines of its log."""
    printed = PrintedBoot(1, "here")
    for number, line in enumerate(lines, 1):
        printed.feed(number, line)
    return printed
