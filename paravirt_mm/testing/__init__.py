"""What the author of a plugin imports to test it: conformance suites, machines, reference plugins.

Three lines test an allocator against every installed backend, on every kind of machine::

    from paravirt_mm.testing import AllocatorConformance

    class TestMine(AllocatorConformance):
        plugin = Mine

`BackendConformance` does the same for a backend. The suites know capabilities (a platform that
types pages, a machine that it refuses), never plugins by name.

Fixtures come with ``pytest_plugins = ["paravirt_mm.testing.fixtures"]`` in the top ``conftest.py``;
nothing is loaded by itself. The suites need pytest, `machines` and `memory_maps` hypothesis;
`generate`, `registry_with` and the reference plugins need neither.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
