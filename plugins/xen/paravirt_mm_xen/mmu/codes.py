"""What the hypervisor answers: return codes of hypercalls and faults of plain stores.

Hypercalls answer 0 or a negative errno, as in Xen's public ``errno.h``.  A fault that reaches the
guest's trap handler is written as one more negative number, so that every operation has one answer.
"""

from __future__ import annotations

from typing import Final

from paravirt_mm import ParavirtMmError

OK: Final = 0
EPERM: Final = -1
EACCES: Final = -13
EBUSY: Final = -16
EINVAL: Final = -22
ENOSYS: Final = -38
EOPNOTSUPP: Final = -95


class DomainCrashedError(ParavirtMmError):
    """The hypervisor ended the guest: what it did has no answer.  The message says why."""


_NAMES: Final = {
    OK: "0",
    EPERM: "EPERM",
    EACCES: "EACCES",
    EBUSY: "EBUSY",
    EINVAL: "EINVAL",
    ENOSYS: "ENOSYS",
    EOPNOTSUPP: "EOPNOTSUPP",
}

_FAULTS: Final = 100_000
_GENERAL_PROTECTION: Final = 13
_PAGE_FAULT: Final = 14
# Error code bits of a page fault.  The guest's kernel runs in ring 3, but Xen hides the user bit
# from it.
PFEC_PROTECTION: Final = 1
PFEC_WRITE: Final = 2


def fault(vector: int, error_code: int) -> int:
    """The code that stands for a fault: -(100000 + 1000 * vector + error code)."""
    return -(_FAULTS + 1000 * vector + error_code)


GP_NOT_CANONICAL: Final = fault(_GENERAL_PROTECTION, 0)
PF_READ_ABSENT: Final = fault(_PAGE_FAULT, 0)
PF_READ_PROTECTED: Final = fault(_PAGE_FAULT, PFEC_PROTECTION)
PF_WRITE_ABSENT: Final = fault(_PAGE_FAULT, PFEC_WRITE)
PF_WRITE_PROTECTED: Final = fault(_PAGE_FAULT, PFEC_WRITE | PFEC_PROTECTION)


def describe(code: int) -> str:
    """The code in words: ``-22 EINVAL``, ``#PF error code 3``; a plain number where it has none."""
    if code in _NAMES:
        return _NAMES[code] if code == OK else f"{code} {_NAMES[code]}"
    if -_FAULTS - 256_000 < code <= -_FAULTS:
        vector, error_code = divmod(-code - _FAULTS, 1000)
        name = {_GENERAL_PROTECTION: "#GP", _PAGE_FAULT: "#PF"}.get(vector, f"vector {vector}")
        return f"{name} error code {error_code}"
    return str(code)
