"""What pyproject.toml cannot say: the modules that hbf_fuse/compiled.py finds are compiled, all or none.

Without a compiler, or where one module fails, everything is installed all the same, as ordinary Python.
"""

import os
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from hbf_fuse import compiled  # noqa: E402

DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,
    "infer_types": True,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
}
# No fused multiply and add: Python has none, and what is compiled must give the same numbers.
FLAGS = ["-O2", "-g0", "-ffp-contract=off", "-Wno-unused-function"]
BUILT = "hbf_fuse/_built.py"
PACKAGE = str(ROOT / "hbf_fuse")
SOURCES = compiled.sources(PACKAGE)
# By its path: its package needs what is not installed yet.
_FOUND = spec_from_file_location("memory", ROOT / "hbf_fuse/engine/memory/build.py")
memory = module_from_spec(_FOUND)
_FOUND.loader.exec_module(memory)


class BuildAllOrNone(build_ext):
    """Leaves no extension at all where one cannot be built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        # In place, as in development, what has not changed is not built again; else nothing old is trusted.
        self.force = self.force or not self.inplace

    def build_extensions(self) -> None:
        try:
            self._translate()
            super().build_extensions()
        except Exception as error:  # Whatever it is, the sources are there.
            self.warn(f"nothing is compiled: {error}; install gcc and python3-dev")
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self._built().unlink(missing_ok=True)
            self.extensions = []
        else:
            self._built().write_text(compiled.record(compiled.digest(SOURCES, PACKAGE)))

    def run(self) -> None:
        super().run()
        folder = memory.FOLDER if self.inplace else Path(self.build_lib, "hbf_fuse/engine/memory")
        folder.mkdir(parents=True, exist_ok=True)
        if why := memory.build(folder):
            self.warn(f"no memory engine: {why}; install gcc")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        if self.extensions:
            shutil.copyfile(self._built(), ROOT / BUILT)

    def _translate(self) -> None:
        """From Python to C."""
        from Cython.Build import cythonize

        copies = [Extension(each.name, list(each.sources)) for each in self.extensions]
        translated = cythonize(copies, compiler_directives=DIRECTIVES, build_dir=self.build_temp, quiet=True)
        sources = {each.name: each.sources for each in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]

    def _built(self) -> Path:
        return Path(self.build_lib, BUILT)


def extension(source: str) -> Extension:
    name = f"hbf_fuse.{source.rpartition('.')[0].replace('/', '.')}"
    return Extension(name, [f"hbf_fuse/{source}"], extra_compile_args=FLAGS, extra_link_args=["-s"])


setup(
    cmdclass={"build_ext": BuildAllOrNone},
    ext_modules=[extension(source) for source in compiled.modules(SOURCES)],
)
