"""Finding plugins through entry points: real metadata on a path of its own, broken neighbours
included.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paravirt_mm.errors import PluginError, SpecError
from paravirt_mm.guard import Limits
from paravirt_mm.registry import Registry, chosen, default_registry
from paravirt_mm.strangers import Tried, tried
from paravirt_mm.testing import AscendingAllocator

Install = Callable[..., Path]
GOOD = """
    from paravirt_mm.testing import AscendingAllocator
    class Good(AscendingAllocator):
        pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(distribution, version, entry_points, module_text, folder="site")``: put a
    distribution on the path.
    """

    def put(
        name: str, version: str, points: dict[str, str], code: str = GOOD, folder: str = "site"
    ) -> Path:
        site = tmp_path / folder
        site.mkdir(exist_ok=True)
        module = name.replace("-", "_")
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{key} = {value}" for key, value in points.items()]
        (info / "entry_points.txt").write_text("[paravirt_mm]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(site))
        return site

    return put


def test_third_party_plugin_is_found(install: Install) -> None:
    install("pvmm-good-one", "1.2", {"good_one": "pvmm_good_one:Good"})
    with pytest.raises(SpecError, match=r"no plugin 'good_on'; did you mean 'good_one'\?"):
        Registry.discover().get("good_on")
    registry = Registry.discover()
    plugin = registry.plugins["good_one"]
    assert issubclass(plugin.factory, AscendingAllocator)
    assert plugin.origin == "pvmm-good-one 1.2"
    assert plugin.role == "allocator"
    assert registry.broken == []


def test_built_in_plugins_come_through_the_same_group() -> None:
    """Core knows no plugin by name: these are entry points like any other."""
    plugins = Registry.discover().plugins
    built_in = {name for name, plugin in plugins.items() if plugin.distribution == "paravirt-mm"}
    assert {"native", "xen", "legacy_linear", "incremental"} <= built_in


BROKEN = {
    "import error": ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    "syntax error": ("def broken(:", "SyntaxError"),
    "exit at import": ("raise SystemExit(3)", "SystemExit"),
    "no such class": ("x = 1", "no attribute 'Good'"),
    "not a plugin": ("Good = 3", "must name a class"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_plugin_is_named_and_stops_nobody(kind: str, install: Install) -> None:
    code, words = BROKEN[kind]
    module = f"pvmm-bad-{kind.replace(' ', '-')}"
    install(module, "0.9", {"bad": f"{module.replace('-', '_')}:Good"}, code)
    install("pvmm-good-two", "1.0", {"good_two": "pvmm_good_two:Good"}, folder="other")
    registry = Registry.discover()
    assert {"good_two", "native", "xen"} <= set(registry.plugins)
    (broken,) = registry.broken
    assert (broken.name, broken.distribution, broken.version) == ("bad", module, "0.9")
    assert words in broken.problem


def test_interrupt_is_not_swallowed(install: Install) -> None:
    install("pvmm-stop", "1", {"stop": "pvmm_stop:Good"}, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry.discover().get("stop")


def test_two_distributions_want_one_name(install: Install) -> None:
    """Neither silently wins: the one that sorts first has it, and the other is told."""
    install("pvmm-aaa", "1.0", {"same": "pvmm_aaa:Good"})
    install("pvmm-bbb", "2.0", {"same": "pvmm_bbb:Good"}, folder="other")
    registry = Registry.discover()
    assert registry.plugins["same"].distribution == "pvmm-aaa"
    (broken,) = registry.broken
    assert broken.distribution == "pvmm-bbb"
    assert "taken by pvmm-aaa 1.0" in broken.problem


def test_editable_install_beside_a_wheel_is_one_plugin(install: Install) -> None:
    """The same distribution twice on the path (a wheel, and the source tree's own metadata) is no
    conflict.
    """
    install("pvmm-twice", "1.0", {"twice": "pvmm_twice:Good"}, folder="wheel")
    install("pvmm-twice", "1.1", {"twice": "pvmm_twice:Good"}, folder="editable")
    registry = Registry.discover()
    assert "twice" in registry.plugins
    assert registry.broken == []


def test_distributions_of_others_hide_nothing(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without plugins, one that is there twice, and one that cannot be read come first."""
    install("pvmm-good-one", "1.2", {"good_one": "pvmm_good_one:Good"})
    install("pvmm-twice", "1.0", {"twice": "pvmm_twice:Good"}, folder="wheel")
    install("pvmm-twice", "1.1", {"twice": "pvmm_twice:Good"}, folder="editable")
    for name, points in (("plain", b"[other]\n"), ("bare", b""), ("odd", b"[paravirt_mm]\n\xff=")):
        info = tmp_path / name / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_bytes(b"Name: \xff\n")
        if points:
            (info / "entry_points.txt").write_bytes(points)
        monkeypatch.syspath_prepend(str(tmp_path / name))
    install("nameless", "1.0", {"nameless": "nameless:Good"}, folder="nameless")
    (tmp_path / "nameless" / "nameless-1.0.dist-info" / "METADATA").write_text("")
    registry = Registry.discover()
    assert registry.found["nameless"] == "nameless"
    assert {"good_one", "twice", "native"} <= registry.found.keys()
    (broken,) = registry.broken
    assert (broken.name, broken.distribution) == ("?", "odd")
    assert "its metadata cannot be read: UnicodeDecodeError" in broken.problem


COUNTS = """
import os
with open({path!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
"""


def _imports(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("careful", [False, True])
def test_strangers_are_imported_elsewhere_first_and_once(
    install: Install, tmp_path: Path, careful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a child where we are careful, then here, each time only those that somebody asks for; what
    is ours in no child.
    """
    there: set[str] = set()

    def noted(points: dict[str, Any], *rest: Any) -> Iterator[tuple[str, Tried]]:
        there.update(points)
        return tried(points, *rest)

    monkeypatch.setattr("paravirt_mm.registry.tried", noted)
    marks = {name: tmp_path / f"{name}.log" for name in ("aaa", "bbb")}
    for name, path in marks.items():
        module = f"pvmm_{'careful' if careful else 'quick'}_{name}"  # imported once a process
        code = COUNTS.format(path=str(path)) + textwrap.dedent(GOOD)
        install(module.replace("_", "-"), "1", {name: f"{module}:Good"}, code, folder=name)
    registry = Registry.discover(careful=careful)
    assert registry.get("aaa").role == "allocator"
    here = str(os.getpid())
    first = _imports(marks["aaa"])
    assert [one == here for one in first] == [False, True][not careful :]
    assert _imports(marks["bbb"]) == []
    with pytest.raises(SpecError, match=r"there are: .*bbb"):
        registry.get("nobody")
    for _ in range(2):
        list(registry.ask("pvmm_machines", list))
    assert _imports(marks["aaa"]) == first
    # Nobody has asked for the other by name, and it has nothing to say of machines.
    assert [one == here for one in _imports(marks["bbb"])] == [not careful]
    assert [one.name for one in registry.of_role("allocator") if one.strange] == ["aaa", "bbb"]
    assert there == ({*marks} if careful else set())


SLOW = """
import time
end = time.process_time() + 0.06
while time.process_time() < end:
    pass
"""


@pytest.mark.parametrize("asks", ["a question to all", "a name that is not there"])
def test_who_was_too_slow_for_a_question_is_tried_again_by_name(
    install: Install, asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more patience; it is broken until then."""
    monkeypatch.setattr("paravirt_mm.registry.UNASKED", Limits(cpu=0.03))
    monkeypatch.setattr("paravirt_mm.registry.NAMED", Limits(cpu=9.0))
    name = f"pvmm_slow_{len(asks)}"
    install(name.replace("_", "-"), "1", {"slow": f"{name}:Good"}, SLOW + textwrap.dedent(GOOD))
    registry = Registry.discover("slow", careful=True)
    for _ in range(2):
        if asks == "a question to all":
            assert list(registry.ask("pvmm_default_specs", list)) == []
        else:
            with pytest.raises(SpecError):
                registry.get("nobody")
        assert ["longer than 0.03 s" in one.problem for one in registry.broken] == [True]
    assert registry.get("slow").role == "allocator"


def test_who_is_too_slow_by_name_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paravirt_mm.registry.NAMED", Limits(cpu=0.03))
    (tmp_path / "slow.py").write_text(SLOW)
    registry = Registry(careful=True)
    with pytest.raises(PluginError, match=r"longer than 0\.03 s"):
        registry.get(f"{tmp_path}/slow.py:Good")
    assert "slow" not in str(registry.found)


def test_who_ends_the_process_ends_a_child_and_is_broken(install: Install) -> None:
    install("pvmm-dies", "1", {"dies": "pvmm_dies:Good"}, "import os; os._exit(3)")
    install("pvmm-good-one", "1.2", {"good_one": "pvmm_good_one:Good"}, folder="other")
    registry = Registry.discover(careful=True)
    for _ in range(2):
        with pytest.raises(PluginError, match="its process ended with exit code 3"):
            registry.get("dies")
    assert [one.name for one in registry.broken] == ["dies"]
    with pytest.raises(SpecError, match=r"no backend 'good_one' \(there are: .*native"):
        registry.get("good_one", "backend")
    assert registry.get("good_one").strange


def test_one_point_listed_twice_is_one_plugin(install: Install) -> None:
    site = install("pvmm-dup", "1.0", {"dup": "pvmm_dup:Good"})
    points = site / "pvmm_dup-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "dup  =  pvmm_dup:Good\n")
    registry = Registry.discover()
    assert "dup" in registry.plugins
    assert registry.broken == []


def test_nothing_is_imported_before_somebody_asks(install: Install) -> None:
    install("pvmm-lazy", "1", {"lazy": "pvmm_lazy:Good"}, "raise OSError('imported')")
    registry = Registry.discover()
    assert registry.get("incremental", "allocator").name == "incremental"
    assert registry.broken == []
    with pytest.raises(PluginError, match="OSError: imported"):
        registry.get("lazy")


def test_what_an_import_prints_is_no_output(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("pvmm-loud", "1", {"loud": "pvmm_loud:Good"}, "print('hello')" + textwrap.dedent(GOOD))
    Registry.discover().get("loud")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


@pytest.mark.parametrize("thief", ["pvmm-aaa", "zzz-pvmm"])
def test_built_in_plugins_keep_their_names(install: Install, thief: str) -> None:
    install(thief, "6.6", {"xen": f"{thief.replace('-', '_')}:Good"})
    registry = Registry.discover()
    assert registry.plugins["xen"].distribution == "paravirt-mm"
    (broken,) = registry.broken
    assert (broken.distribution, broken.version) == (thief, "6.6")
    assert "'xen' is taken by paravirt-mm" in broken.problem


@pytest.mark.parametrize(
    ("choice", "there", "absent"),
    [
        ("", {"native", "xen", "incremental"}, set()),
        ("native, incremental", {"native", "incremental"}, {"xen", "legacy_linear"}),
        ("-xen,-legacy_linear", {"native", "incremental"}, {"xen", "legacy_linear"}),
    ],
)
def test_plugins_are_chosen_with_a_variable(
    choice: str, there: set[str], absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARAVIRT_MM_PLUGINS", choice)
    names = set(Registry.discover().plugins)
    assert there <= names
    assert not absent & names


ANSWERS = """
import os, attrs
from typing import ClassVar
from paravirt_mm import hookimpl
@attrs.frozen
class Good:
    pvmm_api: ClassVar[int] = 1
    @hookimpl
    def pvmm_models_kernel(self, release, parameters):
        with open({path!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        return release
    @hookimpl
    def pvmm_map_steps(self): ...
"""


@pytest.mark.parametrize("careful", [False, True])
def test_a_question_of_words_is_survived_once(
    install: Install, tmp_path: Path, careful: bool
) -> None:
    """Where we are careful a stranger answers in a child first, the same question only once; where
    the question holds more than words, each time.
    """
    path, name = tmp_path / "answers.log", f"pvmm_answers_{'careful' if careful else 'quick'}"
    install(name.replace("_", "-"), "1", {"mine": f"{name}:Good"}, ANSWERS.format(path=str(path)))
    registry = Registry.discover("mine", careful=careful)
    here = str(os.getpid())

    def elsewhere(release: str | None, *parameters: object) -> int:
        path.unlink(missing_ok=True)
        hook, mode = "pvmm_models_kernel", "x86_64"
        asked = registry.ask(hook, str, release=release, mode=mode, parameters=parameters)
        assert list(asked) == ([("mine", release)] if release else [])
        *before, last = _imports(path)
        assert last == here
        return len(before)

    assert [elsewhere("5.4", "x"), elsewhere("5.4", "x"), elsewhere("5.5", "x")] == (
        [1, 0, 1] if careful else [0, 0, 0]
    )
    assert [elsewhere(None), elsewhere(None)] == [careful, False]
    assert [elsewhere("5.4", "x", 7), elsewhere("5.4", "x", 7)] == [careful, careful]


def test_the_first_registry_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paravirt_mm.registry._DEFAULT", [])
    first = default_registry()
    assert default_registry() is first
    assert first.careful
    assert not Registry().careful
    assert not Registry.discover("-all").careful
    with chosen("native"):
        assert set(default_registry().found) == {"native"}
    assert default_registry() is first
