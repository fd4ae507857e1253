/* Buffered output to Xen's console, which QEMU's serial port carries out. */
#pragma once

#include <stdint.h>

void console_char(char c);
void console_text(const char *text);
void console_signed(int64_t value);
void console_hex(uint64_t value);
void console_flush(void);

/* Prints "!<reason>", flushes and shuts the machine down. */
void __attribute__((noreturn)) guest_stop(const char *reason, uint64_t detail);
/* Flushes and shuts the machine down. */
void __attribute__((noreturn)) guest_end(void);
