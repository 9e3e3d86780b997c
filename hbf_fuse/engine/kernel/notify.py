"""Messages that the server sends without a request."""

import os

from hbf_fuse.engine.kernel import abi


def evict(fd: int, ino: int, offset: int, nbytes: int) -> None:
    """Drop a range of a file from the page cache and from every mapping of it.

    nbytes 0 means up to the end. Never call this from a thread that holds a request: the kernel may wait for
    a page that this request has to bring. OSError ENOENT if the kernel does not know the inode.
    """
    body = abi.INVAL_INODE_OUT.pack(ino, offset, nbytes)
    header = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), abi.NOTIFY_INVAL_INODE, 0)
    os.write(fd, header + body)
