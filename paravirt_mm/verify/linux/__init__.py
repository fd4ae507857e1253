"""Models of Linux against a real kernel that is booted: ``verify linux``.

========== ===================================================================================
compare    what the kernel did, beside what the model of its release does
maps       the memory maps that it boots with
qemu       boot a kernel in QEMU and record how it builds its direct map
========== ===================================================================================
"""
