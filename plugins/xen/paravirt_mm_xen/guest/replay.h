/* Runs one trace: one answer an operation. */
#pragma once

#include "wire.h"

/* Where the trace's page 0 lies in the arena is `first_page`; calls `answer`
 * once an operation. Afterwards the guest is back on its boot-time L4. */
void replay_trace(const struct wire_trace *trace, const struct wire_record *records,
		  uint64_t first_page, void (*answer)(int64_t));
