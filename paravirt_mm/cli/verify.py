"""``paravirt-mm verify``: subcommands that check a model against reality, the core's and those of
plugins.
"""

from __future__ import annotations

import click

from paravirt_mm.cli.main import LazyGroup
from paravirt_mm.offers import verifiers
from paravirt_mm.registry import default_registry

_OWN: dict[str, tuple[str, str]] = {
    "kernel": ("paravirt_mm.cli.verify_kernel", "Replay what real kernel code did."),
    "log": ("paravirt_mm.cli.verify_log", "Predict what a kernel printed about its mappings."),
    "cpu": ("paravirt_mm.cli.verify_cpu", "Let an emulated CPU walk the tables."),
    "linux": ("paravirt_mm.cli.verify_linux", "Boot a real kernel and compare what it did."),
}


class _VerifyGroup(LazyGroup):
    """The core's verifiers, and whatever plugins add through ``pvmm_verifiers``."""

    def _load_plugins(self) -> None:
        """Know the verifiers of the plugins that there are now."""
        self.commands.clear()
        for verifier in verifiers(default_registry()):
            self.add_command(verifier)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        self._load_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one verifier."""
        if cmd_name not in self._lazy:
            self._load_plugins()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verifiers."""
        self._load_plugins()
        super().format_commands(ctx, formatter)


@click.group(cls=_VerifyGroup, lazy=_OWN)
def command() -> None:
    """Check the models against reality: real kernel code, boot logs, real Xen, a CPU.

    Exit code 0 only when everything agrees.
    """
