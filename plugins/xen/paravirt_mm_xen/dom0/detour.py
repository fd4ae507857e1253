"""A way past a watched word for each hypercall of a kernel, so that QEMU stops there.

QEMU forgets all translated code where a breakpoint stops it, and translates it again, which takes
nearly all of a boot with thousands of stops; not where a watched word is written
(``gdb_vm_state_change`` of QEMU 7.2). So what stands where hypercalls begin is replaced by a jump
to instructions that write such a word and then do what stood there. They lie behind the kernel's
code, where its image is mapped, executable while it boots, and has nothing: read-only data begin at
a large page.

Source of facts: Linux ``arch/x86/xen/xen-asm.S`` (xen_hypercall_pv), Xen
``hypercall_page_initialise_ring3_kernel``, Intel SDM volume 2 for the encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from paravirt_mm import PAGE_SIZE

GAP = ("_etext", "__start_rodata")
"""Symbols between which the image has nothing, as far as there is room."""
MOV_EAX = 0xB8
_CALL = b"\x51\x41\x53\x0f\x05"  # push rcx; push r11; syscall
_PUSHES = 3
_STORE = b"\x48\x89\x05"  # mov [rip + distance], rax
_JUMP = b"\xe9"
_DISTANCE = 4
_JUMP_SIZE = 5
_FILLERS = (bytes(PAGE_SIZE), b"\xcc" * PAGE_SIZE)


@attrs.frozen
class Detour:
    """``watched`` is the word's address; ``patches`` are addresses and what is to stand there;
    ``stops`` where a hypercall stands, its number in rax, when the word has been written.
    """

    watched: int
    patches: tuple[tuple[int, bytes], ...]
    stops: frozenset[int]


def detour(
    entries: Mapping[int, int | None], gap: tuple[int, int], read: Callable[[int, int], bytes]
) -> Detour | None:
    """Lead the hypercalls that begin at ``entries`` through the end of ``gap``.

    The numbers of ``entries`` are those that the instruction there moves to eax, None where the
    hypercall does not begin with that. ``read`` reads memory: an address, a size. Returns None
    where the gap is too small or not empty, or another instruction stands at an entry.
    """
    start, end = gap
    # A page each: what stands beside a word that is written would be translated each time.
    code, watched = end - PAGE_SIZE, end - 2 * PAGE_SIZE
    if end % PAGE_SIZE or watched < start:
        return None
    if any(read(page, PAGE_SIZE) not in _FILLERS for page in (code, watched)):
        return None
    led, patches, stops = b"", [], set()
    for entry, number in entries.items():
        there = _CALL if number is None else bytes([MOV_EAX]) + number.to_bytes(4, "little")
        if read(entry, len(there)) != there:
            return None
        patches.append((entry, _relative(_JUMP, entry, code + len(led))))
        before = _PUSHES if number is None else len(there)
        led += there[:before]
        led += _relative(_STORE, code + len(led), watched)
        stops.add(code + len(led))
        led += there[before:]
        led += _relative(_JUMP, code + len(led), entry + _JUMP_SIZE)
    return Detour(watched, ((code, led), *patches), frozenset(stops))


def _relative(opcode: bytes, at: int, target: int) -> bytes:
    """Encode an instruction that stands at ``at`` and names an address relative to its end."""
    distance = target - at - len(opcode) - _DISTANCE
    return opcode + distance.to_bytes(_DISTANCE, "little", signed=True)
