"""A real kernel as dom0 of a real hypervisor: every hypercall that it makes for its page tables
until its direct map stands, beside what the model says (docs/live-xen.md)."""
