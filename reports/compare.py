"""Write the comparison that this project publishes: every shipped machine, all allocators, both
platforms.

Run it after a change that alters figures: ``make report``. ``--check`` only tells whether the
published file is stale (exit code 1).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paravirt_mm import (
    MadeWritable,
    Outcome,
    Row,
    Run,
    Scenario,
    SurplusReleased,
    TablesReserved,
    bundled,
    bundled_machines,
    default_specs,
    machine_title,
    summary,
    tables,
)

PUBLISHED = Path(__file__).with_name("comparison.md")

HEAD = """\
# Old and new early page-table allocators on real machines

Written by `reports/compare.py` (`make report`) from the machines that the package carries; a test
fails when it is stale. Columns are explained by `paravirt-mm figures`.

- `legacy_linear 2.6.39`: one block, guessed, placed as high as what is to be mapped. The seed patch
  of October 2012 wanted this choice back for 64-bit kernels.
- `legacy_linear 3.6`: one block, guessed, inside what is mapped so far.
- `incremental linux 4.19`: what Linux merged in 3.9: top-down, no guess.
- `incremental hpa`: the seven steps as proposed; tables are handed to the platform before they are
  attached.
"""

WHY_3_6_WASTES_NOTHING = """\
With 3.6 nothing is wasted in this way, and that is no merit of the guess: the block lies in memory
that is mapped already, so its pages are made read-only one by one as they become tables. The price
is where the block lies (`<16M` above, `idle<16M` in the wide table), and that no place at all is
found on machines where too little is mapped at first."""


def flips_explained(runs: list[Run]) -> str:
    """Return what the guess costs in page-status flips, with the trace events that show it."""
    lines = ["## What the guess costs under Xen, event by event", ""]
    for run in runs:
        if run.figures.get("flips_wasted"):
            events = [
                f"event {number} ({type(event).__name__})"
                for number, event in enumerate(run.trace)
                if isinstance(event, TablesReserved | SurplusReleased | MadeWritable)
            ]
            figures = run.figures
            lines.append(
                f"- {run.machine.name}, {run.allocator}: {figures['flips_wasted']} of "
                f"{figures['flips']} flips are wasted: {', '.join(events)}."
            )
    return "\n".join([*lines, "", WHY_3_6_WASTES_NOTHING])


def render() -> str:
    """Return the published Markdown."""
    every: list[Row] = []
    parts = [HEAD]
    wasteful: list[Run] = []
    sections: list[str] = []
    for name in bundled_machines():
        machine = bundled(name)
        runs = [
            Scenario.of(machine, allocator, backend).run()
            for allocator in default_specs("allocator")
            for backend in default_specs("backend")
        ]
        wasteful += [run for run in runs if run.verdict.outcome is Outcome.OK]
        rows = [Row.of(run) for run in runs]
        every += rows
        source = machine.provenance.source
        sections.append(
            f"## {name}\n\n{machine_title(machine)}\n\n"
            f"Source: {source}.\n\n{tables(rows, 'github')}"
        )
    parts += [
        "## All machines\n\n" + summary(every, "github"),
        *sections,
        flips_explained(wasteful),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write or check the published comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether it is stale")
    arguments = parser.parse_args()
    text = render()
    if arguments.check:
        fresh = PUBLISHED.exists() and PUBLISHED.read_text(encoding="utf-8") == text
        print(f"{PUBLISHED.name} is {'up to date' if fresh else 'stale: run make report'}")
        return 0 if fresh else 1
    PUBLISHED.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
