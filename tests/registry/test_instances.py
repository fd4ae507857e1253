"""Plugins that were made: who is asked, what it is given, and whose fault it is what it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from paravirt_mm import instances
from paravirt_mm.engine.contract import ContractBroken
from paravirt_mm.engine.panic import KernelPanic
from paravirt_mm.errors import Ended
from paravirt_mm.hookspecs import hookimpl
from paravirt_mm.instances import HookFailed, Instances, implemented, in_one_line, parameters_of


def plugin(**hooks: Callable[..., Any]) -> Any:
    """Return an object with hooks that are these functions, self and all."""
    members = {}
    for name, function in hooks.items():
        function.__name__ = f"pvmm_{name}"
        members[f"pvmm_{name}"] = hookimpl(function)
    return attrs.frozen(type("Made", (), members))()


def raises(error: BaseException) -> Any:
    raise error


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (ValueError("ends: "), "ValueError: ends"),
        (Mute(), "Mute"),
    ],
)
def test_an_exception_is_told_in_one_line(error: BaseException, line: str) -> None:
    assert in_one_line(error) == line
    failed = HookFailed("mine", "pvmm_promise", error)
    assert str(failed) == f"pvmm_promise raised {line}"
    assert (failed.plugin, failed.hook, failed.error) == ("mine", "pvmm_promise", error)


def test_what_breaks_the_contract_says_itself_what_is_wrong() -> None:
    broken = ContractBroken("pvmm_promise", "is not a Promise")
    assert str(HookFailed("mine", "pvmm_promise", broken)) == "pvmm_promise: is not a Promise"


def test_hooks_are_the_decorated_methods_of_known_names() -> None:
    class Some:
        @hookimpl
        def pvmm_promise(self, boot: object) -> None: ...

        @hookimpl
        def pvmm_observe(self) -> None: ...

        @hookimpl
        def pvmm_no_such_hook(self) -> None: ...

        def pvmm_begin(self) -> None: ...

        pvmm_map_steps = None

    assert implemented(Some) == {"pvmm_observe": (), "pvmm_promise": ("boot",)}
    assert implemented(Some) is implemented(Some)
    assert parameters_of("pvmm_models_kernel") == ("release", "mode", "parameters")


@pytest.mark.parametrize("where", ["called", "asked", "closed"])
@pytest.mark.parametrize(
    ("hook", "error", "child", "passes"),
    [
        ("map_steps", KernelPanic("no memory"), False, True),
        ("promise", KernelPanic("no memory"), True, True),
        ("boot_state", KernelPanic("no memory"), False, True),
        ("write_entries", KernelPanic("no memory"), False, False),
        ("observe", KernelPanic("no memory"), False, False),
        ("map_steps", ValueError("no"), False, False),
        ("observe", KeyboardInterrupt(), False, True),
        ("observe", KeyboardInterrupt(), True, False),
        ("map_steps", Ended(143), False, True),
        ("map_steps", Ended(143), True, False),
    ],
)
def test_whose_fault_it_is(
    where: str,
    hook: str,
    error: BaseException,
    child: bool,
    passes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An allocator, and what looks at the machine at boot, may panic; who is interrupted did no
    wrong, but in a child it was the plugin itself.
    """
    monkeypatch.setattr(instances, "is_child", lambda: child)

    def items(self: object) -> Any:
        try:
            yield 1
            raise error
        finally:
            if where == "closed":
                raise error

    def call(self: object) -> Any:
        return raises(error) if where == "called" else items(self)

    made = Instances([("mine", plugin(**{hook: call}))])

    def use() -> None:
        answers = made.call(f"pvmm_{hook}")
        assert next(answers) == 1
        if where == "closed":
            answers.close()
        else:
            next(answers)

    with pytest.raises(type(error) if passes else HookFailed) as caught:
        use()
    if not passes:
        failed: Any = caught.value
        assert (failed.plugin, failed.hook, failed.error) == ("mine", f"pvmm_{hook}", error)


def test_a_generator_is_sent_what_it_is_sent_and_its_end_is_told() -> None:
    def echo(self: object) -> Any:
        got = yield "first"
        while got != "end":
            got = yield got
        return "over"

    answers = Instances([("mine", plugin(map_steps=echo))]).call("pvmm_map_steps")
    assert [next(answers), answers.send("a"), answers.send("b")] == ["first", "a", "b"]
    with pytest.raises(StopIteration) as end:
        answers.send("end")
    assert end.value.value == "over"


def test_who_says_that_it_was_closed_and_was_not_has_failed() -> None:
    def items(self: object) -> Any:
        yield 1
        raise GeneratorExit

    answers = Instances([("mine", plugin(map_steps=items))]).call("pvmm_map_steps")
    next(answers)
    with pytest.raises(HookFailed, match=r"^pvmm_map_steps raised GeneratorExit$"):
        next(answers)


def test_the_first_that_has_a_hook_answers_it() -> None:
    made = Instances(
        [("none", plugin()), ("a", plugin(promise=lambda self: 1))],
        [("b", plugin(promise=lambda self: 2))],
    )
    assert (made.call("pvmm_promise"), made.implementer("pvmm_promise")) == (1, "a")
    assert list(made.each("pvmm_promise", str)) == [("a", "1"), ("b", "2")]


def refuse(answer: object) -> object:
    if answer == "junk":
        raise ContractBroken("pvmm_figures", "is junk")
    return answer


def test_of_all_that_are_asked_those_with_an_answer_are_heard() -> None:
    """Each of them with arguments of its own; an observer that gives junk is left out for good."""
    observers = [
        ("deaf", plugin(figures=lambda self: None)),
        ("bad", plugin(figures=lambda self: "junk", begin=lambda self: "still here")),
        ("zero", plugin(figures=lambda self, run: run)),
    ]
    made = Instances([("a", plugin(figures=lambda self: "fine"))], observers)
    for _ in range(2):
        assert list(made.each("pvmm_figures", refuse, run=0)) == [("a", "fine"), ("zero", 0)]
        assert made.left_out == ["observer bad is left out: pvmm_figures: is junk"]
    assert not made.answers("pvmm_begin")


@pytest.mark.parametrize("answer", [lambda self: "junk", lambda self: raises(ValueError("no"))])
def test_who_builds_tables_is_not_left_out(answer: Any) -> None:
    made = Instances([("mine", plugin(figures=answer))], [("w", plugin())])
    with pytest.raises(HookFailed, match=r"^pvmm_figures") as caught:
        list(made.each("pvmm_figures", refuse))
    assert caught.value.plugin == "mine"
    assert made.left_out == []
