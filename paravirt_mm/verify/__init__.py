"""Checks against rules and against reality: invariants, CPU, boot logs, kernel and hypervisor replays."""
