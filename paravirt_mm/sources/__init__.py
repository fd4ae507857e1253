"""Readers: everything that turns a file into a `Machine`.

``load`` opens whatever it is given and recognises the format; ``read_boot_log`` also returns what
a kernel printed about its mappings, line by line. Nothing here trusts its input: sizes are bounded,
and what is wrong raises `paravirt_mm.errors.InputError` with file, line and remedy.
"""

from paravirt_mm.sources.bootlog.facts import BootLog
from paravirt_mm.sources.bundled import bundled, bundled_machines
from paravirt_mm.sources.load import load, load_all, load_each, read_boot_log

__all__ = [
    "BootLog",
    "bundled",
    "bundled_machines",
    "load",
    "load_all",
    "load_each",
    "read_boot_log",
]
