"""Stock Debian kernels, and the modules that a guest loads."""

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import debian

PACKAGES = ("linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64")
"""Debian 12's own kernel (6.1), and the newer one in the same archive."""

WANTED = ("virtio_pci", "virtio_blk", "ext4", "fuse", "overlay", "autofs4")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel. modules: the folder that would be /lib/modules/RELEASE."""

    release: str
    image: Path
    modules: Path


def fetch(package: str) -> Kernel:
    """A kernel by the name of its package or meta-package. Raises debian.Unavailable."""
    root = debian.unpacked(debian.dependency(package, r"linux-image-\d.*") or package)
    (image,) = root.glob("boot/vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    (modules,) = [path for path in root.glob(f"**/lib/modules/{release}") if path.is_dir()]
    return Kernel(release, image, modules)


def modules_to_load(kernel: Kernel, wanted: tuple[str, ...] = WANTED) -> dict[str, bytes]:
    """Name to content of the wanted modules and those they depend on, in loading order.

    Built-in modules are left out.
    """
    files = {_name(path): path for path in kernel.modules.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        content = _content(files[name])
        for other in _depends(content):
            add(other)
        ordered[name] = content

    for name in wanted:
        add(name)
    return ordered


def _name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _depends(module: bytes) -> list[str]:
    """The dependencies of a module, from its .modinfo section, `depends=a,b`."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]
