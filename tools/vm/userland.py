"""The guest's root disk: this interpreter, this project and its dependencies, and busybox.

Nothing is taken from fixed places. The interpreter says where its library is, the distributions say which
files belong to them, and ldd lists the shared libraries that all of them need.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import initramfs
from packaging.requirements import Requirement

import hbf_fuse

PROJECT = "hbf-fuse"
_GUEST = Path(__file__).parent / "guest"
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_NOT_NEEDED = (
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
)
_PROGRAMS = ("fusermount3",)
_FOLDERS = ("dev", "etc", "lib64", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib")


def write(root: Path) -> None:
    """Fill an empty folder with the files that the checks need. Raises debian.Unavailable without busybox."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "sbin"):
        (root / name).symlink_to("usr/lib" if name == "lib" else "usr/bin")
    _add_programs(root)
    add_project(root)
    shutil.copy2(_GUEST / "checks.py", root / "hbf/checks.py")
    _script(root / "usr/bin/init", (_GUEST / "main.py").read_text())
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nreader:x:1000:1000::/tmp:/bin/sh\n")
    (root / "etc/mtab").symlink_to("/proc/mounts")


def add_project(root: Path) -> None:
    """Add this interpreter and the project, its commands in /hbf/.venv/bin, to a root file system."""
    _add_interpreter(root)
    _add_packages(root)
    _add_libraries(root)


def _add_interpreter(root: Path) -> None:
    """Add Python below /usr, where it finds its library itself, and an environment like the current one."""
    shutil.copy2(Path(sys.executable).resolve(), root / "usr/bin" / _VERSION)
    library = root / "usr/lib" / _VERSION
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
    for kind in ("platstdlib", "stdlib"):
        source = sysconfig.get_path(kind, vars=base)
        shutil.copytree(source, library, ignore=_left_out, dirs_exist_ok=True)
    environment = root / "hbf/.venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(f"/usr/bin/{_VERSION}")
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")


def _left_out(folder: str, names: list[str]) -> set[str]:
    return {
        name for name in names if name in _NOT_NEEDED or name.startswith(("config-", "_tkinter", "_test"))
    }


def _add_packages(root: Path) -> None:
    packages = root / "hbf/.venv/lib" / _VERSION / "site-packages"
    for distribution in _dependencies(PROJECT):
        for file in distribution.files or []:
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file():
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    shutil.copytree(Path(hbf_fuse.__file__).parent, packages / "hbf_fuse", dirs_exist_ok=True)
    for entry in metadata.distribution(PROJECT).entry_points:
        text = f"from {entry.module} import {entry.attr}\n\n{entry.attr}()\n"
        _script(root / "hbf/.venv/bin" / entry.name, text)


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/hbf/.venv/bin/python\n{text}")
    path.chmod(0o755)


def _dependencies(name: str) -> list[metadata.Distribution]:
    """All dependencies of a distribution, recursively, without itself and without extras."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [name]
    while waiting:
        for line in metadata.distribution(waiting.pop()).requires or []:
            wanted = Requirement(line)
            if wanted.name not in found and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
                found[wanted.name] = metadata.distribution(wanted.name)
                waiting.append(wanted.name)
    return list(found.values())


def _add_programs(root: Path) -> None:
    shutil.copy2(initramfs.busybox(), root / "usr/bin/busybox")
    listed = subprocess.run([root / "usr/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in set(listed.stdout.split()) - {"busybox", "init"}:
        (root / "usr/bin" / applet).symlink_to("busybox")
    for name in _PROGRAMS:
        if path := shutil.which(name):
            shutil.copy2(path, root / "usr/bin" / name)


def _add_libraries(root: Path) -> None:
    """Add the shared libraries of all added files, in the one folder that every loader searches."""
    ours = [
        *(root / "usr/bin").iterdir(),
        *(root / "usr/lib" / _VERSION).rglob("*"),
        *(root / "hbf").rglob("*"),
    ]
    wanting = [path for path in ours if path.is_file() and not path.is_symlink() and _is_elf(path)]
    listed = subprocess.run(["ldd", *wanting], capture_output=True, text=True, check=False).stdout
    there = {path.name for path in (root / "usr/lib").rglob("*.so*")}
    for library in set(re.findall(r"=> (/\S+) \(", listed)):
        if not Path(library).is_relative_to(root) and Path(library).name not in there:
            shutil.copy2(library, root / "usr/lib" / Path(library).name)
    for loader in set(re.findall(r"^\s+(/\S+) \(", listed, re.MULTILINE)):
        target = root / loader.lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(loader, target)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
