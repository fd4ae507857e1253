"""``paravirt-mm verify bound``: prove when the incremental designs cannot run out of memory."""

from __future__ import annotations

import json
from typing import Any

import click

from paravirt_mm import ExitCode, SpecError


@click.command()
@click.argument("names", metavar="[STATEMENT]...", nargs=-1)
@click.option("--words", is_flag=True, help="Print each statement in full.")
@click.option("--json", "as_json", is_flag=True, help="Print statements and proofs as JSON.")
def bound(names: tuple[str, ...], words: bool, as_json: bool) -> int:
    """Prove the statements of docs/bound.md: how much brk is always enough, and when it is not.

    Each is proved by z3 (extra `proof`) for all numbers within the limits that it names, or refuted
    with the numbers that show it. Exit code 1: one of them is not proved.
    """
    try:
        from paravirt_mm_incremental import proof
    except ImportError as error:
        raise SpecError(
            f"z3 is not installed ({error}): take the extra 'proof' (in a checkout: make install)"
        ) from error
    asked = [proof.find(name) for name in names] or list(proof.statements())
    records: list[dict[str, Any]] = []
    for statement in asked:
        found = proof.prove(statement)
        answer = "proved" if found.proved else "refuted" if found.refutation else "not decided"
        records.append(
            {
                "name": statement.name,
                "words": statement.words,
                "answer": answer,
                "numbers": found.refutation,
            }
        )
        if not as_json:
            click.echo(f"{answer:<12} {statement.name}")
            if words or not found.proved:
                click.echo(click.wrap_text(statement.words, 98, "    ", "    "))
            if found.refutation:
                click.echo(f"    {found.refutation}")
    if as_json:
        click.echo(json.dumps(records, indent=1))
    agreed = all(record["answer"] == "proved" for record in records)
    return ExitCode.OK if agreed else ExitCode.FINDINGS
