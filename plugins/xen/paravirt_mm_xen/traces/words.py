"""Operations and answers in the words of the hypervisor's interface."""

from __future__ import annotations

import json
from typing import Final

from paravirt_mm_xen.mmu.codes import describe
from paravirt_mm_xen.traces.format import REFUSED_BY_GUEST, Operation

_WORDS: Final = {
    "pin": "MMUEXT_PIN_L{0}_TABLE page {1}",
    "unpin": "MMUEXT_UNPIN_TABLE page {0}",
    "update_va_mapping": "update_va_mapping address of page {0} := page {1} flags {2:#x}",
    "mmu_update": "mmu_update page {0} entry {1} := page {2} flags {3:#x} preserve A/D {4}",
    "write": "store to page {0} entry {1} := page {2} flags {3:#x}",
    "store": "store to page {0} entry {1} := page {2} flags {3:#x}",
    "store_value": "store to page {0} entry {1} := {2:#x}",
    "new_baseptr": "MMUEXT_NEW_BASEPTR page {0}",
    "boot_baseptr": "MMUEXT_NEW_BASEPTR boot tables",
    "new_user_baseptr": "MMUEXT_NEW_USER_BASEPTR page {0}",
    "copy_kernel_slots": "store of the kernel's L4 entries to page {0}",
    "type": "XEN_DOMCTL_getpageframeinfo3 page {0}",
    "read": "load from page {0} entry {1}",
    "clear_page": "MMUEXT_CLEAR_PAGE page {0}",
    "copy_page": "MMUEXT_COPY_PAGE page {0} from page {1}",
    "mmu_update_device": "mmu_update page {0} entry {1} := {2} flags {3:#x}",
    "assist": "vm_assist {0} {1}",
    "update_va": "update_va_mapping address {0:#x} := page {1} flags {2:#x}",
    "probe": "{1} at address {0:#x}",
}
"""Operations as the hypervisor's interface calls them; others are printed as they are."""


def words(operation: Operation) -> str:
    """An operation in the words of the hypervisor's interface."""
    name, *fields = operation
    template = _WORDS.get(name)
    return template.format(*fields) if template else json.dumps(operation)


def answer_in_words(name: str, answer: int) -> str:
    """An answer: errno or fault by name; what a load saw and a type as it is."""
    if answer == REFUSED_BY_GUEST:
        return "not tried (the guest would have cut itself off)"
    if name == "type":
        return f"type {answer}"
    if answer > 0:
        return f"{answer:#x}"
    if -100_000 < answer <= -1000:
        done, code = divmod(-answer, 1000)
        return f"{describe(-code)} after {done} done"
    return describe(answer)
