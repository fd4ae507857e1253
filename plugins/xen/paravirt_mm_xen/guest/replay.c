#include "replay.h"

#include "arena.h"
#include "console.h"
#include "fault.h"
#include "hypercall.h"

/* The trace that runs: its pages, and what it did to the CR3s. */
static uint64_t first_page, pages;
static uint64_t base_frame; /* the loaded kernel L4 */
static int user_base_set;
static uint64_t assists; /* bit n: VMASST_TYPE n is on */

static uint64_t frame_of(uint32_t page)
{
	return arena_frame(first_page + page);
}

static uint64_t *va_of(uint32_t page)
{
	return arena_va(first_page + page);
}

/* The entry that a record describes; bits of 0 mean an entry of 0. */
static uint64_t entry_of(const struct wire_record *op)
{
	return op->value ? frame_of(op->target) << PAGE_SHIFT | op->value : 0;
}

static int64_t fault_answer(void)
{
	return ANSWER_FAULT(fault_vector, fault_error);
}

/* ---- what the guest must not do to itself ---- */

/* The kernel slot of the loaded L4 holds the guest's code and the arena. */
static int cuts_off_the_guest(const struct wire_record *op)
{
	switch (op->code) {
	case WIRE_MMU_UPDATE:
	case WIRE_MMU_UPDATE_DEVICE:
		return op->index == KERNEL_SLOT && frame_of(op->page) == base_frame;
	case WIRE_UPDATE_VA:
	case WIRE_PROBE_READ:
	case WIRE_PROBE_WRITE:
		return L4_SLOT(op->va) == KERNEL_SLOT;
	case WIRE_WRITE: /* any slot 511: a rule of the recorded traces */
		return op->index == KERNEL_SLOT;
	default:
		return 0;
	}
}

/* Whether the L4 maps the guest: Xen adds A, D and G as it sees fit. */
static int maps_the_guest(uint64_t frame)
{
	const uint64_t own = ENTRY_ACCESSED | ENTRY_DIRTY | ENTRY_GLOBAL;

	return !((peek_entry(frame, KERNEL_SLOT) ^ boot_l4()[KERNEL_SLOT]) & ~own);
}

/* ---- operations as members of a batch ---- */

/* A batch loads a new kernel L4 only if that maps the guest beforehand; no member
 * that comes before it in a batch can change that (live/wire.py sees to it). */
static int member_cuts_off_the_guest(const struct wire_record *op)
{
	return cuts_off_the_guest(op) ||
	       (op->code == WIRE_NEW_BASEPTR && !maps_the_guest(frame_of(op->page)));
}

static struct mmu_update mmu_update_of(const struct wire_record *op)
{
	return (struct mmu_update){
		.ptr = (frame_of(op->page) << PAGE_SHIFT) + op->index * sizeof(uint64_t) +
		       (op->detail ? MMU_PT_UPDATE_PRESERVE_AD : MMU_NORMAL_PT_UPDATE),
		.val = entry_of(op),
	};
}

static struct mmuext_op mmuext_op_of(const struct wire_record *op)
{
	struct mmuext_op ext = { 0 };

	switch (op->code) {
	case WIRE_PIN:
		ext.cmd = MMUEXT_PIN_L1_TABLE + op->detail - 1;
		break;
	case WIRE_UNPIN:
		ext.cmd = MMUEXT_UNPIN_TABLE;
		break;
	case WIRE_NEW_BASEPTR:
		ext.cmd = MMUEXT_NEW_BASEPTR;
		break;
	case WIRE_NEW_USER_BASEPTR:
		ext.cmd = MMUEXT_NEW_USER_BASEPTR;
		user_base_set = 1;
		break;
	case WIRE_CLEAR_PAGE:
		ext.cmd = MMUEXT_CLEAR_PAGE;
		break;
	case WIRE_COPY_PAGE:
		ext.cmd = MMUEXT_COPY_PAGE;
		ext.arg2.src_mfn = frame_of(op->target);
		break;
	case WIRE_TLB_FLUSH:
		ext.cmd = op->detail;
		ext.arg1.linear_addr = (uint64_t)va_of(0);
		return ext;
	default:
		guest_stop("replay: not an mmuext operation", op->code);
	}
	ext.arg1.mfn = op->page == WIRE_NO_PAGE ? 0 : frame_of(op->page);
	return ext;
}

static union {
	struct mmu_update updates[WIRE_BATCH_MAX];
	struct mmuext_op ext[WIRE_BATCH_MAX];
	struct {
		struct multicall_entry calls[WIRE_BATCH_MAX];
		union {
			struct mmu_update update;
			struct mmuext_op ext;
		} arguments[WIRE_BATCH_MAX];
	} multi;
} batch;

static int64_t mmu_updates(const struct wire_record *members, unsigned int count)
{
	unsigned int done;
	int64_t error;

	for (unsigned int i = 0; i < count; i++) {
		if (cuts_off_the_guest(&members[i]))
			return ANSWER_REFUSED;
		batch.updates[i] = mmu_update_of(&members[i]);
	}
	error = hypercall_mmu_update(batch.updates, count, &done);
	return error ? ANSWER_BATCH(done, error) : 0;
}

