"""Xen PV as a platform: backend, domain builder, and a model of the hypervisor's page typing.

========== ===================================================================================
backend    what an allocator meets; start reading here
domain     where a domain builder puts things, and what they collide with
mmu        how Xen types pages: the model
traces     operations on a guest's tables: their format, recordings, generators
live       the real hypervisor, booted in QEMU with the guest of ``guest/``
translate  a run as such operations, for model and hypervisor to judge
replay     the answers of the model, and findings where it refuses
dom0       real kernels as dom0 below the real hypervisor: recorded, compared, as rows
linux      what Linux does as a PV guest, release by release
verify     what ``paravirt-mm verify xen`` does (its options: ``command``)
========== ===================================================================================
"""

from paravirt_mm_xen.backend import Xen

__all__ = ["Xen"]
