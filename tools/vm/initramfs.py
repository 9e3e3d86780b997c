"""The first file system of a guest: busybox, a few kernel modules, and a script that mounts the root disk."""

import gzip
import stat
from pathlib import Path

import debian
import kernels

_INIT = Path(__file__).parent / "guest" / "init"


def write(kernel: kernels.Kernel, target: Path) -> None:
    """Write the initramfs of a kernel: a gzipped cpio archive. Raises debian.Unavailable."""
    modules = kernels.modules_to_load(kernel)
    order = "".join(f"{name}\n" for name in modules)
    parts = [
        *(_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "root")),
        _entry("init", stat.S_IFREG | 0o755, _INIT.read_bytes()),
        _entry("bin/busybox", stat.S_IFREG | 0o755, busybox().read_bytes()),
        _entry("modules/order", stat.S_IFREG | 0o644, order.encode()),
        *(_entry(f"modules/{name}", stat.S_IFREG | 0o644, data) for name, data in modules.items()),
        _entry("TRAILER!!!", 0),
    ]
    target.write_bytes(gzip.compress(b"".join(parts), compresslevel=1))


def busybox() -> Path:
    """A static busybox. Raises debian.Unavailable."""
    root = debian.unpacked("busybox-static")
    return next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """One file of a cpio archive in the `newc` format (Linux: Documentation/driver-api/early-userspace)."""
    path = name.encode() + b"\0"
    ino, uid, gid, links, mtime, device, check = 0, 0, 0, 1, 0, 0, 0
    fields = (
        *(ino, mode, uid, gid, links, mtime, len(data)),
        *(device, device, device, device, len(path), check),
    )
    header = b"070701" + b"".join(b"%08X" % value for value in fields) + path
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
