"""What real kernels built, beside what the model says that they build."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from paravirt_mm import CpuFeatures, E820Type, KernelImage, Machine, MemoryMap, RangeSet, Scenario
from paravirt_mm.image.contents import Image
from paravirt_mm.image.dump import open_dump
from paravirt_mm.image.inspect import find_direct_map
from paravirt_mm.image.walker import LeafRun, Walk, walk
from paravirt_mm.machine.paging import MODES

IMAGE_64, IMAGE_PAE, IMAGE_32 = (
    (0x1000000, 0x36D9000),
    (0x1000000, 0x1EEC000),
    (0x1000000, 0x1EC9000),
)
KERNELS = [
    ("linux-6.12-qemu-256m.core.xz", "x86_64", 0x2C22000, IMAGE_64, 0x2000_0000),
    ("linux-6.12-qemu-256m-la57.core.xz", "x86_64-la57", 0x2C22000, IMAGE_64, 0x2000_0000),
    ("linux-6.1-686-pae-qemu-256m.core.xz", "i386-pae", 0x1E98000, IMAGE_PAE, 0x220_0000),
    ("linux-6.1-686-qemu-256m.core.xz", "i386", 0x1E74000, IMAGE_32, 0x240_0000),
]
"""File, mode, CR3, kernel image and what its startup code maps, as the boot logs say."""


def direct_runs(found: Walk) -> list[LeafRun]:
    direct = find_direct_map(found)
    assert direct is not None
    return [run for run in found.runs if run.start - run.physical == direct.base]


def covered(runs: list[LeafRun]) -> RangeSet:
    return RangeSet((run.physical, run.physical + run.end - run.start) for run in runs)


@pytest.mark.parametrize(
    ("name", "mode", "cr3", "kernel", "boot_mapped"),
    [*KERNELS[2:], *(pytest.param(*kernel, marks=pytest.mark.slow) for kernel in KERNELS[:2])],
)
def test_direct_map_of_a_real_kernel(
    dumps: Path,
    tmp_path: Path,
    name: str,
    mode: str,
    cr3: int,
    kernel: tuple[int, int],
    boot_mapped: int,
) -> None:
    machine = Machine(
        name="qemu",
        memory_map=MemoryMap.sanitise(
            [(0, 0x9FC00, E820Type.RAM), (0x100000, 0xFFE0000, E820Type.RAM)]
        ),
        mode=MODES[mode],
        features=CpuFeatures(gbpages=True, nx=MODES[mode].has_nx),
        kernel=KernelImage(*kernel, kernel[1], kernel[1] + (12 << 12)),
        boot_mapped=boot_mapped,
    )
    image = Image(
        Scenario.of(machine, "incremental:variant=linux,kernel=6.1", "native").run().trace
    )
    model = list(walk(image, image.root, image.mode).runs)
    core = tmp_path / "core"
    core.write_bytes(lzma.decompress((dumps / name).read_bytes()))
    with open_dump(core) as dump:
        assert (dump.cr3, dump.mode) == (cr3, MODES[mode])
        real = direct_runs(walk(dump, cr3, MODES[mode]))
    # The same memory is mapped, whatever the page size.
    assert covered(real) == covered(model)
    # A kernel splits large pages later and joins none: those that it has, the model has.
    for level in (2, 3):
        large = covered([run for run in real if run.level == level])
        assert not large.difference(covered([run for run in model if run.level == level]))
    assert covered([run for run in real if run.level == 2]).total > 0.9 * 0xFFE0000
    # Text is the only executable memory, in the model too (64-bit: not in the direct map).
    trampoline = 1 << 20  # the first MiB holds the real-mode trampoline
    executable = covered([run for run in real if run.executable and run.physical >= trampoline])
    assert not executable.difference(
        covered([run for run in model if run.executable and run.physical >= trampoline])
    )
    assert all(run.global_ for run in (*real, *model))
