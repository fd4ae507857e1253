"""What the registry refuses, each with words that say what to change."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from paravirt_mm import (
    API_VERSION,
    Boot,
    Machine,
    PluginError,
    Promise,
    SpecError,
    hookimpl,
    hookspecs,
)
from paravirt_mm.hookspecs import API_MINOR
from paravirt_mm.plugin import BrokenPlugin, PluginDeprecationWarning, problems
from paravirt_mm.registry import Registry
from paravirt_mm.testing import AscendingAllocator, PlainPlatform, registry_with


@attrs.frozen
class Base:
    pvmm_api: ClassVar[int] = API_VERSION


@attrs.frozen
class Misspelt(Base):
    @hookimpl
    def pvmm_promis(self, boot: Boot) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class Undecorated(Base):
    def pvmm_promise(self, boot: Boot) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class DefaultParameter(Base):
    @hookimpl
    def pvmm_promise(self, boot: Boot | None = None) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class WrongParameter(Base):
    @hookimpl
    def pvmm_promise(self, machine: Machine) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class WrongPrefix(Base):
    @hookimpl
    def promise(self, boot: Boot) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class NoHook(Base):
    pass


class NotAttrs:
    pvmm_api: ClassVar[int] = API_VERSION

    @hookimpl
    def pvmm_observe(self, event: object) -> None: ...


@attrs.frozen
class NoVersion:
    @hookimpl
    def pvmm_observe(self, event: object) -> None: ...


@attrs.frozen
class Older(NoVersion):
    pvmm_api: ClassVar[int] = API_VERSION - 1


@attrs.frozen
class Newer(NoVersion):
    pvmm_api: ClassVar[int] = API_VERSION + 1


@attrs.frozen
class NewerMinor(NoVersion):
    pvmm_api: ClassVar[str] = f"{API_VERSION}.99"


@attrs.frozen
class NotANumber(NoVersion):
    pvmm_api: ClassVar[str] = "one"


@attrs.frozen
class WrongPromise(Base):
    @hookimpl
    def pvmm_promise(self, boot: Boot) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class MeddlesWithBoth(AscendingAllocator):
    @hookimpl
    def pvmm_activate_cr3(self) -> None: ...


@attrs.frozen
class Wraps(AscendingAllocator):
    @hookimpl(wrapper=True)
    def pvmm_allocate_tables(self) -> Any:
        return (yield)


@attrs.frozen
class ComesLast(PlainPlatform):
    @hookimpl(trylast=True)
    def pvmm_activate_cr3(self) -> None: ...


@attrs.frozen
class Static(Base):
    @staticmethod
    @hookimpl
    def pvmm_observe(event: object) -> None: ...


@attrs.frozen
class Waits(Base):
    @hookimpl
    async def pvmm_observe(self, event: object) -> None: ...


@attrs.frozen
class Requires(Base):
    size: int

    @hookimpl
    def pvmm_observe(self, event: object) -> None: ...


@attrs.frozen
class Unknown(Base):
    size: NoSuchType = None  # type: ignore[name-defined]  # noqa: F821

    @hookimpl
    def pvmm_observe(self, event: object) -> None: ...


@attrs.frozen
class Refuses(Base):
    def __attrs_post_init__(self) -> None:
        raise SystemExit(0)

    @hookimpl
    def pvmm_observe(self, event: object) -> None: ...


@attrs.frozen
class Streams(Base):
    @hookimpl
    async def pvmm_observe(self, event: object) -> Any:
        yield 1


@attrs.frozen
class TakesNothing(AscendingAllocator):
    @hookimpl
    def pvmm_default_specs(self, boot: Boot) -> None: ...


@attrs.frozen
class ByPosition(AscendingAllocator):
    @hookimpl
    def pvmm_promise(self, boot: Boot, /) -> Promise: ...  # type: ignore[empty-body]


@attrs.frozen
class Offers(Base):
    @hookimpl
    def pvmm_observe(self, event: object) -> None: ...

    @hookimpl
    def pvmm_default_specs(self) -> None: ...


def stating(version: object) -> Any:
    return attrs.frozen(type("Stated", (AscendingAllocator,), {"pvmm_api": version}))


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "misspelt hook": (Misspelt, ["no hook pvmm_promis", "did you mean pvmm_promise?"]),
    "missing decorator": (Undecorated, ["pvmm_promise lacks the decorator @hookimpl"]),
    "default parameter": (DefaultParameter, ["'boot' must not have a default value"]),
    "wrong parameter": (WrongParameter, ["takes 'machine'", "it may take: boot"]),
    "wrong prefix": (WrongPrefix, ["promise has @hookimpl", "start with 'pvmm_'"]),
    "no hook": (NoHook, ["implements no hook"]),
    "not attrs": (NotAttrs, ["attrs.define or attrs.frozen"]),
    "an instance": (AscendingAllocator(), ["must name a class"]),
    "a function": (len, ["must name a class"]),
    "async generator": (Streams, ["pvmm_observe must not be async"]),
    "parameter of a hook without any": (TakesNothing, ["takes 'boot'", "it may take: none"]),
    "parameter by position": (ByPosition, ["'boot' must not be positional-only"]),
    "allocator's or backend's": (Offers, ["is for the allocator or backend to answer"]),
    "API that is true": (stating(True), ["API True, which is none"]),
    "API as a fraction": (stating(1.0), ["API 1.0, which is none"]),  # 1.10 would be 1.1
    "no API version": (NoVersion, ["it must say which API", f"pvmm_api = {API_VERSION}"]),
    "older API": (Older, [f"API {API_VERSION - 1}", "update the plugin"]),
    "newer API": (Newer, [f"API {API_VERSION + 1}", "update paravirt-mm"]),
    "hook of another role": (
        MeddlesWithBoth,
        ["pvmm_activate_cr3 is for the backend", "pvmm_map_steps makes it an allocator"],
    ),
    "allocator's hook alone": (WrongPromise, ["pvmm_promise is for the allocator", "observer"]),
    "wrapper": (Wraps, ["@hookimpl takes no arguments"]),
    "trylast": (ComesLast, ["@hookimpl takes no arguments"]),
    "static method": (Static, ["pvmm_observe must be a plain method"]),
    "async": (Waits, ["pvmm_observe must not be async"]),
    "required option": (Requires, ["every option needs a default value", "size"]),
    "unknown type": (Unknown, ["types of its options", "NoSuchType"]),
    "cannot be made": (Refuses, ["cannot be made with default options: SystemExit"]),
    "API of a strange type": (NotANumber, ["API 'one'", "which is none"]),
    "newer minor": (NewerMinor, [f"API {API_VERSION}.99", "update paravirt-mm"]),
}


@pytest.mark.parametrize(("factory", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_remedy(factory: Any, words: list[str]) -> None:
    registry = Registry()
    registry.add("mine", factory, "some-plugin", "1.2")
    assert registry.plugins == {}
    (broken,) = registry.broken
    assert (broken.name, broken.distribution, broken.version) == ("mine", "some-plugin", "1.2")
    for word in words:
        assert word in broken.problem


@pytest.mark.parametrize("name", ["Mine", "my-plugin", "", "1st", "a:b", "a b", "x" * 65, "a\n"])
def test_names_must_fit_into_specs(name: str) -> None:
    assert "lower-case" in problems(name, PlainPlatform)[0]


def test_all_problems_are_named_at_once() -> None:
    @attrs.frozen
    class Many(Base):
        @staticmethod
        @hookimpl
        def pvmm_begin() -> None: ...

        @hookimpl
        def pvmm_promis(self, boot: Boot) -> Promise: ...  # type: ignore[empty-body]

        def pvmm_observe(self, event: object) -> None: ...

    assert len(problems("many", Many)) == 3


def test_hooks_are_told_in_order_of_their_names() -> None:
    class Meddles(AscendingAllocator):
        @hookimpl
        def pvmm_write_entries(self) -> None: ...

        @hookimpl
        def pvmm_activate_cr3(self) -> None: ...

    told = [one.split()[0] for one in problems("mine", attrs.frozen(Meddles))]
    assert told == ["pvmm_activate_cr3", "pvmm_write_entries"]


def test_what_is_said_of_a_plugin_is_a_line() -> None:
    assert str(BrokenPlugin("a", "b", "1", "no")) == "plugin a (b 1) is left out: no"
    assert str(BrokenPlugin("a", "b", "", "no\nway")) == "plugin a (b) is left out: no\\nway"
    assert len(str(BrokenPlugin("a", "b", "", "p" * 9000))) == 4000


def test_name_that_is_taken() -> None:
    """The first one stays, and the second is told who has the name."""
    registry = Registry()
    registry.add("mine", AscendingAllocator, "first", "1.0")
    registry.add("mine", PlainPlatform, "second", "2.0")
    assert registry.plugins["mine"].factory is AscendingAllocator
    (broken,) = registry.broken
    assert broken.distribution == "second"
    assert "'mine' is taken by first 1.0" in broken.problem
    assert "rename" in broken.problem


def test_fewer_parameters_are_fine() -> None:
    @attrs.frozen
    class Few(AscendingAllocator):
        later: int = attrs.field(init=False)  # no option, and so without a default

        @hookimpl
        def pvmm_promise(self) -> Promise: ...  # type: ignore[empty-body]

    assert problems("few", Few) == []


def test_roles() -> None:
    @attrs.frozen
    class Observer(Base):
        @hookimpl
        def pvmm_observe(self, event: object) -> None: ...

    registry = registry_with(
        installed=False, one=AscendingAllocator, two=PlainPlatform, three=Observer
    )
    assert {name: plugin.role for name, plugin in registry.plugins.items()} == {
        "one": "allocator",
        "two": "backend",
        "three": "observer",
    }
    assert [plugin.name for plugin in registry.of_role("observer")] == ["three"]


def test_asking_for_what_is_not_there() -> None:
    registry = registry_with(installed=False, ascending=AscendingAllocator, plain=PlainPlatform)
    with pytest.raises(SpecError, match=r"no allocator 'ascendin'; did you mean 'ascending'\?"):
        registry.get("ascendin", "allocator")
    with pytest.raises(SpecError, match="no allocator 'plain'"):
        registry.get("plain", "allocator")
    assert registry.get("plain").role == "backend"


def test_asking_for_a_broken_plugin_says_why() -> None:
    registry = Registry()
    registry.add("mine", Misspelt)
    with pytest.raises(PluginError, match="pvmm_promis"):
        registry.get("mine", "allocator")


def test_options() -> None:
    plugin = registry_with(installed=False, block=AscendingAllocator).get("block")
    assert plugin.create({"first_step": "4096"}).first_step == 4096
    assert plugin.create() == AscendingAllocator()
    with pytest.raises(SpecError, match=r"no option 'first_stp'.*did you mean 'first_step'\?"):
        plugin.create({"first_stp": "1"})
    with pytest.raises(SpecError, match="first_step"):
        plugin.create({"first_step": "many"})


def test_registry_with_refuses_what_is_wrong() -> None:
    with pytest.raises(PluginError, match=r"mine.*pvmm_promis"):
        registry_with(mine=Misspelt)
    with pytest.raises(PluginError, match="taken"):
        registry_with(native=PlainPlatform)


@pytest.mark.parametrize("stated", [1, "1", "1.0", f"1.{API_MINOR}"])
def test_versions_that_will_do(stated: object) -> None:
    assert problems("mine", stating(stated)) == []


def test_deprecations_warn_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hookspecs.DEPRECATED, "pvmm_allocate_tables.step", "the demand says it")
    with pytest.warns(PluginDeprecationWarning) as warned:
        registry_with(installed=False, mine=AscendingAllocator)
    assert str(warned[0].message) == (
        "plugin mine (unregistered) uses pvmm_allocate_tables.step, which goes away:"
        " the demand says it"
    )
    monkeypatch.setitem(hookspecs.DEPRECATED, "pvmm_allocate_tables", "nobody allocates")
    with pytest.warns(PluginDeprecationWarning) as warned:
        registry_with(installed=False, mine=AscendingAllocator)
    assert ["nobody" in str(one.message) for one in warned] == [True, False]
