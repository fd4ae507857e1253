"""What the functions that are watched are called, and how their code begins.

Source of facts: Intel SDM volume 2 for the encodings.
"""

from __future__ import annotations

from paravirt_mm.verify.linux.qemu.events import EventKind
from paravirt_mm.verify.linux.qemu.kernelmem import KernelMemory

ENDBR64, NOP5, CALL, JUMP = b"\xf3\x0f\x1e\xfa", b"\x0f\x1f\x44\x00\x00", 0xE8, 0xE9
WATCHED = {
    EventKind.STEP: "init_memory_mapping",
    EventKind.RANGE: "kernel_physical_mapping_init",
    EventKind.ASKED: "alloc_low_pages",
}
"""Functions that are called from other files, so that no compiler inlines them."""
_NOP_HOOKS = ("_paravirt_nop", "paravirt_nop", "nop_func")


def hook_of(memory: KernelMemory) -> int:
    """Return the address of the empty function behind native's ``alloc_pte`` and its like."""
    return memory.address_of(*_NOP_HOOKS)


JUMP_SIZE = 5
_PLAIN = (
    (b"\x41\xb8", 6),  # mov r8d, number
    *((bytes([0x50 + n]), 1) for n in range(8)),  # push
    *((bytes([0x41, 0x50 + n]), 2) for n in range(8)),
    *((bytes([rex, 0x89, 0xC0 + n]), 3) for rex in (0x41, 0x44, 0x48, 0x49) for n in range(64)),
    *((bytes([0x89, 0xC0 + n]), 2) for n in range(64)),  # mov between registers
    (b"\x48\x83\xec", 4),  # sub rsp, number
    (b"\xb9", 5),  # mov ecx, number
)
"""Instructions that do the same wherever they stand: how they begin, and their length."""


def moved(code: bytes, at: int, to: int, fentry: int | None) -> tuple[int, int, bytes] | None:
    """Make room for a jump where a function begins.

    ``code`` are the first bytes of the function at address ``at``. Returns the offset of the jump,
    the offset of the first instruction that stays, and the instructions in between as they must
    stand at ``to`` to do the same there, or None where one of them is not known.
    """
    place = len(ENDBR64) if code.startswith(ENDBR64) else 0
    end, kept = place, b""
    while end < place + JUMP_SIZE:
        rest = code[end:]
        following = at + end + JUMP_SIZE
        target = following + int.from_bytes(rest[1:JUMP_SIZE], "little", signed=True)
        if rest.startswith(NOP5) or (rest[:1] == bytes([CALL]) and target == fentry):
            end += JUMP_SIZE
            continue
        if rest[:1] == bytes([JUMP]) and len(rest) >= JUMP_SIZE:
            # Nothing behind it is reached from before it.
            return place, end + JUMP_SIZE, kept + jump(to + len(kept), target)
        length = next((n for begins, n in _PLAIN if rest.startswith(begins)), 0)
        if not length or len(rest) < length:
            return None
        kept += rest[:length]
        end += length
    return place, end, kept


def jump(at: int, target: int, opcode: int = JUMP) -> bytes:
    """Encode a jump (or call) that stands at ``at``."""
    return bytes([opcode]) + (target - at - JUMP_SIZE).to_bytes(4, "little", signed=True)
