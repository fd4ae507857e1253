#include "console.h"

#include "hypercall.h"

static char buffer[4096];
static unsigned int used;

void console_flush(void)
{
	if (used)
		hypercall_console_write(buffer, used);
	used = 0;
}

void console_char(char c)
{
	if (used == sizeof(buffer))
		console_flush();
	buffer[used++] = c;
}

void console_text(const char *text)
{
	while (*text)
		console_char(*text++);
}

static void unsigned_in_base(uint64_t value, unsigned int base)
{
	char digits[20];
	unsigned int count = 0;

	do {
		digits[count++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (count)
		console_char(digits[--count]);
}

void console_signed(int64_t value)
{
	if (value < 0)
		console_char('-');
	unsigned_in_base(value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
}

void console_hex(uint64_t value)
{
	unsigned_in_base(value, 16);
}

void guest_end(void)
{
	console_flush();
	hypercall_shutdown(SHUTDOWN_reboot); /* QEMU runs with -no-reboot */
	for (;;)
		;
}

void guest_stop(const char *reason, uint64_t detail)
{
	console_text("\n!");
	console_text(reason);
	console_text(" (0x");
	console_hex(detail);
	console_text(")\n");
	guest_end();
}
