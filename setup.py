# SPDX-License-Identifier: BSD-3-Clause
"""Builds pyneuro/kernels/_native: csrc/isa/*.c each with the flags on its own first line, once for each element type,
csrc/core/*.c once, and the binding. Without a C compiler nothing is compiled, and pyneuro runs on NumPy alone.

PYNEURO_DEBUG=1                 -O0 -g -Werror, and Python files stay Python
PYNEURO_WERROR=1                -Werror
PYNEURO_SANITIZE=address,...    with these sanitizers
With one of them whatever does not compile is an error; without, an ISA or the extension is left out with a warning.
"""
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import Cython
from Cython.Build import cythonize
from Cython.Compiler.Errors import CompileError as CythonError
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

NATIVE = "pyneuro.kernels._native"
CSRC = sorted(str(p) for p in Path("csrc").rglob("*") if p.suffix in (".c", ".h", ".def"))
CORE = [f for f in CSRC if Path(f).parent.name == "core"]                 # compiled once; and none reads the others' headers
KERNELS = [f for f in CSRC if Path(f).parent.name in ("isa", "kernels")]

DEBUG, WERROR = (os.environ.get(f"PYNEURO_{name}", "0") not in ("", "0") for name in ("DEBUG", "WERROR"))
SANITIZE = os.environ.get("PYNEURO_SANITIZE", "")
STRICT = DEBUG or WERROR or bool(SANITIZE)
# Python files that are compiled as they stand. An in-place build of them hides later edits until the next one.
HOT = [name for name in ("ops", "tensor", "graph", "replay") if Path(f"pyneuro/{name}.pxd").exists() and not DEBUG]
# Nothing is thrown through C: tables for unwinding are a thirtieth of the wheel.
RELEASE = ["-O3", "-g0", "-fno-asynchronous-unwind-tables"]
MODE = (["-O0", "-g", "-U_FORTIFY_SOURCE"] if DEBUG else RELEASE) if not SANITIZE else \
       [f"-fsanitize={SANITIZE}", "-O1", "-g", "-fno-omit-frame-pointer", "-U_FORTIFY_SOURCE"]
# -ffp-contract=off: a product and a sum are fused where vfma says so and nowhere else, on every ISA.
CFLAGS = ["-std=gnu11", *MODE, "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
          "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter", "-Wno-unused-function"]
CFLAGS += ["-Werror"] * (DEBUG or WERROR)
# Calls of Python's API: -O3 builds three times longer, is a third larger, and runs alike. But what every replay passes through
# is a sixth faster where references are counted in place, which -Os leaves to functions.
HOT_MODE = {name: [("-O1" if name == "replay" else "-Os") if flag == "-O3" else flag for flag in MODE] for name in HOT}
# What a module does once, on import, is one function of ten thousand lines, and takes as long to optimise as all others.
ONCE = [("CYTHON_SMALL_CODE", '__attribute__((cold, optimize("O0")))')] if sys.platform == "linux" else []
LDFLAGS = [f"-fsanitize={SANITIZE}"] if SANITIZE else ["-s"] if sys.platform == "linux" and not DEBUG else []
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def isas() -> dict[str, list[str]]:
    """The ISAs of this processor, baseline first, each with its flags."""
    found = {}
    for path in sorted(Path("csrc/isa").glob("*.c"), key=lambda p: p.stem != "baseline"):
        machine, flags = re.match(r"/\* cflags(?:\((\w+)\))?:(.*)\*/", path.read_text()).groups()
        if machine in (None, MACHINE):
            found[path.stem] = flags.split()
    return found


