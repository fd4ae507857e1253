"""Models of Linux against real Linux: its code's records, its boot logs, and live boots.

========== ===================================================================================
oracle     replay what the real kernel's code did (``verify kernel``)
record     turn a run into such a record
log        predict what a kernel printed (``verify log``); ``words`` has the print formats by
           release, ``predict`` the lines, ``variants`` what a release number leaves open
live       compare with a booted kernel (``verify linux``); ``live_maps`` are the maps it boots
harness    boot a kernel in QEMU and record what it does
========== ===================================================================================
"""
