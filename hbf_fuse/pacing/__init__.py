"""When a read is due, and what the machine adds to it: accounting of reads, one source, compiled or not. No
FUSE.
"""
