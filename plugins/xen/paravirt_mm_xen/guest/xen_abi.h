/* Xen's public headers (libxen-dev), as one include for the whole guest. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040d00
#define __XEN_TOOLS__ 1 /* domctl.h is for the control domain, which we are */

void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);

#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/errno.h>
#include <xen/sched.h>
#include <xen/version.h>

/* The domain builder puts pseudo-physical page 0 here (boot.S says so to it). */
#define VIRT_BASE 0xffffffff80000000ul

#define PAGE_SIZE 4096ul
#define PAGE_SHIFT 12
#define ENTRIES 512u /* of a page table of any level */

/* Entry bits; ACCESSED and DIRTY are set from the start, as Linux does. */
#define ENTRY_PRESENT 0x001ul
#define ENTRY_WRITABLE 0x002ul
#define ENTRY_USER 0x004ul
#define ENTRY_ACCESSED 0x020ul
#define ENTRY_DIRTY 0x040ul
#define ENTRY_GLOBAL 0x100ul
#define ENTRY_RO (ENTRY_PRESENT | ENTRY_USER | ENTRY_ACCESSED | ENTRY_DIRTY)
#define ENTRY_RW (ENTRY_RO | ENTRY_WRITABLE)
#define ENTRY_FRAME(entry) (((entry) >> PAGE_SHIFT) & 0xfffffffffful)
