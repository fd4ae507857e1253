/*
 * How Xen finds, loads and enters the guest.
 *
 * The ELF notes are what the domain builder reads (public header elfnote.h):
 * a 64-bit PV kernel whose address 0 would be VIRT_BASE, entered at _start,
 * with one page that Xen fills with hypercall stubs of 32 bytes each.
 */
#define __ASSEMBLY__
#include <xen/elfnote.h>

#define VIRT_BASE 0xffffffff80000000

.macro NOTE type:req, value:vararg
	.pushsection .note.xen, "a", @note
	.balign 4
	.long	2f - 1f			/* name size */
	.long	4f - 3f			/* description size */
	.long	\type
1:	.asciz	"Xen"
2:	.balign 4
3:	\value
4:	.balign 4
	.popsection
.endm

NOTE XEN_ELFNOTE_GUEST_OS,	.asciz "paravirt-mm"
NOTE XEN_ELFNOTE_GUEST_VERSION,	.asciz "1"
NOTE XEN_ELFNOTE_XEN_VERSION,	.asciz "xen-3.0"
NOTE XEN_ELFNOTE_LOADER,	.asciz "generic"
NOTE XEN_ELFNOTE_PAE_MODE,	.asciz "yes"
NOTE XEN_ELFNOTE_FEATURES,	.asciz "!writable_page_tables|pae_pgdir_above_4gb"
NOTE XEN_ELFNOTE_VIRT_BASE,	.quad VIRT_BASE
NOTE XEN_ELFNOTE_PADDR_OFFSET,	.quad 0
NOTE XEN_ELFNOTE_ENTRY,		.quad _start
NOTE XEN_ELFNOTE_HYPERCALL_PAGE, .quad hypercall_page

	.text
	.globl	_start
_start:					/* rsi = start_info */
	cld
	leaq	stack_top(%rip), %rsp
	xorl	%ebp, %ebp
	movq	%rsi, %rdi
	call	guest_main		/* does not return */
	ud2

	.balign	4096
	.globl	hypercall_page
hypercall_page:
	.fill	4096, 1, 0xcc

	.bss
	.balign	4096
	.fill	32768, 1, 0
stack_top:

	.section .note.GNU-stack, "", @progbits
