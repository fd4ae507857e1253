"""paravirt_mm: a laboratory for the code that builds an x86 kernel's first page tables.

Public names are those of ``__init__.pyi``, `paravirt_mm.hookspecs` and `paravirt_mm.testing`. They
are loaded when first used, so that ``paravirt-mm --help`` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
