/*
 * A PV guest that does to its page tables what it is told, and prints what
 * Xen answered.
 *
 * Its input is the initrd (wire.h), its output is text on the console:
 *
 *	@guest xen=4.17.7 pages=123456
 *	#0 ..i.-114002;..
 *	#1 ...
 *	@end
 *
 * One # line a trace, one answer an operation: a letter for the frequent ones,
 * else the decimal number and a semicolon. A line that starts with ! says why
 * the guest gave up.
 */
#include "arena.h"
#include "console.h"
#include "fault.h"
#include "hypercall.h"
#include "replay.h"

void fault_unexpected(uint64_t rip)
{
	guest_stop("fault outside of a checked access, rip", rip);
}

static void print_answer(int64_t answer)
{
	switch (answer) {
	case 0:
		return console_char('.');
	case -XEN_EPERM:
		return console_char('p');
	case -XEN_EBUSY:
		return console_char('b');
	case -XEN_EINVAL:
		return console_char('i');
	case -XEN_ENOSYS:
		return console_char('n');
	case ANSWER_FAULT(14, 3):
		return console_char('w');
	case ANSWER_REFUSED:
		return console_char('r');
	}
	console_signed(answer);
	console_char(';');
}

static void print_greeting(uint64_t pages)
{
	xen_extraversion_t extra = { 0 };
	int64_t version = hypercall_xen_version(XENVER_version, NULL);

	hypercall_xen_version(XENVER_extraversion, extra);
	console_text("\n@guest xen=");
	console_signed(version >> 16);
	console_char('.');
	console_signed(version & 0xffff);
	console_text(extra);
	console_text(" pages=");
	console_signed(pages);
	console_char('\n');
}

static void replay_all(const char *input, uint64_t bytes, uint64_t arena_pages)
{
	const struct wire_header *header = (const void *)input;
	const char *at = input + sizeof(*header);
	const char *end = input + bytes;
	uint64_t page = 0;

	if (bytes < sizeof(*header) || header->magic != WIRE_MAGIC)
		guest_stop("the initrd is not a file of traces, bytes", bytes);
	for (uint32_t i = 0; i < header->traces; i++) {
		const struct wire_trace *trace = (const void *)at;
		const struct wire_record *records = (const void *)(at + sizeof(*trace));

		if ((uint64_t)(end - at) < sizeof(*trace) ||
		    (uint64_t)(end - at) - sizeof(*trace) < trace->records * sizeof(*records))
			guest_stop("the initrd ends within trace", i);
		if (trace->pages > arena_pages - page)
			guest_stop("the arena is used up at trace", i);
		console_char('#');
		console_signed(i);
		console_char(' ');
		replay_trace(trace, records, page, print_answer);
		console_char('\n');
		page += trace->pages;
		at = (const char *)(records + trace->records);
	}
}

void guest_main(const start_info_t *start)
{
	static const struct trap_info traps[] = {
		{ .vector = 13, .cs = FLAT_KERNEL_CS, .address = (unsigned long)fault_gp },
		{ .vector = 14, .cs = FLAT_KERNEL_CS, .address = (unsigned long)fault_page },
		{ 0 },
	};
	uint64_t pages;

	if (hypercall_set_trap_table(traps))
		guest_stop("the trap table was refused", 0);
	pages = arena_init(start);
	print_greeting(pages);
	replay_all((const char *)start->mod_start, start->mod_len, pages);
	console_text("@end\n");
	guest_end();
}
