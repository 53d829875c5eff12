"""Compiles ext/*.pyx into fdql.shm; everything else about the package stands in pyproject.toml.

Switches (environment): FDQL_NATIVE=1 adds -march=native; FDQL_SANITIZE=thread|address|undefined
builds
with that sanitizer; FDQL_KILL_POINTS=1 compiles the named kill points of atomics.hpp in (tests
only).
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

if sys.platform != "win32":
    compiler = os.environ.get("CXX") or (sysconfig.get_config_var("CXX") or "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("c++") is None:
        sys.exit(
            f"fdql compiles its shared-memory engine and found no C++ compiler ({compiler!r}). "
            "Install one and "
            "repeat the command: Debian/Ubuntu 'apt-get install g++', Fedora 'dnf install "
            "gcc-c++', "
            "macOS 'xcode-select --install'. A wheel of fdql needs no compiler."
        )

from Cython.Build import cythonize  # after the compiler check: its own error would hide ours

if sys.platform == "win32":
    flags = ["/std:c++20", "/O2"]
    link = []
else:
    flags = ["-std=c++20", "-O3", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function"]
    link = []
    if os.environ.get("FDQL_NATIVE"):
        flags.append("-march=native")
    if sanitizer := os.environ.get("FDQL_SANITIZE"):
        flags += [f"-fsanitize={sanitizer}", "-g", "-O1", "-fno-omit-frame-pointer"]
        link.append(f"-fsanitize={sanitizer}")
macros = [("FDQL_KILL_POINTS", "1")] if os.environ.get("FDQL_KILL_POINTS") else []
noted = " ".join([*flags, *(f"-D{name}" for name, _ in macros)])  # for fdql doctor
if sys.platform != "win32":
    macros.append(("FDQL_FLAGS", f'"{noted}"'))

extensions = [
    Extension(
        f"fdql.shm.{source.stem}",
        [source.as_posix()],
        include_dirs=["ext"],
        depends=[p.as_posix() for p in Path("ext").iterdir() if p.suffix in {".hpp", ".pxd"}],
        extra_compile_args=flags,
        extra_link_args=link,
        define_macros=macros,
        language="c++",
    )
    for source in sorted(Path("ext").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    )
)
