"""Builds the C extension. Everything declarative is in pyproject.toml.

DEBUG=1 builds with -O1 -g, SANITIZE=address,undefined adds the sanitizers.

Without a C compiler the extension is left out, with a warning, and the numba backend takes its place; an error in the
code is an error. FASTBATCH_REQUIRE_C=1 makes the missing compiler one, too.
"""

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError

# No -ffast-math: it would change the floating-point mode of the whole process and let NaN checks be dropped.
CFLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"]
CFLAGS += ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-pthread"]
LDFLAGS = ["-pthread"]
if not (os.environ.get("DEBUG") or os.environ.get("SANITIZE")):
    CFLAGS += ["-g0"]  # Python's own flags ask for debug information, four fifths of the file
if os.environ.get("DEBUG"):
    CFLAGS += ["-O1", "-fno-omit-frame-pointer"]
if os.environ.get("SANITIZE"):
    CFLAGS += [f"-fsanitize={os.environ['SANITIZE']}"]
    LDFLAGS += [f"-fsanitize={os.environ['SANITIZE']}"]


class ParallelBuild(build_ext):
    """Compiles the units of an extension side by side: each target is one unit, and the slowest decides."""

    def build_extensions(self):
        missing = self._what_is_missing()
        if missing and os.environ.get("FASTBATCH_REQUIRE_C"):
            raise SystemExit(f"fastbatch: no working C compiler ({missing}), and FASTBATCH_REQUIRE_C is set")
        if missing:
            print(
                f"fastbatch: WARNING: no working C compiler ({missing}). Installing without the C kernels: use "
                "fastbatch[numba], or install a compiler and reinstall. `fastbatch info` tells what is there.",
                file=sys.stderr,
            )
            for extension in self.extensions:
                extension.optional = True  # its file may be missing
            return
        compile_one = self.compiler.compile

        def compile_all(sources, *args, **kwargs):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_one([source], *args, **kwargs), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_all
        super().build_extensions()

    def _what_is_missing(self):
        """Why not even an empty function can be compiled, or an empty string."""
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "empty.c")
            with open(source, "w") as file:
                file.write("int main(void) { return 0; }\n")
            try:
                self.compiler.compile([source], output_dir=folder)
            except (CCompilerError, ExecError, OSError) as error:
                return str(error)
        return ""


native = Extension(
    "fastbatch._native",
    ["fastbatch/_native.pyx", *sorted(glob("csrc/*.c") + glob("csrc/targets/*.c"))],
    include_dirs=["csrc", numpy.get_include()],
    depends=glob("csrc/**/*.[hd]*", recursive=True) + glob("csrc/**/*.inc", recursive=True),
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    extra_compile_args=CFLAGS,
    extra_link_args=LDFLAGS,
)
setup(ext_modules=cythonize([native]), cmdclass={"build_ext": ParallelBuild})
