"""How a command ends: exit codes, what is said, signals, and which plugins it finds."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest

from paravirt_mm import registry
from paravirt_mm.cli import COMPLETE, verify
from paravirt_mm.cli.main import LazyGroup, main
from paravirt_mm.errors import Ended, InputError, ParavirtMmError, PluginError, SpecError
from paravirt_mm.plugin import BrokenPlugin
from paravirt_mm.registry import CHOICE_VARIABLE
from tests.commands import Run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (click.exceptions.Exit(7), 7, ""),
        (click.Abort(), 130, "interrupted\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (EOFError(), 130, "interrupted\n"),
        (click.UsageError("not so"), 2, "Error: not so\n"),
        (InputError("is empty", "x.log"), 3, "paravirt-mm: x.log: is empty\n"),
        (PluginError("x", "fails"), 4, "paravirt-mm: plugin x: fails\n"),
        (SpecError("no plugin 'x'"), 2, "paravirt-mm: no plugin 'x'\n"),
        (ParavirtMmError("differs"), 1, "paravirt-mm: differs\n"),
        (SystemExit(3), 4, "a plugin tried to end the process: sys.exit(3)\n"),
        (OSError(errno.EMFILE, "x"), 71, "the system refuses: no file descriptor is left (`ulimit"),
        (OSError(errno.ENFILE, "x"), 71, "the system refuses: no file descriptor is left on this"),
        (OSError(errno.ENOMEM, "x"), 71, "paravirt-mm: the system refuses: out of memory\n"),
        (MemoryError(), 71, "paravirt-mm: the system refuses: out of memory\n"),
        (
            OSError(errno.EACCES, "Permission denied"),
            3,
            "the system refuses: [Errno 13] Permission",
        ),
        (OSError("for no reason"), 3, "paravirt-mm: the system refuses: for no reason\n"),
        (Ended(143), 143, ""),
        (ValueError("oh"), 70, "this is a bug of paravirt-mm; please report it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_is_raised_becomes_an_exit_code(
    error: BaseException, code: int, words: str, paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `paravirt-mm --help` lists them; what is said goes to standard error."""

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("paravirt_mm.cli.figures.command.callback", fail)
    result = paravirt_mm("figures")
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert bool(result.stderr) == bool(words)
    assert ("Traceback" in result.stderr) == (code == 70)


