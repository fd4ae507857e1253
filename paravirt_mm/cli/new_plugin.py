"""``paravirt-mm new-plugin``: a complete project to begin with."""

from __future__ import annotations

import keyword
import re
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click

from paravirt_mm._version import __version__
from paravirt_mm.errors import InputError, SpecError, install

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ANSWERS = ".paravirt-mm-plugin.yml"


@click.command("new-plugin")
@click.argument("name", required=False)
@click.option("--allocator", "role", flag_value="allocator", help="An allocator of table pages.")
@click.option("--backend", "role", flag_value="backend", help="A platform.")
@click.option("--observer", "role", flag_value="observer", help="It hears of every event.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Where the project is written. [default: paravirt-mm-NAME]",
)  # fmt: skip
@click.option(
    "--update", is_flag=True,
    help="Renew CI and conformance test of an existing project (-o, or the current folder).",
)  # fmt: skip
def command(name: str | None, role: str | None, output: Path | None, update: bool) -> None:
    """Write a project for a plugin: it installs, works, and passes its tests from the first minute.

    NAME is the word behind -a or -b: lower case letters, digits and _.
    """
    try:
        import copier
    except ImportError:
        raise SpecError(f"needs copier: {install('new')}") from None
    if update:
        _update(copier, output or Path())
        return
    if name is None or role is None:
        raise click.UsageError("give a NAME, and --allocator, --backend or --observer")
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise click.BadParameter(
            f"{name!r}; a name begins with a letter and has lower case letters, digits and _ only",
            param_hint="NAME",
        )
    folder = output or Path(f"paravirt-mm-{name.replace('_', '-')}")
    if folder.exists() and any(folder.iterdir()):
        raise InputError("is there already, and not empty", str(folder))
    data = {"name": name, "role": role, "version": __version__}
    _write(copier.run_copy, folder, data)
    click.echo(f"{folder}: written\n\n  cd {folder}\n  pip install --editable '.[test]'\n  pytest")


def _update(copier: Any, folder: Path) -> None:
    """Write again what is the template's. Raises `InputError` where there is no such project."""
    if not (folder / _ANSWERS).is_file():
        raise InputError(f"holds no project of `new-plugin` (no {_ANSWERS})", str(folder))
    yaml: Any = import_module("yaml")  # copier needs it, so it is there

    try:
        known = yaml.safe_load((folder / _ANSWERS).read_text(encoding="utf-8"))
        data = {key: str(known[key]) for key in ("name", "role", "class_name")}
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be understood: {error}", str(folder / _ANSWERS)) from None
    _write(copier.run_copy, folder, {**data, "version": __version__}, overwrite=True)
    click.echo(f"{folder}: renewed for paravirt-mm {__version__}")


def _write(act: Any, folder: Path, data: dict[str, str], **how: Any) -> None:
    with as_file(files("paravirt_mm") / "template") as template:
        try:
            act(str(template), str(folder), data=data, defaults=True, quiet=True, **how)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", str(folder)) from None
