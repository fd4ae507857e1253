"""``paravirt-mm verify xen``: its options; what it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from paravirt_mm import EVIDENCE_FILE


@click.command()
@click.argument(
    "files", nargs=-1, metavar="[FILE]...", type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--live", is_flag=True,
    help="Boot real Xen in QEMU and compare its answers with the model's: to fresh operations, and "
    "to runs of the allocators in a small guest.",
)  # fmt: skip
@click.option(
    "--runs", is_flag=True,
    help="Replay whole runs of the allocators in guests of several sizes: on the model, with "
    "--live on real Xen too.",
)  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Of fresh operations.")
@click.option(
    "--ops", default=100_000, show_default=True, type=click.IntRange(1, 10_000_000),
    help="How many fresh operations, at least.",
)  # fmt: skip
@click.option(
    "-g", "--generator", "generators", multiple=True, metavar="NAME",
    help="Of fresh operations: uniform, trees, extended. May be repeated. [default: all]",
)  # fmt: skip
@click.option(
    "--size", "sizes", multiple=True, type=click.IntRange(64, 4096), metavar="MIB",
    help="Guests for runs, 64 to 4096 MiB. May be repeated. [default: 64; --runs: 64, 256, 512]",
)  # fmt: skip
@click.option(
    "-a", "--allocator", "allocators", multiple=True, metavar="SPEC",
    help="Allocators for runs. May be repeated. [default: all built-in ones]",
)  # fmt: skip
@click.option(
    "--xen", "--hypervisor", "directory",
    type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Where the Debian packages of Xen are unpacked, or a version that tools/fetch-xen.sh "
    "fetched: 4.14, 4.17, 4.20. [default: $PARAVIRT_MM_XEN, "
    "~/.cache/paravirt-mm/xen, /]",
)  # fmt: skip
@click.option(
    "--release", metavar="VERSION",
    help="Hypervisor to model. [default: the one that booted, or that the recording names; "
    "else 4.17]",
)  # fmt: skip
@click.option(
    "--dom0", multiple=True, type=click.Path(dir_okay=False, path_type=Path), metavar="IMAGE",
    help="Boot a kernel image (vmlinuz with PV dom0 support) under real Xen in QEMU, record every "
    "hypercall for its page tables up to the end of init_mem_mapping, and compare with the model "
    "of its release. Takes a minute. May be repeated.",
)  # fmt: skip
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="With --live: write the fresh operations and Xen's answers to FILE (.jsonl or .jsonl.xz); "
    "with one --dom0: its recording (.json or .json.xz). This command reads both.",
)  # fmt: skip
@click.option(
    "--record", "record_to", is_flag=False, flag_value=str(EVIDENCE_FILE), metavar="[FILE]",
    help="Write how far each model is verified now, for `compare` to show: of what was asked for.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def xen(
    files: tuple[Path, ...],
    live: bool,
    runs: bool,
    seed: int,
    ops: int,
    generators: tuple[str, ...],
    sizes: tuple[int, ...],
    allocators: tuple[str, ...],
    directory: Path | None,
    release: str | None,
    dom0: tuple[Path, ...],
    save: Path | None,
    record_to: str | None,
    as_json: bool,
) -> int:
    """Check the model of Xen's page typing against the real hypervisor.

    FILE holds operations with recorded answers of real Xen (.jsonl or .jsonl.xz); each is replayed
    on the model. Or it holds the recorded hypercalls of a kernel as dom0 (.json or .json.xz), which
    are compared with the model's one by one. --live boots real Xen (needs QEMU, gcc, and Xen's
    packages unpacked by tools/fetch-xen.sh) and asks it fresh operations; a trace that is answered
    differently is shrunk and printed, ready to be a FILE. Runs are what the allocators do when they
    build a direct map, as hypercalls: every one must be accepted.

    Exit code: 0 all agree, 1 some differ, 3 a file is missing or damaged, or a piece for --live is
    missing.
    """
    from paravirt_mm_xen.verify import VerifyOptions, verify

    if not (files or live or runs or dom0):
        raise click.UsageError("give at least one FILE, or --live, --runs or --dom0")
    if save is not None and not (live or len(dom0) == 1):
        raise click.UsageError("--save writes what --live or one --dom0 asks: give one of them")
    return verify(
        VerifyOptions(
            files=files,
            live=live,
            runs=runs,
            seed=seed,
            operations=ops,
            generators=generators,
            sizes=sizes,
            allocators=allocators,
            directory=directory,
            release=release,
            save=save,
            dom0=dom0,
            record_to=None if record_to is None else Path(record_to),
        ),
        as_json=as_json,
    )
