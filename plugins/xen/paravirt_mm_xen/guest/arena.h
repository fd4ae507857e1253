/*
 * The pages that traces work on.
 *
 * Everything of the domain's memory that the domain builder left unmapped is
 * mapped writable at ARENA_VA, one page after the other. A trace takes a run
 * of pages that no trace had before, so nothing is reset between traces, and a
 * page's "own address" is its address here. ARENA_VA lies in L4 slot 511, the
 * slot that also holds the guest itself: an L4 that has a copy of this one
 * entry keeps both reachable.
 */
#pragma once

#include "xen_abi.h"

#define KERNEL_SLOT 511u
#define L4_SLOT(va) (((uint64_t)(va) >> 39) & 0x1ff)

/* Maps the arena; returns its size in pages. Stops the guest on failure. */
uint64_t arena_init(const start_info_t *start);

/* The own address of an arena page, and the machine frame that it has. */
uint64_t *arena_va(uint64_t page);
uint64_t arena_frame(uint64_t page);

/* Zeroes pages through their own addresses, which must be mapped writable. */
void arena_clear(uint64_t page, uint64_t count);

/* The arena page that a machine frame is, or -1 where it is none. */
int64_t arena_page(uint64_t frame);

/* The boot-time L4: where it is mapped (read-only), and its frame. */
const uint64_t *boot_l4(void);
uint64_t boot_l4_frame(void);

/* The frame of the page that Xen shares with the domain. */
uint64_t shared_info_frame(void);

/* Reads one entry of any of the domain's frames, through a short-lived
 * read-only mapping. Returns 0 where the frame cannot be mapped. */
uint64_t peek_entry(uint64_t frame, unsigned int index);
