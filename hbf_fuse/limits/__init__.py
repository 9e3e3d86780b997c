"""Kernel limits: cgroup limits on block I/O and memory, and commands that run under them."""