class BuildExt(build_ext):
    def finalize_options(self):
        super().finalize_options()
        self.cython_c_in_temp = True                          # no generated C among the sources

    def build_extensions(self):
        flags = [flag for flag in CFLAGS if flag != "-Werror"]
        stamp, now = Path(self.build_temp, "flags"), str((self.compiler.compiler_so, flags, LDFLAGS, Cython.__version__))
        self.force = self.force or not stamp.exists() or stamp.read_text() != now        # other ones than last time
        native = next(ext for ext in self.extensions if ext.name == NATIVE)
        self.jobs, self.bindings = {}, {}
        # All that is compiled goes through one queue, what takes longest first; Cython is one at a time.
        with ThreadPoolExecutor(os.cpu_count()) as self.pool, ThreadPoolExecutor(1) as cython:
            if self.stale(native):
                self.target(native).unlink(missing_ok=True)   # an old one must not stand in if this fails
                self.jobs = self.start_kernels()
            for ext in filter(self.stale, sorted(self.extensions, key=lambda ext: ext.name != NATIVE)):
                self.bindings[ext.name] = cython.submit(self.start_binding, ext)
            super().build_extensions()                        # the extension for the kernels is the last
        if not self.target(native).exists():
            for ext in self.extensions:                       # which need it
                self.target(ext).unlink(missing_ok=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(now)

    def target(self, ext):
        return Path(self.get_ext_fullpath(ext.name))

    def stale(self, ext):
        target = self.target(ext)
        return self.force or not target.exists() or \
            target.stat().st_mtime < max(os.stat(f).st_mtime for f in ext.sources + ext.depends)

    def build_extension(self, ext):
        if ext.name not in self.bindings:
            return                                            # Cython's own, of today's environment, are all that is newer
        kernels = self.kernels() if ext.name == NATIVE else []
        try:
            ext.extra_objects = self.bindings[ext.name].result().result() + kernels
        except CythonError as error:                          # `optional` does not know this one
            raise CompileError(str(error)) from error
        ext.sources, ext.depends = [], ext.depends + ext.sources
        super().build_extension(ext)

    def start_binding(self, ext):
        """Translate it, and compile it meanwhile: what will be its objects."""
        if ext.name == NATIVE:
            import numpy
            ext.include_dirs.append(numpy.get_include())
            ext.define_macros += [("PN_FLAGS", f'"{" ".join(CFLAGS)}"'), ("PN_SANITIZE", f'"{SANITIZE}"'),
                                  ("PN_NUMPY", f'"{numpy.__version__}"')]
        elif any(job.done() and job.exception() for job in self.jobs.get("baseline", ())):
            raise CompileError(f"it needs {NATIVE}, which cannot be built")
        translated, = cythonize(ext, force=self.force, quiet=not self.verbose, include_path=ext.include_dirs,
                                build_dir=self.build_temp)
        return self.pool.submit(self.compiler.compile, translated.sources, output_dir=self.build_temp,
                                macros=ext.define_macros, include_dirs=ext.include_dirs,
                                extra_postargs=ext.extra_compile_args)

    def start_kernels(self):
        """Compile csrc meanwhile: for each ISA, what will be the objects for float and for double."""
        return {isa: [self.pool.submit(self.compile, f"{isa}{bits}", [f"csrc/isa/{isa}.c"], CORE, flags, [("PN_TYPE", str(bits))])
                      for bits in (32, 64)] for isa, flags in isas().items()}

    def compile(self, folder, sources, unread, flags, macros):
        """Objects of sources, which include none of the files in `unread`."""
        made = self.compiler.object_filenames(sources, output_dir=os.path.join(self.build_temp, folder))
        newest = max(os.stat(f).st_mtime for f in {*CSRC, __file__} - set(unread))
        if not self.force and all(os.path.exists(f) and os.stat(f).st_mtime > newest for f in made):
            return made                                       # something else has changed
        return self.compiler.compile(sources, output_dir=os.path.join(self.build_temp, folder), macros=macros,
                                     extra_postargs=CFLAGS + flags)

    def kernels(self):
        """The objects of csrc; core is told which ISAs the compiler takes."""
        done = {}
        for isa, pair in self.jobs.items():
            try:
                done[isa] = [obj for job in pair for obj in job.result()]
            except (CompileError, OSError) as error:
                if STRICT:
                    raise
                if isa == "baseline":
                    raise CompileError("no C compiler, or it does not take csrc/isa/baseline.c; "
                                       "pyneuro will run on NumPy alone, which is slower") from error
                self.warn(f"the compiler does not take csrc/isa/{isa}.c; pyneuro will do without {isa}")
        macros = [("PN_ISAS", " ".join(f"X({isa})" for isa in done))]
        core = self.compile("core", [f for f in CORE if f.endswith(".c")], KERNELS, [], macros)
        return [*core, *(obj for pair in done.values() for obj in pair)]


class BuildPy(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:                            # signature.py reads them; in a checkout, from csrc
            for table in Path("csrc").glob("*.def"):
                shutil.copy(table, Path(self.build_lib, "pyneuro", "kernels"))


class SDist(sdist):
    def make_distribution(self):
        for top in ("csrc", "pyneuro", "tests", "bench"):     # MANIFEST.in's work
            files = (p for p in Path(top).rglob("*.*") if p.is_file() and p.suffix not in (".so", ".pyc"))
            self.filelist.extend(map(str, files))
        self.filelist.remove_duplicates()
        super().make_distribution()


def extension(name: str, source: str, depends: list[str], mode: list[str] = MODE, macros: Sequence = (), **options) -> Extension:
    return Extension(name, [source], depends=depends, optional=not STRICT, extra_link_args=LDFLAGS, define_macros=[*macros, *ONCE],
                     extra_compile_args=[*mode, "-fvisibility=hidden", "-Wno-attributes"], **options)


setup(
    ext_modules=[
        *(extension(f"pyneuro.{name}", f"pyneuro/{name}.py", [str(p) for p in Path("pyneuro").rglob("*.pxd")],
                    mode=HOT_MODE[name]) for name in HOT),
        extension(NATIVE, "pyneuro/kernels/_native.pyx",
                  [*map(str, Path("pyneuro/kernels").glob("_*.px[di]")), *CSRC], include_dirs=["csrc"],
                  macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")], libraries=["m"]),
    ],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "sdist": SDist},
)
