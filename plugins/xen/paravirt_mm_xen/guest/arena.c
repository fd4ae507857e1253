#include "arena.h"

#include "console.h"
#include "fault.h"
#include "hypercall.h"

#define ARENA_VA 0xffffff8000000000ul /* L4 slot 511, L3 slot 0 */

/* The builder maps in units of 4 MiB and leaves at least 512 KiB spare. */
#define BUILDER_UNIT (0x400000ul / PAGE_SIZE)
#define BUILDER_SPARE (0x80000ul / PAGE_SIZE)

#define MACHINE_TO_PHYS ((const uint64_t *)MACH2PHYS_VIRT_START)

static const uint64_t *phys_to_machine;
static uint64_t first_pfn; /* of the arena */
static uint64_t arena_pages;
static const uint64_t *l4;
static uint64_t shared_frame;

/* A page of address space for frames that are mapped nowhere else. */
static uint64_t window[ENTRIES] __attribute__((aligned(PAGE_SIZE)));

static int64_t window_map(uint64_t frame, uint64_t flags)
{
	return hypercall_update_va_mapping((uint64_t)window,
					   flags ? frame << PAGE_SHIFT | flags : 0);
}

static uint64_t pfn_of(uint64_t va)
{
	return (va - VIRT_BASE) >> PAGE_SHIFT;
}

/* Fills the table with RW entries for `count` pages from `pfn` on. */
static void fill_table(uint64_t table_pfn, uint64_t pfn, uint64_t count)
{
	if (window_map(phys_to_machine[table_pfn], ENTRY_RW))
		guest_stop("arena: a table page cannot be mapped", table_pfn);
	for (uint64_t i = 0; i < ENTRIES; i++)
		window[i] = i < count ? phys_to_machine[pfn + i] << PAGE_SHIFT | ENTRY_RW : 0;
}

static uint64_t tables_for(uint64_t entries)
{
	return (entries + ENTRIES - 1) / ENTRIES;
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
	return value < limit ? value : limit;
}

uint64_t arena_init(const start_info_t *start)
{
	uint64_t builder_end = pfn_of(start->pt_base) + start->nr_pt_frames + 1;
	uint64_t free_pfn = (builder_end + BUILDER_SPARE + BUILDER_UNIT - 1) & ~(BUILDER_UNIT - 1);
	uint64_t free_pages = start->nr_pages > free_pfn ? start->nr_pages - free_pfn : 0;
	uint64_t l1_tables = tables_for(free_pages);
	uint64_t l2_tables = tables_for(l1_tables);
	uint64_t l1_pfn = free_pfn;
	uint64_t l2_pfn = l1_pfn + l1_tables;

	phys_to_machine = (const uint64_t *)start->mfn_list;
	l4 = (const uint64_t *)start->pt_base;
	shared_frame = start->shared_info >> PAGE_SHIFT;
	if (free_pages < l1_tables + l2_tables)
		guest_stop("arena: too little memory, pages free", free_pages);
	first_pfn = l2_pfn + l2_tables;
	arena_pages = start->nr_pages - first_pfn;

	for (uint64_t i = 0; i * ENTRIES < arena_pages; i++)
		fill_table(l1_pfn + i, first_pfn + i * ENTRIES,
			   at_most(arena_pages - i * ENTRIES, ENTRIES));
	for (uint64_t i = 0; i < l2_tables; i++)
		fill_table(l2_pfn + i, l1_pfn + i * ENTRIES,
			   at_most(tables_for(arena_pages) - i * ENTRIES, ENTRIES));
	window_map(0, 0); /* no writable mapping of a table is left */

	for (uint64_t i = 0; i < l2_tables; i++) {
		uint64_t l3_frame = ENTRY_FRAME(l4[KERNEL_SLOT]);
		struct mmu_update attach = {
			.ptr = l3_frame << PAGE_SHIFT | i * sizeof(uint64_t),
			.val = phys_to_machine[l2_pfn + i] << PAGE_SHIFT | ENTRY_RW,
		};
		unsigned int done;
		int64_t refused = hypercall_mmu_update(&attach, 1, &done);

		if (refused)
			guest_stop("arena: an L2 table was refused", -refused);
	}
	return arena_pages;
}

uint64_t *arena_va(uint64_t page)
{
	return (uint64_t *)(ARENA_VA + (page << PAGE_SHIFT));
}

uint64_t arena_frame(uint64_t page)
{
	return phys_to_machine[first_pfn + page];
}

void arena_clear(uint64_t page, uint64_t count)
{
	uint64_t *at = arena_va(page);

	/* Words, not bytes: an emulated CPU pays for every turn. */
	for (uint64_t *end = arena_va(page + count); at < end; at++)
		*at = 0;
}

int64_t arena_page(uint64_t frame)
{
	uint64_t pfn;

	/* Xen's table ends with the host's memory, so any frame may fault. */
	if (checked_load(MACHINE_TO_PHYS + frame, &pfn))
		return -1;
	if (pfn < first_pfn || pfn - first_pfn >= arena_pages || phys_to_machine[pfn] != frame)
		return -1;
	return pfn - first_pfn;
}

const uint64_t *boot_l4(void)
{
	return l4;
}

uint64_t boot_l4_frame(void)
{
	return phys_to_machine[pfn_of((uint64_t)l4)];
}

uint64_t shared_info_frame(void)
{
	return shared_frame;
}

uint64_t peek_entry(uint64_t frame, unsigned int index)
{
	uint64_t entry = 0;

	if (window_map(frame, ENTRY_RO))
		return 0;
	entry = *(volatile uint64_t *)&window[index];
	window_map(0, 0);
	return entry;
}
