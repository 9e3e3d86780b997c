"""The memory engine: mappings of a mount's files at the speed of memory, without FUSE's copy.

The mount itself is the kernel engine's: names, read(2), `.hbf/`. Beside it a service hands the files out as
sealed memory (service.py), and a preloaded library (shim.c) puts them in place of a program's mappings. The
library makes each touch of a page that has not come yet wait for the tier, whose arithmetic it has in C
(twin.h). The server does that arithmetic again for every read (follow.py), and asks the kernel what is mapped
(proof.py).
"""
