"""Xen PV as a platform: backend, domain builder, and a model of the hypervisor's page typing.

========== ===================================================================================
backend    what an allocator meets; start reading here
domain     where a domain builder puts things, and what they collide with
mmu        how Xen types pages: the model
traces     operations on a guest's tables: their format, recordings, generators
live       the real hypervisor, booted in QEMU with the guest of ``guest/``
replay     a run as such operations, so that model and hypervisor can judge it
========== ===================================================================================
"""

from paravirt_mm_xen.backend import Xen

__all__ = ["Xen"]
