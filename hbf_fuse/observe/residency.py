"""How much of a file is in the page cache."""

import mmap
import os
from pathlib import Path

from hbf_fuse import linux


def resident_bytes(path: Path) -> int | None:
    """Bytes of a file that the page cache holds, in whole pages; reads none of it.

    None where the kernel does not tell: it does only for files that one owns or may write.
    """
    status = path.stat()
    if os.geteuid() not in (0, status.st_uid) and not os.access(path, os.W_OK):
        return None
    if not status.st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        return linux.resident_pages(mapped) * mmap.PAGESIZE
