"""The bytes of the FUSE protocol, as in linux/fuse.h. Host byte order; every struct is free of padding."""

import struct
from enum import IntEnum

ROOT_ID = 1
MIN_READ_BUFFER = 8192
MAJOR = 7
MINOR = 38
"""The newest protocol minor that this code speaks. The lower one of it and the kernel's is used."""
OLDEST_MINOR = 31
"""Linux 5.4; older kernels are refused."""

ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
EXPLICIT_INVAL_DATA = 1 << 25

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NOFLUSH = 1 << 5

NOTIFY_INVAL_INODE = 2


class WireStruct(struct.Struct):
    """A C struct by name, with its fields in order. A test compares it with the header."""

    def __init__(self, name: str, fields: str) -> None:
        self.name = name
        self.fields = [tuple(field.split(":")) for field in fields.split()]
        super().__init__("=" + "".join(code for _, code in self.fields))


# The header declares times as unsigned. The kernel reads them as signed: files may be older than 1970.
_ATTR = (
    "ino:Q size:Q blocks:Q atime:q mtime:q ctime:q atimensec:I mtimensec:I ctimensec:I "
    "mode:I nlink:I uid:I gid:I rdev:I blksize:I flags:I"
)

IN_HEADER = WireStruct(
    "fuse_in_header",
    "len:I opcode:I unique:Q nodeid:Q uid:I gid:I pid:I total_extlen:H padding:H",
)
OUT_HEADER = WireStruct("fuse_out_header", "len:I error:i unique:Q")
ATTR = WireStruct("fuse_attr", _ATTR)
ENTRY_OUT = WireStruct(
    "fuse_entry_out",
    "nodeid:Q generation:Q entry_valid:Q attr_valid:Q entry_valid_nsec:I attr_valid_nsec:I",
)
ATTR_OUT = WireStruct("fuse_attr_out", "attr_valid:Q attr_valid_nsec:I dummy:I")
OPEN_IN = WireStruct("fuse_open_in", "flags:I open_flags:I")
OPEN_OUT = WireStruct("fuse_open_out", "fh:Q open_flags:I padding:I")
RELEASE_IN = WireStruct("fuse_release_in", "fh:Q flags:I release_flags:I lock_owner:Q")
READ_LOCKOWNER = 1 << 1
"""A flag in read_flags: set for reads past the page cache, never for reads that fill it."""

READ_IN = WireStruct(
    "fuse_read_in",
    "fh:Q offset:Q size:I read_flags:I lock_owner:Q flags:I padding:I",
)
WRITE_IN = WireStruct(
    "fuse_write_in",
    "fh:Q offset:Q size:I write_flags:I lock_owner:Q flags:I padding:I",
)
WRITE_LOCKOWNER = 1 << 1
"""A flag in write_flags: set for writes past the page cache, never for those that go through it."""

WRITE_OUT = WireStruct("fuse_write_out", "size:I padding:I")
SETATTR_IN = WireStruct(
    "fuse_setattr_in",
    "valid:I padding:I fh:Q size:Q lock_owner:Q atime:q mtime:q ctime:q atimensec:I mtimensec:I ctimensec:I "
    "mode:I unused4:I uid:I gid:I unused5:I",
)
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FATTR_ATIME, FATTR_MTIME, FATTR_ATIME_NOW, FATTR_MTIME_NOW = 1 << 4, 1 << 5, 1 << 7, 1 << 8
CREATE_IN = WireStruct("fuse_create_in", "flags:I mode:I umask:I open_flags:I")
MKNOD_IN = WireStruct("fuse_mknod_in", "mode:I rdev:I umask:I padding:I")
MKDIR_IN = WireStruct("fuse_mkdir_in", "mode:I umask:I")
RENAME_IN = WireStruct("fuse_rename_in", "newdir:Q")
RENAME2_IN = WireStruct("fuse_rename2_in", "newdir:Q flags:I padding:I")
FALLOCATE_IN = WireStruct("fuse_fallocate_in", "fh:Q offset:Q length:Q mode:I padding:I")
INIT_IN = WireStruct("fuse_init_in", "major:I minor:I max_readahead:I flags:I")
INIT_OUT = WireStruct(
    "fuse_init_out",
    "major:I minor:I max_readahead:I flags:I max_background:H congestion_threshold:H max_write:I "
    "time_gran:I max_pages:H map_alignment:H flags2:I unused:28s",
)
INTERRUPT_IN = WireStruct("fuse_interrupt_in", "unique:Q")
KSTATFS = WireStruct(
    "fuse_kstatfs",
    "blocks:Q bfree:Q bavail:Q files:Q ffree:Q bsize:I namelen:I frsize:I padding:I spare:24s",
)
DIRENT = WireStruct("fuse_dirent", "ino:Q off:Q namelen:I type:I")
INVAL_INODE_OUT = WireStruct("fuse_notify_inval_inode_out", "ino:Q off:q len:q")

HEADERS_WITH_ATTR = (ENTRY_OUT, ATTR_OUT)
"""In the header, these two end with a fuse_attr. Here it is packed separately, behind them."""


class Opcode(IntEnum):
    """Request kinds, numbered as in enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    FSYNC = 20
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    COPY_FILE_RANGE = 47
    TMPFILE = 51


UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests without a reply."""


class Request:
    """A request's header, and its body as a view. The view is valid until the next request is read."""

    __slots__ = ("body", "nodeid", "opcode", "pid", "unique")

    def __init__(self, message: memoryview) -> None:
        _, self.opcode, self.unique, self.nodeid, _, _, self.pid, _, _ = IN_HEADER.unpack_from(message)
        self.body = message[IN_HEADER.size :]
