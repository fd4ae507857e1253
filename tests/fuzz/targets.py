"""What is fuzzed: each reader, each command, and the core's faith in the answers of plugins.

A target gives seeds and a function that takes a damaged input. The function may raise what the
package raises on purpose; anything else is a finding, and so is what the guard has to stop.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import random
import sys
import tarfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import attrs
from edges import ALLOCATORS, BACKENDS, edge_machine, pair, unanswered

from paravirt_mm import hookimpl
from paravirt_mm.cli import reading, scenarios
from paravirt_mm.cli.main import main
from paravirt_mm.errors import ExitCode, ParavirtMmError
from paravirt_mm.guard import Limits
from paravirt_mm.hookspecs import API_VERSION
from paravirt_mm.image.dump import open_dump
from paravirt_mm.image.inspect import inspect
from paravirt_mm.machine.paging import MODES
from paravirt_mm.run import Outcome
from paravirt_mm.scenario import Scenario
from paravirt_mm.sources import bundled, load_each, read_boot_log
from paravirt_mm.sources.generated import Seeded
from paravirt_mm.sources.inputs import divide
from paravirt_mm.sources.machine_file import write_json, write_toml
from paravirt_mm.sources.possible import checked
from paravirt_mm.testing import registry_with
from paravirt_mm.verify.kernel.compare import replay_file
from paravirt_mm.verify.linux.compare import replay_file as boots_of
from paravirt_mm_incremental import Incremental
from paravirt_mm_xen.dom0.compare import compare_dom0
from paravirt_mm_xen.dom0.recording import Dom0Recording
from paravirt_mm_xen.traces.files import read_traces

DATA = Path(__file__).parents[1] / "data"


@attrs.frozen
class Target:
    """``suffix`` is the file's name as the reader gets it; ``act`` is given the file, and the rest
    of what decides the case. ``weight`` is its share of the time.
    """

    suffix: str
    seeds: Callable[[], Sequence[bytes]]
    act: Callable[[Path, random.Random], object]
    weight: int = 2


@cache
def _logs() -> tuple[bytes, ...]:
    return tuple(path.read_bytes()[:60_000] for path in sorted((DATA / "logs").glob("*.txt")))


@cache
def _iomem() -> tuple[bytes, ...]:
    return (
        b"00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n"
        b"000f0000-000fffff : Reserved\n  000f0000-000fffff : System ROM\n"
        b"00100000-3fffffff : System RAM\n  01000000-01a00eb0 : Kernel code\n"
        b"  01e00000-01f3ffff : Kernel data\n  02000000-020fffff : Kernel bss\n"
        b"40000000-4fffffff : PCI Bus 0000:00\n100000000-23fffffff : System RAM\n",
    )


@cache
def _machine_files() -> tuple[bytes, ...]:
    return _written("qemu-512m", "lenovo-x230-8g", "asus-l8400-256m") + _edge_files()


@cache
def _small_machine_files() -> tuple[bytes, ...]:
    return _written("qemu-512m", "qemu-pae-320m") + _edge_files()


def _written(*names: str) -> tuple[bytes, ...]:
    return tuple(
        write(bundled(name)).encode() for name in names for write in (write_toml, write_json)
    )


def _edge_files() -> tuple[bytes, ...]:
    """A few machines that are odd before they are damaged."""
    machines = (edge_machine(Seeded(number)) for number in range(24))
    return tuple(write_toml(machine).encode() for machine in machines)


@cache
def _records() -> tuple[bytes, ...]:
    text = lzma.decompress((DATA / "oracle" / "linux-kernel-oracle-40.jsonl.xz").read_bytes())
    return tuple(sorted(text.splitlines(keepends=True), key=len)[:6])


def _tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


@cache
def _archives() -> tuple[bytes, ...]:
    files = {"a/one.log": _logs()[0], "b.txt": _iomem()[0], "c.toml": _machine_files()[0]}
    memmap = {
        f"memmap/{number}/{part}": value
        for number in range(3)
        for part, value in (("start", b"0x%x\n" % (number << 20)), ("type", b"System RAM\n"))
    }
    return (
        _tar(files), _tar(files, "w:gz"), _tar(files, "w:xz"), _tar(memmap),
        gzip.compress(_logs()[1]), lzma.compress(_logs()[2], preset=0),
    )  # fmt: skip


@cache
def _cores() -> tuple[bytes, ...]:
    from paravirt_mm.image.elf import core_header

    table = (0x1000 | 0x63).to_bytes(8, "little") + bytes(4088)
    return tuple(
        core_header(mode, 0, [(0, 8192)], mode.direct_map_base, {"cr3": "0x0", "mode": mode.name})
        + table * 2
        for mode in MODES.values()
    )


@cache
def _traces() -> tuple[bytes, ...]:
    text = lzma.decompress((DATA / "xen" / "xen-4.17.7-sample.jsonl.xz").read_bytes())
    return tuple(line for line in text.splitlines(keepends=True)[:400] if len(line) < 6000)[:40]


@cache
def _boots() -> tuple[bytes, ...]:
    files = sorted((DATA / "linux_live").glob("*.jsonl"))
    return tuple(min(file.read_bytes().splitlines(keepends=True), key=len) for file in files)


@cache
def _dom0s() -> tuple[bytes, ...]:
    files = sorted((DATA / "xen").glob("dom0-*-small-*.json.xz"))
    return tuple(lzma.decompress(file.read_bytes()) for file in files)


def _load(path: Path, _: random.Random) -> None:
    for _source, outcome in load_each([str(path)]):
        str(outcome)


def _divide(path: Path, _: random.Random) -> None:
    for part in divide([str(path)]):
        part.digest()
        for _ in part.machines(None):
            pass


def _log(path: Path, _: random.Random) -> None:
    read_boot_log(str(path))


def _inspect(path: Path, rng: random.Random) -> None:
    with open_dump(path) as dump:
        mode = dump.mode or rng.choice(list(MODES.values()))
        inspect(dump, (dump.cr3 or 0) & ~0xFFF, mode)


def _oracle(path: Path, _: random.Random) -> None:
    for replay in replay_file(str(path)):
        str(replay)


def _boot(path: Path, _: random.Random) -> None:
    for replay in boots_of(str(path)):
        str(replay)


def _dom0(path: Path, _: random.Random) -> None:
    for line in compare_dom0(Dom0Recording.load(path)).lines():
        if not line.isprintable():
            raise AssertionError(f"not fit for a terminal: {line!r}")


def _xen(path: Path, _: random.Random) -> None:
    for trace in read_traces(path):
        str(trace)


def _without_a_child(work: Callable[[int], Any], _: Limits) -> Any:
    yield from work(0)


_CODES = {ExitCode.OK, ExitCode.FINDINGS, ExitCode.USAGE, ExitCode.BAD_INPUT}


def _command(*before: str, choosing: Sequence[str] = ()) -> Callable[[Path, random.Random], None]:
    """The command line on a damaged file: an exit code as documented, and nothing that a terminal
    acts on. Only every 32nd input is read and run in children of its own: the case is in one.
    ``choosing``: of which roles a plugin is named, any.
    """

    def act(path: Path, rng: random.Random) -> None:
        asked = (
            item for option in choosing for item in (f"-{option[0]}", rng.choice(SPECS[option]))
        )
        sys.argv = ["paravirt-mm", *before, *asked, str(path)]
        out, err = io.StringIO(), io.StringIO()
        code: object = None
        with contextlib.ExitStack() as around:
            around.enter_context(contextlib.redirect_stdout(out))
            around.enter_context(contextlib.redirect_stderr(err))
            if rng.randrange(32):
                for module in (reading, scenarios):
                    around.enter_context(patch.object(module, "guarded", _without_a_child))
            try:
                main()
            except SystemExit as end:
                code = end.code
        if code not in _CODES:
            raise AssertionError(f"exit code {code}: {err.getvalue()[-2000:]}")
        text = out.getvalue() + err.getvalue()
        if "\x1b" in text or "\u202e" in text or len(err.getvalue()) > 50_000:
            raise AssertionError(f"not fit for a terminal: {text[:500]!r}")

    return act


# -- answers of plugins -------------------------------------------------------------------------


def _odd(rng: random.Random) -> Any:
    """A value that no hook should answer."""
    return rng.choice(
        (
            None,
            0,
            -1,
            1 << 70,
            1.5,
            float("nan"),
            "x",
            b"x",
            (),
            (1,),
            [None],
            {},
            {"a": 1},
            object(),
            lambda: 1,
            ((1, 0),),
            ((0, 1 << 60),),
            (("a", "b"),),
            Ellipsis,
            True,
        )
    )


def _spoiled(answer: Any, rng: random.Random) -> Any:
    """An answer with one thing about it changed."""
    if rng.random() < 0.3:
        return _odd(rng)
    if isinstance(answer, tuple | list) and answer:
        items = list(answer)
        place = rng.randrange(len(items))
        match rng.randrange(4):
            case 0:
                del items[place]
            case 1:
                items.append(items[place])
            case 2:
                items.reverse()
            case _:
                items[place] = _spoiled(items[place], rng)
        return type(answer)(items)
    if attrs.has(type(answer)):
        field = rng.choice(attrs.fields(type(answer)))
        if not field.init:
            return answer
        value = getattr(answer, field.name)
        if isinstance(value, int):
            value = rng.choice((value + 1, value - 1, -value, value << 40, value * 2, _odd(rng)))
        else:
            value = _spoiled(value, rng)
        return attrs.evolve(answer, **{field.alias or field.name: value})
    return _odd(rng)


_RNG: list[random.Random] = []


@attrs.frozen
class Liar:
    """An allocator whose answers are those of `Incremental`, some of them spoiled."""

    pvmm_api: ClassVar[int] = API_VERSION
    kernel: str = "4.19"

    def _maybe(self, answer: Any) -> Any:
        return _spoiled(answer, _RNG[-1]) if _RNG[-1].random() < 0.3 else answer

    @hookimpl
    def pvmm_promise(self, boot: Any) -> Any:
        return self._maybe(Incremental().pvmm_promise(boot))

    @hookimpl
    def pvmm_map_steps(self, boot: Any) -> Any:
        steps = Incremental().pvmm_map_steps(boot)
        result = None
        for _ in range(100):
            try:
                step = steps.send(result)
            except StopIteration:
                return
            result = yield self._maybe(step)

    @hookimpl
    def pvmm_allocate_tables(self, boot: Any, step: Any, demand: Any) -> Any:
        return self._maybe(Incremental().pvmm_allocate_tables(boot, step, demand))


@cache
def _registry() -> Any:
    return registry_with(liar=Liar)


def _answers(path: Path, _: random.Random) -> None:
    """The input is only a seed: what is damaged are the answers."""
    rng = random.Random(path.read_bytes())
    _RNG.append(rng)
    backend = rng.choice(("native", "xen"))
    run = Scenario.of(bundled("qemu-512m"), "liar", backend).run(_registry())
    if run.verdict.outcome is Outcome.ERROR and "liar" not in str(run.verdict):
        raise AssertionError(f"the wrong one is blamed: {run.verdict}")


def _any_seed() -> tuple[bytes, ...]:
    return (b"seed " * 8,)


def _edges(path: Path, _: random.Random) -> None:
    """The input is only a seed here, too: what is odd is the machine."""
    choose = Seeded(random.Random(path.read_bytes()).getrandbits(64))
    machine = checked(edge_machine(choose), "edge")
    for _ in range(4):
        allocator, backend = pair(choose, machine)
        thorough = choose.one_of((False, False, True))
        run = Scenario.of(machine, allocator, backend).run(thorough=thorough)
        if wrong := unanswered(run) or (run.figures is None):
            raise AssertionError(f"{allocator} under {backend}: {wrong}\n{write_toml(machine)}")


# Chunks of a size that is asked for to the letter take as long as they take.
SPECS = {
    "allocator": [spec for spec in ALLOCATORS if not spec.startswith("chunk_end:")],
    "backend": BACKENDS,
}
BOTH = tuple(SPECS)

TARGETS = {
    "log": Target("log", _logs, _log),
    "load log": Target("log", _logs, _load),
    "iomem": Target("txt", _iomem, _load),
    "machine file": Target("toml", _machine_files, _load),
    "machine json": Target("json", _machine_files, _load),
    "records": Target("jsonl", _records, _load),
    "archive": Target("tar", _archives, _load),
    "parts": Target("tar", _archives, _divide),
    "core": Target("core", _cores, _inspect),
    "oracle": Target("jsonl", _records, _oracle),
    "boot records": Target("jsonl", _boots, _boot),
    "dom0": Target("json", _dom0s, _dom0, 1),
    "xen traces": Target("jsonl", _traces, _xen),
    "compare": Target("log", _logs, _command("compare", choosing=BOTH)),
    "compare html": Target(
        "toml", _machine_files, _command("compare", "-f", "html", choosing=BOTH)
    ),
    "run": Target("toml", _small_machine_files, _command("run", choosing=BOTH)),
    "run explained": Target(
        "toml", _small_machine_files, _command("run", "--explain", choosing=BOTH), 1
    ),
    "machines": Target("log", _logs, _command("machines")),
    "inspect": Target("core", _cores, _command("inspect")),
    "verify log": Target("log", _logs, _command("verify", "log")),
    "verify xen": Target("jsonl", _traces, _command("verify", "xen")),
    "verify kernel": Target("jsonl", _records, _command("verify", "kernel")),
    "edges": Target("seed", _any_seed, _edges),
    "answers": Target("seed", _any_seed, _answers),
}

ON_PURPOSE = ParavirtMmError
"""What a reader may raise."""
