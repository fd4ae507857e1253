"""What plugins answer to the registry: whose it is, what is refused of it, who is to blame."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import click
import pytest

from paravirt_mm import API_VERSION, GIB, hookimpl, offers
from paravirt_mm.about import Choice, DefaultSpec
from paravirt_mm.errors import PluginError, SpecError
from paravirt_mm.instances import HookFailed, Instances
from paravirt_mm.options import PluginSpec
from paravirt_mm.plugin import BrokenPlugin, Plugin
from paravirt_mm.registry import CHOICE_VARIABLE, Junk, Registry, chosen
from paravirt_mm.sources import bundled_machines
from paravirt_mm.sources.bootlog.lines import LineVerdict, LogLine
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with
from paravirt_mm.untouched import named
from tests.registry.answers import answering, small


def problems(registry: Registry) -> list[tuple[str, str]]:
    return [(one.name, one.problem) for one in registry.broken]


# -- answers that cannot be used -------------------------------------------------------------------

LINE = LogLine(LineVerdict.MATCH, 1, "x", "x")
SPECS = "pvmm_default_specs"
LISTS: dict[str, tuple[str, Callable[[Registry], Any], Any, int]] = {
    "default specs": (SPECS, lambda r: offers.default_specs("allocator", r), DefaultSpec("x"), 100),
    "machines": ("pvmm_machines", offers.machines, small("x"), 10_000),
    "verifiers": ("pvmm_verifiers", offers.verifiers, click.Command("x"), 100),
    "lines": ("pvmm_check_log", lambda r: offers.check_log(r, []), LINE, 10_000),
}
"""Hooks that answer with several things: what asks, one of them, how many may be given."""


@pytest.mark.parametrize("what", LISTS)
def test_lists_are_of_one_kind_and_bounded(what: str) -> None:
    hook, ask, good, most = LISTS[what]
    kind = type(good).__name__
    for answer, words in (
        (lambda: 7, f"{hook} answered 7, not an iterable of {kind}"),
        (lambda: "text", f"{hook} answered 'text', not an iterable of {kind}"),
        (lambda: b"bytes", f"{hook} answered b'bytes', not an iterable of {kind}"),
        (lambda: [good, 7], f"{hook} gave 7, not a {kind}"),
        (lambda: (good for _ in range(most + 1)), f"{hook} gave more than {most} of {kind}"),
    ):
        registry = registry_with(installed=False, mine=answering(hook, answer))
        if what == "default specs":
            with pytest.raises(SpecError, match="no allocator is named, and no installed plugin"):
                ask(registry)
        else:
            assert not ask(registry)
        assert problems(registry) == [("mine", words)]
    if what != "machines":
        registry = registry_with(installed=False, mine=answering(hook, lambda: [good] * most))
        assert len(ask(registry)) == most
        assert not registry.broken


def test_of_a_long_answer_the_beginning_is_told() -> None:
    registry = registry_with(installed=False, mine=answering("pvmm_machines", lambda: "x" * 10**6))
    assert not offers.machines(registry)
    ((_, problem),) = problems(registry)
    assert len(problem) < 200


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (["text"], "answered ['text'], not a mapping of names to functions"),
        ({7: len}, "gave 7: <built-in function len>, not a name and a function"),
        ({"x": 7}, "gave 'x': 7, not a name and a function"),
    ],
)
def test_formats_are_functions_with_names(answer: Any, words: str) -> None:
    registry = registry_with(installed=False, mine=answering("pvmm_report_formats", lambda: answer))
    assert not offers.formats(registry)
    assert problems(registry) == [("mine", f"pvmm_report_formats {words}")]


def test_the_first_to_name_a_format_has_it() -> None:
    first = answering("pvmm_report_formats", lambda: {"mine": lambda _: "first"})
    second = answering("pvmm_report_formats", lambda: {"mine": lambda _: "second"})
    registry = registry_with(installed=False, b=second, a=first)
    assert offers.formats(registry)["mine"]([]) == "first"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (7, "answered 7, not a spec"),
        ("none", "answered 'none': no allocator 'none' (there are: mine)"),
        ("plain", "answered 'plain': no allocator 'plain' (there are: mine)"),
        ("mine:x=1", "answered 'mine:x=1': mine has no option 'x' (options: first_step)"),
    ],
)
def test_a_model_of_a_kernel_is_a_spec_that_can_be_made(answer: Any, words: str) -> None:
    registry = registry_with(
        installed=False, mine=answering("pvmm_models_kernel", lambda: answer), plain=PlainPlatform
    )
    assert offers.model_of_kernel(registry, "6.1", "x86_64") is None
    assert problems(registry) == [("mine", f"pvmm_models_kernel {words}")]


def test_who_models_a_platform_is_asked_with_all_that_is_known() -> None:
    asked: list[object] = []

    @attrs.frozen
    class Models(PlainPlatform):
        @hookimpl
        def pvmm_models_platform(self, platform: str, release: str | None, mode: str) -> str | None:
            asked.append((platform, release, mode))
            return "mine" if platform == "moon" else None

    registry = registry_with(installed=False, mine=Models)
    assert offers.model_of_platform(registry, "moon", "6.1", "i386") == "mine"
    assert offers.model_of_platform(registry, "sun", None, "i386") is None
    assert asked == [("moon", "6.1", "i386"), ("sun", None, "i386")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (7, "pvmm_open_questions answered 7, not an iterable of Iterable"),
        ([7], "pvmm_open_questions gave 7, not a Iterable"),
        ([[7]], "pvmm_open_questions gave 7, not a Choice"),
        ([[Choice()]] * 33, "pvmm_open_questions gave more than 32 of Iterable"),
        ([[Choice()] * 33], "pvmm_open_questions gave more than 32 of Choice"),
    ],
)
def test_open_questions_are_choices(answer: Any, words: str) -> None:
    registry = registry_with(installed=False, mine=answering("pvmm_open_questions", lambda: answer))
    assert offers.open_questions(registry, "mine", "6.1", "x86_64") == []
    assert problems(registry) == [("mine", words)]


def test_open_questions_are_those_of_the_plugin() -> None:
    def fail() -> None:
        raise ValueError("no idea")

    choices = [Choice(words=str(number)) for number in range(32)]
    good = registry_with(
        installed=False, mine=answering("pvmm_open_questions", lambda: [choices] * 32)
    )
    assert offers.open_questions(good, "mine", "6.1", "x86_64") == [tuple(choices)] * 32
    none = registry_with(installed=False, mine=AscendingAllocator)
    assert offers.open_questions(none, "mine", "6.1", "x86_64") == []
    bad = registry_with(installed=False, mine=answering("pvmm_open_questions", fail))
    assert offers.open_questions(bad, "mine", "6.1", "x86_64") == []
    assert problems(good) == problems(none) == []
    assert problems(bad) == [("mine", "pvmm_open_questions raised ValueError: no idea")]


# -- what is offered -------------------------------------------------------------------------------


def test_defaults_are_in_order_of_rank_and_of_the_role_that_is_asked_for() -> None:
    late = [DefaultSpec("b:first_step=2M", 7), DefaultSpec("b", 3, alone=True)]
    registry = registry_with(
        installed=False,
        a=answering(SPECS, lambda: [DefaultSpec("a", 5)]),
        b=answering(SPECS, lambda: late),
        plain=answering(SPECS, lambda: [DefaultSpec("plain", 1)], PlainPlatform),
    )
    assert offers.default_specs("allocator", registry) == ("b", "a", "b:first_step=2M")
    assert offers.default_spec("allocator", registry) == "b"
    late[1] = DefaultSpec("b", 9, alone=True)
    assert offers.default_spec("allocator", registry) == "b"
    late[1] = DefaultSpec("b", 9)
    assert offers.default_spec("allocator", registry) == "a"
    assert offers.default_specs("backend", registry) == ("plain",)
    with pytest.raises(SpecError, match="no observer is named"):
        offers.default_specs("observer", registry)


def test_machines_are_loaded_wherever_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_with(mine=answering("pvmm_machines", lambda: [small("lab")]))
    monkeypatch.setattr(offers, "default_registry", lambda: registry)
    file = tmp_path / "log"
    file.write_text("BIOS-e820: [mem 0x0000000000000000-0x000000003fffffff] usable\n")
    assert offers.load("lab") == small("lab")
    assert offers.load(file).memory_map.ram().end == GIB
    name = bundled_machines()[0]
    found = offers.load_all(["lab", file, name])
    assert [machine.name for machine in found] == ["lab", "log", name]
    assert offers.brought_machine("lab") == small("lab")


# -- asking ----------------------------------------------------------------------------------------


def test_all_are_asked_by_name_and_who_fails_stops_nobody() -> None:
    def fail() -> None:
        raise ValueError("no idea")

    def refuse() -> object:
        return "junk"

    def read(answer: str) -> str:
        if answer == "junk":
            raise Junk("is junk")
        return answer.upper()

    registry = registry_with(
        installed=False,
        z=answering("pvmm_models_kernel", lambda: "last"),
        m=answering("pvmm_models_kernel", lambda: None),
        k=answering("pvmm_models_kernel", refuse),
        b=answering("pvmm_models_kernel", fail),
        a=answering("pvmm_models_kernel", lambda: "first"),
        other=AscendingAllocator,
    )
    for _ in range(2):  # each problem is told once
        asked = registry.ask("pvmm_models_kernel", read, release="6.1", mode="", parameters=())
        assert list(asked) == [("a", "FIRST"), ("z", "LAST")]
    assert problems(registry) == [
        ("b", "pvmm_models_kernel raised ValueError: no idea"),
        ("k", "pvmm_models_kernel is junk"),
    ]


def test_who_dies_in_a_child_is_left_out_and_ours_are_not_tried_there() -> None:
    here = os.getpid()
    registry = Registry(careful=True)
    registry.add("a", answering("pvmm_models_kernel", lambda: os._exit(3)))
    ours = answering("pvmm_models_kernel", lambda: os.getpid() == here or os._exit(4))
    registry.add("b", ours, "paravirt-mm", "1")
    asked = registry.ask("pvmm_models_kernel", bool, release="6.1", mode="", parameters=())
    assert list(asked) == [("b", True)]
    assert problems(registry) == [("a", "pvmm_models_kernel: its process ended with exit code 3")]


def test_no_more_questions_are_remembered_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paravirt_mm.registry.MAX_SURVIVED", 2)
    log = tmp_path / "asked"

    def answer() -> str:
        with log.open("a") as file:
            file.write("x")
        return "yes"

    registry = Registry(careful=True)
    registry.add("mine", answering("pvmm_models_kernel", answer))
    for release, times in (("1", 2), ("2", 2), ("3", 2), ("3", 2), ("1", 1), ("2", 1)):
        log.write_text("")
        list(registry.ask("pvmm_models_kernel", str, release=release, mode="", parameters=()))
        assert len(log.read_text()) == times, release


# -- getting one -----------------------------------------------------------------------------------


def test_who_is_not_there_is_told_what_is() -> None:
    registry = registry_with(
        installed=False, zeta=AscendingAllocator, alpha=AscendingAllocator, plain=PlainPlatform
    )
    for name, role, words in (
        ("alpa", None, "no plugin 'alpa'; did you mean 'alpha'? (there are: alpha, plain, zeta)"),
        ("x", "allocator", "no allocator 'x' (there are: alpha, zeta)"),
        ("alpha", "backend", "no backend 'alpha' (there are: plain)"),
        ("plain", "observer", "no observer 'plain' (none is installed)"),
    ):
        with pytest.raises(SpecError) as told:
            registry.get(name, role)
        assert str(told.value) == words
    assert registry.get("alpha", "allocator") is registry.get("alpha")
    assert [plugin.name for plugin in registry.of_role("allocator")] == ["alpha", "zeta"]
    assert registry.origin("alpha") == "alpha (unregistered)"
    assert registry.origin("core") == "core"
    name, made = registry.make(PluginSpec.parse("alpha:first_step=2M"), "allocator")
    assert (name, made.first_step) == ("alpha", 2 << 20)


def test_a_broken_plugin_of_a_name_is_told_only_where_none_is_usable() -> None:
    registry = registry_with(installed=False, plain=PlainPlatform)
    registry.broken += [
        BrokenPlugin("other", "x", "1", "fails otherwise"),
        BrokenPlugin("plain", "thief", "1", "the name is taken"),
        BrokenPlugin("mine", "x", "1", "fails"),
    ]
    with pytest.raises(PluginError, match=r"^plugin mine: fails$"):
        registry.get("mine")
    with pytest.raises(SpecError, match=r"no allocator 'plain' \(none is installed\)"):
        registry.get("plain", "allocator")


def test_a_name_is_taken_once() -> None:
    registry = registry_with(installed=False, mine=AscendingAllocator)
    registry.add("mine", PlainPlatform, "late", "2")
    ((name, problem),) = problems(registry)
    assert name == "mine"
    assert problem == (
        "the name 'mine' is taken by unregistered (paravirt_mm.testing.reference); rename the "
        "entry point"
    )
    assert registry.get("mine").factory is AscendingAllocator
    registry.add("mine", 7)
    assert problems(registry)[1][1].startswith("the name 'mine' is taken by unregistered")
    assert "; its entry point must name a class" in problems(registry)[1][1]


def test_a_test_may_put_its_plugin_in_the_place_of_another() -> None:
    registry = Registry.discover("native,xen")
    registry.replace(Plugin("xen", PlainPlatform))
    assert registry.get("xen").factory is PlainPlatform
    assert set(registry.plugins) == {"native", "xen"}
    assert registry.broken == []


def test_a_branch_has_what_there_was_and_keeps_what_is_added() -> None:
    trunk = Registry.discover("native,xen")
    trunk.get("native")
    branch = trunk.branch()
    branch.add("mine", AscendingAllocator)
    assert set(branch.plugins) == {"native", "xen", "mine"}
    assert set(trunk.found) == {"native", "xen"}
    assert trunk.found["xen"] == branch.found["xen"].strip()
    assert "mine" not in trunk.plugins


def test_of_found_ones_the_distribution_is_told_without_importing_them() -> None:
    registry = Registry.discover("native")
    before = registry.found
    assert before == {"native": registry.get("native").origin} == registry.found


def test_a_file_that_was_mended_is_tried_again_in_a_child(tmp_path: Path) -> None:
    """And what is wrong with it then is told, not what was."""
    file = tmp_path / "mine.py"
    registry = Registry(careful=True)
    for code, words in (
        ("import os; os._exit(3)", "its process ended with exit code 3"),
        ("import os; os._exit(2 + 2)", "its process ended with exit code 4"),
        ("raise OSError('no such library')", "OSError: no such library"),
    ):
        file.write_text(code)
        with pytest.raises(PluginError, match=words):
            registry.get(f"{file}:Good")
        assert [one.problem.endswith(words) for one in registry.broken] == [True]
    file.write_text(
        "from paravirt_mm.testing import AscendingAllocator\n"
        "class Good(AscendingAllocator): '''Good.'''\n"
    )
    assert registry.get(f"{file}:Good").role == "allocator"


def test_a_choice_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("-xen", None):
        if before is None:
            monkeypatch.delenv(CHOICE_VARIABLE)
        else:
            monkeypatch.setenv(CHOICE_VARIABLE, before)
        with chosen("native"):
            assert os.environ[CHOICE_VARIABLE] == "native"
            assert set(Registry.discover().found) == {"native"}
            assert set(Registry.discover("xen").found) == {"xen"}
        assert os.environ.get(CHOICE_VARIABLE) == before


def test_of_what_was_replaced_five_are_named() -> None:
    assert named(["b", "a", "b"]) == "a, b"
    assert named("gfedcba") == "a, b, c, d, e"


# -- instances -------------------------------------------------------------------------------------


@attrs.frozen
class Watch:
    pvmm_api: ClassVar[int] = API_VERSION

    heard: list[str] = attrs.field(factory=list)
    fails: bool = False

    @hookimpl
    def pvmm_begin(self) -> None:
        self.heard.append("begin")

    @hookimpl
    def pvmm_observe(self, event: object) -> None:
        self.heard.append(str(event))
        if self.fails:
            raise ValueError("no idea")


def test_hooks_are_those_of_whoever_has_them() -> None:
    made = Instances([("a", AscendingAllocator())], [("w", Watch())])
    assert made.answers("pvmm_promise")
    assert not made.answers("pvmm_pin_tables")
    assert made.call("pvmm_pin_tables") is None
    assert made.implementer("pvmm_promise") == "a"
    assert made.implementer("pvmm_pin_tables") == "?"


def test_an_observer_that_fails_hears_no_more_and_the_others_do() -> None:
    good, bad, last = Watch(), Watch(fails=True), Watch()
    made = Instances([], [("good", good), ("bad", bad), ("last", last)])
    made.observe("one")
    made.observe("two")
    made.tell("pvmm_begin")
    assert good.heard == last.heard == ["one", "two", "begin"]
    assert bad.heard == ["one"]
    (told,) = made.left_out
    assert told == "observer bad is left out: pvmm_observe raised ValueError: no idea"
    with pytest.raises(HookFailed):
        Instances([("bad", Watch(fails=True))]).observe("one")


def test_what_a_call_was_given_and_gave_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters that it takes, but the boot, which is everything there is."""

    @attrs.frozen
    class Takes(AscendingAllocator):
        @hookimpl
        def pvmm_models_kernel(self, release: str) -> str:
            return f"not {release}"

    asked = {"release": "6.1", "mode": "i386", "parameters": ()}
    for value, shown in (("1", "mine.pvmm_models_kernel(release='6.1') -> 'not 6.1'\n"), ("0", "")):
        monkeypatch.setenv("PARAVIRT_MM_TRACE_HOOKS", value)
        assert Instances([("mine", Takes())]).call("pvmm_models_kernel", **asked) == "not 6.1"
        assert capsys.readouterr() == ("", shown)
