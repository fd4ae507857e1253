"""The domain builder's arrangement against what real Xen printed ("VIRTUAL MEMORY ARRANGEMENT") for
nine dom0s.
"""

from __future__ import annotations

import itertools

import attrs
import pytest

from paravirt_mm import MODES, KernelImage, Span, bundled
from paravirt_mm_xen.domain.layout import (
    P2mPlace,
    arrange,
    arrange_machine,
    boot_tables_needed as tables_needed,
    loaded_kernel,
)


@attrs.frozen
class Printed:
    """One boot: addresses as printed less the virtual base; ``initrd`` and ``p2m`` where they lie
    inside the initial mapping.
    """

    kernel: Span
    start_info: int
    page_tables: Span
    boot_stack: Span
    end: int
    initrd: Span | None = None
    p2m: Span | None = None
    mode: str = "x86_64"


PRINTED = {
    "threadripper, 1007932 pages": Printed(
        (0x1000000, 0x4000000), 0x4000000, (0x4001000, 0x4026000), (0x4026000, 0x4027000), 0x4400000
    ),
    "qubes, 4.19.86": Printed(
        (0x1000000, 0x2E2C000), 0x2E2C000, (0x2E2D000, 0x2E48000), (0x2E48000, 0x2E49000), 0x3000000
    ),
    "kernel at 2M": Printed(
        (0x200000, 0x3C00000), 0x3C00000, (0x3C01000, 0x3C24000), (0x3C24000, 0x3C25000), 0x4000000
    ),
    "1027107 pages": Printed(
        (0x1000000, 0x2698000), 0x2698000, (0x2699000, 0x26B0000), (0x26B0000, 0x26B1000), 0x2800000
    ),
    "110824 pages": Printed(
        (0x1000000, 0x342C000), 0x342C000, (0x342D000, 0x344C000), (0x344C000, 0x344D000), 0x3800000
    ),
    "114688 pages": Printed(
        (0x1000000, 0x26DE000), 0x26DE000, (0x26DF000, 0x26F6000), (0x26F6000, 0x26F7000), 0x2800000
    ),
    "barcelona, 172699 pages": Printed(
        (0x1000000, 0x3A00000), 0x3A00000, (0x3A01000, 0x3A22000), (0x3A22000, 0x3A23000), 0x3C00000
    ),
    # 0x282C000 + tables and stack ends at 0x2847000; 4 MiB boundary 0x2C00000.
    "fobnail, 5.8.10": Printed(
        (0x1000000, 0x282C000), 0x282C000, (0x282D000, 0x2846000), (0x2846000, 0x2847000), 0x2C00000
    ),
    "32-bit, 477073 pages": Printed(
        (0x100000, 0x480734), 0x143C000, (0x143D000, 0x144E000), (0x144E000, 0x144F000), 0x1800000,
        initrd=(0x481000, 0x1261C00), p2m=(0x1262000, 0x143BE44), mode="i386-pae",
    ),
}  # fmt: skip


@pytest.mark.parametrize("printed", PRINTED.values(), ids=PRINTED)
def test_arrangement_is_what_xen_printed(printed: Printed) -> None:
    entry = 4 if printed.mode == "i386-pae" else 8
    initrd = printed.initrd[1] - printed.initrd[0] if printed.initrd else 0
    pages = (printed.p2m[1] - printed.p2m[0]) // entry if printed.p2m else 1_000_000
    place = P2mPlace.INLINE if printed.p2m else P2mPlace.HIGH
    found = arrange(MODES[printed.mode], printed.kernel, initrd, pages, place)
    assert found.kernel == printed.kernel
    assert found.initrd == printed.initrd
    assert found.p2m == printed.p2m
    assert found.start_info[0] == printed.start_info
    assert found.page_tables == printed.page_tables
    assert found.boot_stack == printed.boot_stack
    assert found.end == printed.end


@pytest.mark.parametrize("kernel_end", range(0x1400000, 0x3400000, 0x135000))
@pytest.mark.parametrize("pages", [1 << 15, 1 << 20, 1 << 24])
def test_boot_tables_map_themselves(kernel_end: int, pages: int) -> None:
    """As many tables as the mapping needs, and no page more; parts follow each other; 512 KiB stay
    free at the end.
    """
    mode = MODES["x86_64"]
    layout = arrange(mode, (0x1000000, kernel_end), 0, pages, P2mPlace.INLINE)
    low, high = layout.page_tables
    assert tables_needed(mode, layout.end) <= (high - low) >> 12
    assert layout.end % (4 << 20) == 0
    assert layout.end - layout.boot_stack[1] >= 512 << 10
    spans = [span for _, span in layout.places]
    assert spans == sorted(spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_auto_p2m_is_inline_until_it_cannot_be() -> None:
    mode = MODES["x86_64"]
    kernel = (0x1000000, 0x2000000)
    limit = (512 << 30) >> 12
    assert arrange(mode, kernel, 0, limit).p2m is not None
    assert arrange(mode, kernel, 0, limit + 1).p2m is None


def test_randomised_kernel_goes_back_to_its_linked_address() -> None:
    """The domain builder loads where the kernel is linked: KASLR does not exist for PV."""
    machine = bundled("gentoo-64g")
    kernel = loaded_kernel(machine)
    assert kernel.start == 16 << 20
    assert kernel.end - kernel.start == machine.kernel.end - machine.kernel.start
    assert arrange_machine(machine, P2mPlace.AUTO).kernel == kernel.span


def test_linked_kernel_stays() -> None:
    machine = bundled("xen-dom0-qubes-4g")
    low = attrs.evolve(machine, kernel=KernelImage(0x200000, 0x900000, 0x900000, 0x940000))
    assert loaded_kernel(low) == low.kernel
