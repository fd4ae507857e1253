/*
 * Loads and stores that may fault, and the handlers that catch them.
 *
 * Xen delivers an exception on the guest's own stack as
 *
 *	rsp -> rcx, r11, error code, rip, cs, rflags, rsp, ss
 *
 * The two accessors push nothing, so the saved rsp points at their return
 * address: the handler records what happened, drops the frame and returns 1
 * to the accessor's caller. No iret is needed: guest and handler run in the
 * same ring and no event is ever unmasked.
 */
#define FRAME_ERROR	16
#define FRAME_RIP	24
#define FRAME_RSP	48

	.text
/* int checked_load(const uint64_t *from, uint64_t *to): 0, or 1 on a fault */
	.globl	checked_load
checked_load:
	movq	(%rdi), %rax
	movq	%rax, (%rsi)
	xorl	%eax, %eax
	ret

/* int checked_store(uint64_t *to, uint64_t value): 0, or 1 on a fault */
	.globl	checked_store
checked_store:
	movq	%rsi, (%rdi)
	xorl	%eax, %eax
	ret

	.globl	fault_gp, fault_page
fault_gp:
	movl	$13, fault_vector(%rip)
	jmp	1f
fault_page:
	movl	$14, fault_vector(%rip)
1:	movl	FRAME_ERROR(%rsp), %eax
	movl	%eax, fault_error(%rip)
	movq	FRAME_RIP(%rsp), %rdi
	leaq	checked_load(%rip), %rax
	cmpq	%rax, %rdi
	je	2f
	leaq	checked_store(%rip), %rax
	cmpq	%rax, %rdi
	je	2f
	call	fault_unexpected	/* (rip), does not return */
	ud2
2:	movq	FRAME_RSP(%rsp), %rsp
	movl	$1, %eax
	ret

	.bss
	.balign	4
	.globl	fault_vector, fault_error
fault_vector:	.long 0
fault_error:	.long 0

	.section .note.GNU-stack, "", @progbits