static int64_t mmuext_ops(const struct wire_record *members, unsigned int count)
{
	unsigned int done;
	int64_t error;

	for (unsigned int i = 0; i < count; i++) {
		if (member_cuts_off_the_guest(&members[i]))
			return ANSWER_REFUSED;
		batch.ext[i] = mmuext_op_of(&members[i]);
	}
	error = hypercall_mmuext_op(batch.ext, count, &done);
	for (unsigned int i = 0; i < (error ? done : count); i++) {
		if (members[i].code == WIRE_NEW_BASEPTR)
			base_frame = frame_of(members[i].page);
	}
	return error ? ANSWER_BATCH(done, error) : 0;
}

static void multicall_entry_of(const struct wire_record *op, unsigned int i)
{
	struct multicall_entry *call = &batch.multi.calls[i];

	memset(call, 0, sizeof(*call));
	switch (op->code) {
	case WIRE_UPDATE_VA_MAPPING:
	case WIRE_UPDATE_VA:
		call->op = __HYPERVISOR_update_va_mapping;
		call->args[0] = op->code == WIRE_UPDATE_VA ? op->va : (uint64_t)va_of(op->page);
		call->args[1] = entry_of(op);
		call->args[2] = UVMF_INVLPG;
		return;
	case WIRE_MMU_UPDATE:
		batch.multi.arguments[i].update = mmu_update_of(op);
		call->op = __HYPERVISOR_mmu_update;
		break;
	default:
		batch.multi.arguments[i].ext = mmuext_op_of(op);
		call->op = __HYPERVISOR_mmuext_op;
	}
	call->args[0] = (uint64_t)&batch.multi.arguments[i];
	call->args[1] = 1;
	call->args[3] = DOMID_SELF;
}

/* Every member runs; the answer is that of the first that failed. */
static int64_t multicall(const struct wire_record *members, unsigned int count)
{
	int64_t error;

	for (unsigned int i = 0; i < count; i++) {
		if (cuts_off_the_guest(&members[i]))
			return ANSWER_REFUSED;
		multicall_entry_of(&members[i], i);
	}
	error = hypercall_multicall(batch.multi.calls, count);
	if (error)
		return error;
	for (unsigned int i = 0; i < count; i++) {
		if ((int64_t)batch.multi.calls[i].result < 0)
			return ANSWER_BATCH(i, (int64_t)batch.multi.calls[i].result);
	}
	return 0;
}

/* ---- operations on their own ---- */

static int64_t device_update(const struct wire_record *op)
{
	uint64_t frame = op->va == WIRE_SHARED_INFO ? shared_info_frame() : op->va;
	struct mmu_update update = {
		.ptr = (frame_of(op->page) << PAGE_SHIFT) + op->index * sizeof(uint64_t) +
		       MMU_NORMAL_PT_UPDATE,
		.val = op->value ? frame << PAGE_SHIFT | op->value : 0,
	};
	unsigned int done;

	return hypercall_mmu_update(&update, 1, &done);
}

static int64_t set_assist(unsigned int type, int on)
{
	int64_t error = hypercall_vm_assist(on ? VMASST_CMD_enable : VMASST_CMD_disable, type);

	if (!error && on)
		assists |= 1ul << type;
	else if (!error)
		assists &= ~(1ul << type);
	return error;
}

static int64_t new_user_base(uint64_t frame)
{
	struct mmuext_op ext = { .cmd = MMUEXT_NEW_USER_BASEPTR, .arg1.mfn = frame };
	unsigned int done;

	return hypercall_mmuext_op(&ext, 1, &done);
}

static int64_t new_base(uint64_t frame)
{
	struct mmuext_op ext = { .cmd = MMUEXT_NEW_BASEPTR, .arg1.mfn = frame };
	unsigned int done;
	int64_t error = hypercall_mmuext_op(&ext, 1, &done);

	if (!error)
		base_frame = frame;
	return error;
}

/* As the kernel's L4 only where the guest survives it, else as the user's. */
static int64_t load_base(uint32_t page)
{
	if (maps_the_guest(frame_of(page)))
		return new_base(frame_of(page));
	user_base_set = 1;
	return new_user_base(frame_of(page));
}

static int64_t store(uint64_t *to, uint64_t value)
{
	return checked_store(to, value) ? fault_answer() : 0;
}

static int64_t copy_kernel_slots(uint32_t page)
{
	for (unsigned int slot = 0; slot < ENTRIES; slot++) {
		int of_xen = slot >= L4_SLOT(HYPERVISOR_VIRT_START) &&
			     slot < L4_SLOT(HYPERVISOR_VIRT_END);

		if (!of_xen && boot_l4()[slot] &&
		    checked_store(va_of(page) + slot, boot_l4()[slot]))
			return fault_answer();
	}
	return 0;
}