@pytest.mark.parametrize("last", [1, 2])
def test_what_cannot_be_written_in_the_end_is_told(
    last: int, paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be the disk full while the command writes, or when it has ended."""

    class Fills(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1
            if self.flushed >= last:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Fills())
    result = paravirt_mm("completion", "zsh")
    told = "paravirt-mm: standard output: cannot be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (3, told)


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (5, 5), ("text", 0)])
def test_what_a_command_returns_is_its_exit_code_if_it_is_a_number(
    answer: object, code: int, paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paravirt_mm.cli.figures.command.callback", lambda **_: answer)
    assert paravirt_mm("figures").returncode == code


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signals are handled afterwards as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signals_unwind_once_and_those_ignored_stay_so(paravirt_mm: Run) -> None:
    """128 and the number, as shells have it; a second one ends the process at once."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    paravirt_mm("figures")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    with pytest.raises(Ended) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def _names(result: Any) -> set[str]:
    return {plugin["name"] for plugin in json.loads(result.stdout)["plugins"]}


def test_plugins_are_chosen(paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one command, and nothing of it is left."""
    monkeypatch.delenv(CHOICE_VARIABLE, raising=False)
    all_of_them = _names(paravirt_mm("plugins", "--json"))
    assert {"native", "xen", "incremental"} < all_of_them
    only = ("--only", "native,xen", "plugins", "--json")
    assert _names(paravirt_mm(*only)) == {"native", "xen"}
    assert _names(paravirt_mm("--disable", "xen", *only)) == {"native"}
    less = paravirt_mm("--disable", "xen", "--disable", "incremental", "plugins", "--json")
    assert _names(less) == all_of_them - {"incremental", "xen"}
    assert _names(paravirt_mm("plugins", "--json")) == all_of_them
    assert CHOICE_VARIABLE not in os.environ


def test_broken_plugins_are_named_beside_whatever_the_command_says(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plugins` names them itself, and has its own exit code for them."""
    found = registry.Registry.discover("native")
    found.broken.append(BrokenPlugin("bad", "pvmm-bad", "1", "no such library"))
    monkeypatch.setattr(registry, "_DEFAULT", [found])
    words = "plugin bad (pvmm-bad 1) is left out: no such library\n"
    figures = paravirt_mm("figures")
    assert (figures.returncode, figures.stderr) == (0, f"paravirt-mm: {words}")
    listed = paravirt_mm("plugins")
    assert (listed.returncode, listed.stderr) == (4, "")
    assert "BROKEN bad (pvmm-bad 1): no such library\n" in listed.stdout
    found.broken[:] = [BrokenPlugin("bad", "pvmm-bad", "", "no such library")]
    assert "BROKEN bad (pvmm-bad): no such library\n" in paravirt_mm("plugins").stdout
    found.broken[:] = [BrokenPlugin("bad", "pvmm-bad", "1", "x" * 10_000)]
    assert max(map(len, paravirt_mm("plugins").stdout.splitlines())) == 4000
    assert len(paravirt_mm("figures").stderr.strip()) == len("paravirt-mm: ") + 4000


def test_a_command_that_needs_no_plugins_looks_for_none(
    paravirt_mm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "paravirt_mm.registry")
    result = paravirt_mm("figures")
    assert (result.returncode, result.stderr) == (0, "")
    assert "paravirt_mm.registry" not in sys.modules


@pytest.mark.parametrize("way", ["list", "get", "help"])
def test_verifiers_of_plugins_are_found_whichever_way_one_asks(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group: Any = verify.command
    group.commands.clear()
    context = click.Context(group)
    if way == "list":
        assert group.list_commands(context)[:5] == ["kernel", "log", "cpu", "linux", "bound"]
    elif way == "get":
        assert group.get_command(context, "xen").name == "xen"
        assert group.get_command(context, "no-such") is None
    else:
        assert "  xen " in group.get_help(context)
    monkeypatch.setattr(verify, "verifiers", lambda _: [])  # other plugins are chosen now
    assert group.list_commands(context) == ["kernel", "log", "cpu", "linux"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("compar", "compare"), ("figure", "figures"), ("hund", "hunt"), ("new-plugins", "new-plugin")],
)
def test_who_mistypes_a_command_is_told_which_there_is(
    asked: str, meant: str, paravirt_mm: Run
) -> None:
    result = paravirt_mm(asked, "qemu-512m")
    assert result.returncode == 2
    assert f"No such command '{asked}'. Did you mean '{meant}'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_where_no_command_is_near_none_is_named(paravirt_mm: Run) -> None:
    result = paravirt_mm("x" * 50_000)
    assert result.returncode == 2
    assert "mean" not in result.stderr


def test_lists_have_the_lazy_commands_first_and_never_import_them() -> None:
    """What is added later stands behind them, by name."""
    group = LazyGroup("x", lazy={"zeta": ("no.such.module", "Last letter."), "eta": ("no", "E.")})
    for name in ("beta", "alpha"):
        group.add_command(click.Command(name, help=f"About {name}. And more."))
    fits, not_quite = "about " + "x" * 64, "about " + "x" * 65  # in 70 characters
    for name, words in (("fits", fits), ("long", not_quite)):
        group.add_command(click.Command(name, help=words))
    context = click.Context(group, terminal_width=100)
    assert group.list_commands(context) == ["zeta", "eta", "alpha", "beta", "fits", "long"]
    lines = [line.split() for line in group.get_help(context).splitlines()]
    assert lines[-6:] == [
        ["zeta", "Last", "letter."],
        ["eta", "E."],
        ["alpha", "About", "alpha."],
        ["beta", "About", "beta."],
        ["fits", *fits.split()],
        ["long", "about..."],
    ]
    assert [item.value for item in group.shell_complete(context, "a")] == ["alpha"]
    ((zeta, about),) = [(item.value, item.help) for item in group.shell_complete(context, "z")]
    assert (zeta, about) == ("zeta", "Last letter.")
    assert group.shell_complete(context, "alpha")[0].help == ""


def test_a_shell_that_asks_is_answered_and_nothing_else_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETE, "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "paravirt-mm comp")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setattr(sys, "argv", ["paravirt-mm", "figures"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == ["plain", "compare", "Compare allocators under several platforms."]
    assert told[3:5] == ["plain", "completion"]


def test_version_and_help(paravirt_mm: Run) -> None:
    assert paravirt_mm("--version").stdout.startswith("paravirt-mm, version ")
    assert paravirt_mm("-h").stdout == paravirt_mm("--help").stdout
    assert paravirt_mm("compare", "-h").stdout.startswith("Usage: paravirt-mm compare [OPTIONS]")
