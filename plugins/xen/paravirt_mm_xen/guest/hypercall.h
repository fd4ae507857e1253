/*
 * The hypercalls that the guest makes, as typed functions.
 *
 * Arguments go in rdi, rsi, rdx, r10; the result comes back in rax, negative
 * for an errno (public header arch-x86/xen-x86_64.h).
 */
#pragma once

#include "xen_abi.h"

extern const char hypercall_page[];

static inline int64_t hypercall(unsigned int number, uint64_t a1, uint64_t a2, uint64_t a3,
				uint64_t a4)
{
	const char *stub = hypercall_page + number * 32;
	register uint64_t r10 asm("r10") = a4;
	int64_t result;

	asm volatile("call *%[stub]"
		     : "=a"(result), "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10)
		     : [stub] "r"(stub)
		     : "rcx", "r8", "r9", "r11", "memory");
	return result;
}

/* `count` entry updates; *done tells how many took effect. */
static inline int64_t hypercall_mmu_update(const struct mmu_update *updates, unsigned int count,
					   unsigned int *done)
{
	*done = 0;
	return hypercall(__HYPERVISOR_mmu_update, (uint64_t)updates, count, (uint64_t)done,
			 DOMID_SELF);
}

static inline int64_t hypercall_mmuext_op(const struct mmuext_op *ops, unsigned int count,
					  unsigned int *done)
{
	*done = 0;
	return hypercall(__HYPERVISOR_mmuext_op, (uint64_t)ops, count, (uint64_t)done, DOMID_SELF);
}

static inline int64_t hypercall_update_va_mapping(uint64_t va, uint64_t entry)
{
	return hypercall(__HYPERVISOR_update_va_mapping, va, entry, UVMF_INVLPG, 0);
}

static inline int64_t hypercall_vm_assist(unsigned int command, unsigned int type)
{
	return hypercall(__HYPERVISOR_vm_assist, command, type, 0, 0);
}

static inline int64_t hypercall_multicall(struct multicall_entry *calls, unsigned int count)
{
	return hypercall(__HYPERVISOR_multicall, (uint64_t)calls, count, 0, 0);
}

static inline int64_t hypercall_set_trap_table(const struct trap_info *table)
{
	return hypercall(__HYPERVISOR_set_trap_table, (uint64_t)table, 0, 0, 0);
}

static inline int64_t hypercall_domctl(struct xen_domctl *control)
{
	return hypercall(__HYPERVISOR_domctl, (uint64_t)control, 0, 0, 0);
}

static inline int64_t hypercall_xen_version(unsigned int command, void *answer)
{
	return hypercall(__HYPERVISOR_xen_version, command, (uint64_t)answer, 0, 0);
}

static inline void hypercall_console_write(const char *text, unsigned int bytes)
{
	hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, bytes, (uint64_t)text, 0);
}

static inline void hypercall_shutdown(unsigned int reason)
{
	struct sched_shutdown shutdown = { .reason = reason };

	hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (uint64_t)&shutdown, 0, 0);
}