/* 0 none, 1..4 a table of that level, 9..12 the same and pinned. */
static int64_t type_of(uint32_t page)
{
	static uint64_t info[1];
	static struct xen_domctl control;
	int64_t error;

	info[0] = frame_of(page);
	control = (struct xen_domctl){
		.cmd = XEN_DOMCTL_getpageframeinfo3,
		.interface_version = XEN_DOMCTL_INTERFACE_VERSION,
		.domain = 0,
		.u.getpageframeinfo3.num = 1,
	};
	set_xen_guest_handle(control.u.getpageframeinfo3.array, info);
	error = hypercall_domctl(&control);
	if (error)
		guest_stop("replay: Xen does not tell page types, errno", -error);
	return (info[0] & XEN_DOMCTL_PFINFO_LTAB_MASK) >> XEN_DOMCTL_PFINFO_LTAB_SHIFT;
}

/* A value with frames as the trace's page numbers, 0xfff for any other frame. */
static int64_t in_page_numbers(uint64_t value)
{
	int64_t page;

	if (!(value & ENTRY_PRESENT))
		return value;
	page = arena_page(ENTRY_FRAME(value)) - first_page;
	if (page < 0 || (uint64_t)page >= pages)
		page = 0xfff;
	return page << PAGE_SHIFT | (value & (PAGE_SIZE - 1));
}

/* A probe goes through the tables as they are: changes of an entry leave what the TLB
 * holds for other addresses that use the same entry. */
static void forget_translations(void)
{
	struct mmuext_op flush = { .cmd = MMUEXT_TLB_FLUSH_LOCAL };
	unsigned int done;

	hypercall_mmuext_op(&flush, 1, &done);
}

static int64_t load(const uint64_t *from)
{
	uint64_t value;

	return checked_load(from, &value) ? fault_answer() : in_page_numbers(value);
}

/* Stores what is there already, so that nothing but the permission is tested. */
static int64_t store_back(uint64_t *at)
{
	uint64_t value;

	return checked_load(at, &value) ? fault_answer() : store(at, value);
}

static int64_t perform(const struct wire_record *op)
{
	if (cuts_off_the_guest(op))
		return ANSWER_REFUSED;

	switch (op->code) {
	case WIRE_PIN:
	case WIRE_UNPIN:
	case WIRE_NEW_USER_BASEPTR:
	case WIRE_TLB_FLUSH:
	case WIRE_CLEAR_PAGE:
	case WIRE_COPY_PAGE:
		return mmuext_ops(op, 1);
	case WIRE_UPDATE_VA_MAPPING:
		return hypercall_update_va_mapping((uint64_t)va_of(op->page), entry_of(op));
	case WIRE_UPDATE_VA:
		return hypercall_update_va_mapping(op->va, entry_of(op));
	case WIRE_MMU_UPDATE:
		return mmu_updates(op, 1);
	case WIRE_WRITE:
	case WIRE_STORE:
		return store(va_of(op->page) + op->index, entry_of(op));
	case WIRE_STORE_VALUE:
		return store(va_of(op->page) + op->index, op->value);
	case WIRE_NEW_BASEPTR:
		return load_base(op->page);
	case WIRE_BOOT_BASEPTR:
		return new_base(boot_l4_frame());
	case WIRE_COPY_KERNEL_SLOTS:
		return copy_kernel_slots(op->page);
	case WIRE_TYPE:
		return type_of(op->page);
	case WIRE_READ:
		return load(va_of(op->page) + op->index);
	case WIRE_PROBE_READ:
		forget_translations();
		return load((const uint64_t *)op->va);
	case WIRE_PROBE_WRITE:
		forget_translations();
		return store_back((uint64_t *)op->va);
	case WIRE_MMU_UPDATE_DEVICE:
		return device_update(op);
	case WIRE_ASSIST:
		return set_assist(op->index, op->detail);
	case WIRE_MMU_UPDATE_BATCH:
		return mmu_updates(op + 1, op->count);
	case WIRE_MMUEXT_BATCH:
		return mmuext_ops(op + 1, op->count);
	case WIRE_MULTICALL:
		return multicall(op + 1, op->count);
	default:
		guest_stop("replay: unknown operation", op->code);
	}
}

void replay_trace(const struct wire_trace *trace, const struct wire_record *records,
		  uint64_t first, void (*answer)(int64_t))
{
	const struct wire_record *end = records + trace->records;

	first_page = first;
	pages = trace->pages;
	base_frame = boot_l4_frame();
	user_base_set = 0;
	arena_clear(first, pages);

	for (const struct wire_record *op = records; op < end; op += 1 + op->count)
		answer(perform(op));

	if (base_frame != boot_l4_frame() && new_base(boot_l4_frame()))
		guest_stop("replay: the boot-time L4 was refused", boot_l4_frame());
	if (user_base_set)
		new_user_base(0);
	for (unsigned int type = 0; assists; type++) {
		if (assists >> type & 1)
			set_assist(type, 0);
	}
}
