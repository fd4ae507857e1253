"""What all tests share. Facts come with the tests; ``shared`` is material beside the checkout, used
where it is there.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
from collections.abc import Generator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings

from paravirt_mm import registry
from tests.commands import Run, runner

# One list for all folders: for every hook of every test, pytest asks which conftest.py is another
# folder's, and a quarter of a millisecond a test was spent on that.
_FIXTURES = ("hunt", "image", "invariants", "sources", "sweep", "view")
pytest_plugins = [
    "paravirt_mm.testing.fixtures",
    "pytester",
    "tests.build_tools",
    *(f"tests.{folder}.fixtures" for folder in _FIXTURES),
]

collect_ignore = [] if find_spec("duckdb") else ["sweep"]

_NUMBERS = count()
CHECKOUT = Path(__file__).resolve().parents[1]

# What is made while tests are collected stays: looking for garbage was a sixth of that time.
gc.disable()
# What tests make is mostly freed by counting; the little in circles may wait.
if hasattr(gc, "set_threshold"):  # PyPy's collector is another one
    gc.set_threshold(20_000, 20, 20)

# A suite that a shell started in the background ignores Ctrl-C, and so would the commands that
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a red test is red for everyone; HYPOTHESIS_PROFILE=search
# looks further.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, database=None, max_examples=40, **_common)
settings.register_profile(  # for `make quick`: `make test` draws the others
    "quick", settings.get_profile("default"), max_examples=10
)
settings.register_profile(  # for tools/mutate.py: that it fails is all that is asked
    "mutants", settings.get_profile("default"), phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("search", max_examples=2000, **_common)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples a property gets."""
    wanted = "quick" if config.option.markexpr == "not slow" else "default"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", wanted))
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Worker())


class _Worker:
    """A process of ``-n`` tells the one that shows what happens a third of what it would tell: six
    messages a test took two milliseconds of both.
    """

    _QUICK = 0.005
    """Seconds that a set-up or what is done behind a test may take without being told."""

    @pytest.hookimpl
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test, and tell how it went, not that it begins and that all before it went well."""
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            if report.when == "call" or not report.passed or report.duration > self._QUICK:
                item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def pytest_report_header() -> list[str]:
    """Say what is left out."""
    return [f"tests/{folder} is left out: needs the extra {folder!r}" for folder in collect_ignore]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The top folder of the source tree."""
    return CHECKOUT


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own, as pytest's; but pytest also points a symbolic link at each of them."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{next(_NUMBERS)}-{name}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the checkout; the test is skipped without it."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' beside the checkout")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: what is left when a worker runs out of work is quick."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def _settle() -> None:
    """Keep what is there now from the garbage collector, which would look at thousands of tests,
    and at what modules have cached, again and again.
    """
    gc.collect()
    if hasattr(gc, "freeze"):
        gc.freeze()


def _in_large_pages() -> None:
    """Lay what there is into pages of 2 MiB, where Linux can do that (6.1): the guard forks, and a
    fork copies an entry for each page of a process that knows ten thousand tests.
    """
    page, collapse = 2 << 20, 25  # MADV_COLLAPSE, madvise(2)
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        span, mode, *_, inode, name = f"{line} ".split(" ", 5)
        if mode == "rw-p" and inode == "0" and name.strip() in ("", "[heap]"):
            first, last = (int(end, 16) for end in span.split("-"))
            begin, end = -(-first // page) * page, last // page * page
            if begin < end:
                madvise(begin, end - begin, collapse)


def pytest_collection_finish() -> None:
    """Settle with all tests known."""
    _settle()
    _in_large_pages()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Settle after each module."""
    if nextitem is None or nextitem.path != item.path:
        _settle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Nobody asks a report for the keywords of its test, and three reports a test travel."""
    report = yield
    report.keywords = {}
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """What a test adds to the registry of all, a class that a file on a command line has, leaves
    with it.
    """
    known = registry.default_registry()
    _ = known.plugins  # else each branch would load and check them anew
    registry._DEFAULT[:] = [known.branch()]
    try:
        return (yield)
    finally:
        registry._DEFAULT[:] = [known]


@pytest.fixture
def paravirt_mm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, as its entry point does."""
    return runner(capsys, monkeypatch)
