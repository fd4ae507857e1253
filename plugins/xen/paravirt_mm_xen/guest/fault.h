/* Loads and stores that may fault (fault.S). */
#pragma once

#include <stdint.h>

/* Both return 0, or 1 after a fault, which fault_vector and fault_error then
 * describe (13 #GP or 14 #PF, and the error code that Xen pushed). */
int checked_load(const volatile uint64_t *from, uint64_t *to);
int checked_store(volatile uint64_t *to, uint64_t value);

extern uint32_t fault_vector, fault_error;

/* The handlers' entry points, for the trap table. */
extern const char fault_gp[], fault_page[];
