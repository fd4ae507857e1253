"""Checks against rules and reality: invariants, a CPU, boot logs, real kernels' code and boots."""
