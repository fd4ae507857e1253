/*
 * The binary form of traces: what live/wire.py packs and the guest runs.
 *
 * Little-endian, 8-byte aligned: one header, then for each trace a trace head
 * and its operations, one record each. A batch is a record whose `count` member
 * records follow it. live/wire.py holds the same numbers; a test compares.
 */
#pragma once

#include <stdint.h>

#define WIRE_MAGIC 0x31454341525450ull /* "PTRACE1" */

#define WIRE_BATCH_MAX 1024u /* members of a batch */

struct wire_header {
	uint64_t magic;
	uint32_t traces;
	uint32_t reserved;
};

struct wire_trace {
	uint32_t pages;	  /* pages that the trace works on */
	uint32_t records; /* that follow, members of batches included */
};

struct wire_record {
	uint8_t code;	/* enum wire_code */
	uint8_t detail; /* pin: level; mmu_update: preserve A/D; tlb_flush: MMUEXT command */
	uint16_t index; /* entry of the table */
	uint32_t page;	/* the trace's page that is acted on, or WIRE_NO_PAGE */
	uint32_t target; /* the trace's page that an entry refers to; copy_page: source */
	uint32_t count;	 /* batches: members that follow */
	uint64_t value;	 /* an entry's bits besides the frame; a raw value; an address */
	uint64_t va;	 /* update_va, probe: a virtual address */
};

#define WIRE_NO_PAGE 0xffffffffu
#define WIRE_SHARED_INFO (~0ul) /* as a frame: the page that Xen shares with the guest */

enum wire_code {
	WIRE_PIN = 1,
	WIRE_UNPIN = 2,
	WIRE_UPDATE_VA_MAPPING = 3,
	WIRE_MMU_UPDATE = 4,
	WIRE_WRITE = 5,
	WIRE_NEW_BASEPTR = 6,
	WIRE_BOOT_BASEPTR = 7,
	WIRE_COPY_KERNEL_SLOTS = 8,
	WIRE_TYPE = 9,
	WIRE_READ = 10,
	/* Extensions of the recorded format (docs/live-xen.md). */
	WIRE_STORE = 11,
	WIRE_STORE_VALUE = 12,
	WIRE_UPDATE_VA = 13,
	WIRE_PROBE_READ = 14,
	WIRE_PROBE_WRITE = 15,
	WIRE_NEW_USER_BASEPTR = 16,
	WIRE_TLB_FLUSH = 17,
	WIRE_CLEAR_PAGE = 18,
	WIRE_COPY_PAGE = 19,
	WIRE_MMU_UPDATE_BATCH = 20,
	WIRE_MMUEXT_BATCH = 21,
	WIRE_MULTICALL = 22,
	WIRE_MMU_UPDATE_DEVICE = 23, /* va: the frame, or WIRE_SHARED_INFO */
	WIRE_ASSIST = 24,	     /* index: VMASST_TYPE, detail: on or off */
};

/* Answers that are not Xen's. */
#define ANSWER_REFUSED (-77777) /* the guest did not dare: it would cut itself off */
#define ANSWER_FAULT(vector, error) (-(100000 + 1000 * (int64_t)(vector) + (int64_t)(error)))
/* A batch that stopped at member `done` with an errno; 0 where all were done. */
#define ANSWER_BATCH(done, error) ((error) - 1000 * (int64_t)(done))
