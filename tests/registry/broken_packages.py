"""Broken packages of strangers, made on the fly: a module and its metadata in a folder.

Each kind has its code, what is said of it (None: it can be used) and, if need be, other entry
points than ``name = module:X``, or raw metadata.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import attrs

HEAD = """
import os, sys
from typing import ClassVar
import attrs
from paravirt_mm import API_VERSION, Cost, PageRun, Source, TablePages, hookimpl
from paravirt_mm.testing import AscendingAllocator, PlainPlatform
"""
GOOD = (
    HEAD
    + """
@attrs.frozen
class X(AscendingAllocator):
    "doc"
"""
)
OBSERVER = (
    HEAD
    + """
@attrs.frozen
class X:
    "doc"
    pvmm_api: ClassVar[int] = API_VERSION
"""
)


@attrs.frozen
class Kind:
    """A kind of broken package."""

    code: str
    words: str | None
    points: str = ""
    metadata: bytes | None = None
    raw_points: bytes | None = None


def body(text: str, start: str = OBSERVER) -> str:
    return start + textwrap.indent(textwrap.dedent(text), "    ")


def hook(name: str, code: str, start: str = OBSERVER, parameters: str = "") -> str:
    head = f"def {name}(self{', ' + parameters if parameters else ''}):\n"
    return body("@hookimpl\n" + head + textwrap.indent(textwrap.dedent(code), "    "), start)


SEEN = "pass"
WATCHES = hook("pvmm_observe", SEEN, parameters="event")

KINDS: dict[str, Kind] = {
    # What cannot be imported.
    "import_error": Kind("import no_such_module_xyz\n", "No module named 'no_such_module_xyz'"),
    "syntax_error": Kind(GOOD + "\ndef broken(:\n", "SyntaxError"),
    "null_bytes": Kind("x = '\0'\n", "cannot be loaded"),
    "exits": Kind("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "exits_hard": Kind("import os\nos._exit(0)\n", "ended with exit code 0"),
    "aborts": Kind("import os\nos.abort()\n", "was ended by SIGABRT"),
    "hangs": Kind("import time\ntime.sleep(3600)\n", "longer than"),
    "spins": Kind("while True: pass\n", "longer than"),
    "eats": Kind("x = []\nwhile True: x.append(bytes(1 << 29))\n", "MemoryError"),
    "interrupts": Kind("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "ends": Kind("raise GeneratorExit\n", "GeneratorExit"),
    "unprintable": Kind(
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E\n", "loaded from"
    ),
    "recurses": Kind("def f(): f()\nf()\n", "RecursionError"),
    "no_module": Kind("", "No module named 'not_there'", "no_module = not_there:X"),
    "no_class": Kind("y = 1\n", "no attribute 'X'"),
    "no_colon": Kind(GOOD, "must be module:Class", "no_colon = mod_no_colon"),
    "bad_value": Kind(GOOD, "must be module:Class", "bad_value = mod_bad_value : : x"),
    "forks": Kind("import os\nos.fork()\n" + GOOD, "it starts a process"),
    "starts_process": Kind(
        "import subprocess\nP = subprocess.Popen(['sleep', '9'])\n" + GOOD, "it starts a process"
    ),
    "starts_thread": Kind(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\n" + GOOD,
        "it starts a thread",
    ),
    "closes_stdout": Kind("import sys\nsys.__stdout__.close()\n" + GOOD, "it closes"),
    "closes_descriptor": Kind("import os\nos.close(0)\n" + GOOD, "closes the file descriptor 0"),
    "patches_core": Kind(
        "import paravirt_mm.measure.figures as f\nf.measure = lambda trace: {}\n" + GOOD,
        "replaces paravirt_mm.measure.figures.measure",
    ),
    "patches_method": Kind(
        "from paravirt_mm.scenario import Scenario\nScenario.run = lambda *a, **k: None\n" + GOOD,
        "replaces paravirt_mm.scenario.run",
    ),
    "patches_builtin": Kind(
        "import builtins\nbuiltins.sorted = lambda *a, **k: []\n" + GOOD, "builtins.sorted"
    ),
    # What is no plugin.
    "wrong_api": Kind(GOOD + "    pvmm_api: ClassVar[int] = 2\n", "written for API 2"),
    "newer_minor": Kind(GOOD + "    pvmm_api: ClassVar[str] = '1.99'\n", "update paravirt-mm"),
    "text_api": Kind(GOOD + "    pvmm_api: ClassVar[str] = 'one'\n", "which is none"),
    "true_api": Kind(GOOD + "    pvmm_api: ClassVar[bool] = True\n", "which is none"),
    "no_api": Kind(
        HEAD + "@attrs.frozen\nclass X:\n    @hookimpl\n    def pvmm_observe(self, event): pass\n",
        "must say which API",
    ),
    "api_field": Kind(
        HEAD + "@attrs.frozen\nclass X:\n    pvmm_api: int = API_VERSION\n", "which is none"
    ),
    "no_decorator": Kind(
        body("def pvmm_observe(self, event): pass\n"), "lacks the decorator @hookimpl"
    ),
    "misspelt": Kind(hook("pvmm_map_step", "yield"), "did you mean pvmm_map_steps?"),
    "default_param": Kind(
        hook("pvmm_observe", SEEN, parameters="event=None"), "must not have a default value"
    ),
    "wrong_param": Kind(hook("pvmm_observe", SEEN, parameters="registry"), "it may take: event"),
    "star_param": Kind(hook("pvmm_observe", SEEN, parameters="*args"), "takes 'args'"),
    "positional": Kind(hook("pvmm_observe", SEEN, parameters="event, /"), "positional-only"),
    "wrapper": Kind(
        body("@hookimpl(hookwrapper=True)\ndef pvmm_observe(self, event): yield\n"),
        "takes no arguments",
    ),
    "new_wrapper": Kind(
        body("@hookimpl(wrapper=True)\ndef pvmm_observe(self, event): return (yield)\n"),
        "takes no arguments",
    ),
    "first": Kind(
        body("@hookimpl(tryfirst=True)\ndef pvmm_observe(self, event): pass\n"),
        "takes no arguments",
    ),
    "async_hook": Kind(
        body("@hookimpl\nasync def pvmm_observe(self, event): pass\n"), "must not be async"
    ),
    "static": Kind(
        body("@staticmethod\n@hookimpl\ndef pvmm_observe(event): pass\n"), "plain method"
    ),
    "not_attrs": Kind(HEAD + "class X(AscendingAllocator): pass\n".replace("(A", "(object, A"), ""),
    "plain_class": Kind("class X: pass\n", "attrs.define or attrs.frozen"),
    "function": Kind("def X(): return 1\n", "attrs.define or attrs.frozen"),
    "instance": Kind(GOOD.replace("class X", "class Y") + "\nX = Y()\n", "must name a class"),
    "module": Kind(HEAD + "X = os\n", "must name a class"),
    "no_hooks": Kind(OBSERVER, "implements no hook"),
    "two_roles": Kind(
        hook("pvmm_boot_state", "return None", GOOD, "machine"), "for the backend to answer"
    ),
    "hijacks_pin": Kind(hook("pvmm_pin_tables", "return Cost()"), "for the backend to answer"),
    "hijacks_pages": Kind(
        hook("pvmm_allocate_tables", "return []"), "for the allocator to answer"
    ),
    "required_option": Kind(body("must: int\n") + WATCHES[len(OBSERVER) :], "must has none"),
    "required_keyword": Kind(
        GOOD + "    must: int = attrs.field(kw_only=True)\n", "must has none"
    ),
    "unresolved_type": Kind(
        "from __future__ import annotations\n" + body("ratio: Nothing | None = None\n")
        + WATCHES[len(OBSERVER) :],
        "cannot be resolved",
    ),
    "init_raises": Kind(
        body("def __attrs_post_init__(self): raise RuntimeError('init')\n", GOOD), "init"
    ),
    "init_exits": Kind(
        body("def __attrs_post_init__(self): os._exit(0)\n", GOOD), "exit code 0"
    ),
    "init_spins": Kind(
        body("def __attrs_post_init__(self):\n    while True: pass\n", GOOD), "longer than"
    ),
    "factory_exits": Kind(
        GOOD + "    x: int = attrs.field(factory=lambda: sys.exit(0))\n", "SystemExit"
    ),
    "descriptor": Kind(
        "class D:\n    def __get__(self, *a): raise OSError('looked at')\n" + GOOD
        + "    d = D()\n",
        "looked at",
    ),
    # Names and metadata.
    "upper_name": Kind(GOOD, "must be lower-case", "Upper-Name = mod_upper_name:X"),
    "unicode_name": Kind(GOOD, "must be lower-case", "härte = mod_unicode_name:X"),
    "bidi_name": Kind(GOOD, "must be lower-case", "a\u202eb = mod_bidi_name:X"),
    "escape_name": Kind(GOOD, "must be lower-case", "a\x1b[31m = mod_escape_name:X"),
    "aaa_steals_xen": Kind(GOOD, "'xen' is taken by paravirt-mm", "xen = mod_aaa_steals_xen:X"),
    "zzz_wants_xen": Kind(GOOD, "'xen' is taken by paravirt-mm", "xen = mod_zzz_wants_xen:X"),
    "same_name_2": Kind(GOOD, "taken by same_name_1", "samename = mod_same_name_2:X"),
    "no_metadata": Kind(GOOD, None, metadata=b""),
    "binary_points": Kind(GOOD, "metadata cannot be read", raw_points=b"[paravirt_mm]\n\xff = x:X"),
    # These can be used, whatever else they do.
    "same_name_1": Kind(GOOD, None, "samename = mod_same_name_1:X"),
    "two_names": Kind(WATCHES, None, "two_a = mod_two_names:X\ntwo_b = mod_two_names:X"),
    "prints": Kind("print('HELLO AT IMPORT')\nimport os\nos.write(1, b'RAW')\n" + GOOD, None),
    "warns": Kind(
        "import warnings\nwarnings.warn('old stuff', DeprecationWarning)\n" + GOOD, None
    ),
    "changes_process": Kind(
        "import gc, locale, os, random, signal, sys, warnings\n"
        "os.chdir('/')\nos.environ['PARAVIRT_MM_PLUGINS'] = '-all'\nrandom.seed(0)\n"
        "sys.setrecursionlimit(9000)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.alarm(1)\nwarnings.simplefilter('error')\ngc.disable()\nos.umask(0)\n"
        "sys.excepthook = None\nsys.stdout.close()\nsys.stdout = None\n" + GOOD,
        None,
    ),
    "observer_raises": Kind(
        hook("pvmm_observe", "raise OSError('disk full')", parameters="event"), None
    ),
}  # fmt: skip
del KINDS["not_attrs"]

ANSWERS: dict[str, tuple[str, str]] = {
    "machines_raise": (hook("pvmm_machines", "raise RuntimeError('no net')"), "no net"),
    "machines_exit": (hook("pvmm_machines", "sys.exit(0)"), "SystemExit: 0"),
    "machines_die": (hook("pvmm_machines", "os._exit(0)"), "exit code 0"),
    "machines_spin": (hook("pvmm_machines", "while True: pass"), "longer than"),
    "machines_junk": (hook("pvmm_machines", "return ['not a machine', 7]"), "not a machine"),
    "machines_endless": (
        hook(
            "pvmm_machines",
            "from paravirt_mm import bundled\nm = bundled('qemu-512m')\nwhile 1: yield m",
        ),
        "more than",
    ),
    "machines_late": (hook("pvmm_machines", "yield 1 / 0"), "ZeroDivisionError"),
    "machines_shadow": (
        hook("pvmm_machines", "from paravirt_mm import bundled\nreturn [bundled('qemu-512m')]"),
        "is taken",
    ),
}  # fmt: skip
"""Plugins that can be used, but not asked for machines: code, and what is said then."""


def install(folder: Path, name: str, kind: Kind) -> None:
    """Put a package into a folder, as pip would."""
    module = f"mod_{name}"
    (folder / f"{module}.py").write_bytes(kind.code.encode())
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir()
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n".encode()
    (info / "METADATA").write_bytes(told if kind.metadata is None else kind.metadata)
    points = f"[paravirt_mm]\n{kind.points or f'{name} = {module}:X'}\n".encode()
    (info / "entry_points.txt").write_bytes(kind.raw_points or points)
