"""Who may know whom: DESIGN.md's import direction over the Python AST, and the borders between the C files."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastbatch"
CSRC = ROOT / "csrc"

# Modules that DESIGN.md's line does not name, and beside whom they stand
UNLISTED = {"_native": "errors", "_version": "errors"}
# The root's own doors see everything
DOORS = {"__init__", "__main__"}
# What a door for another library needs to be imported at all; nothing but the user imports the door
OWN_LIBRARIES = {"sklearn": {"sklearn", "scipy"}}


def _levels() -> dict[str, int]:
    """Module -> level, 0 at the bottom; from the line in DESIGN.md that states the direction."""
    text = (ROOT / "DESIGN.md").read_text()
    line = re.search(r"^Import direction.*?\n(`.*?)\.\n", text, re.MULTILINE | re.DOTALL)[1]
    groups = [re.findall(r"\w+", part) for part in line.split(">")]
    levels = {name: level for level, group in enumerate(reversed(groups)) for name in group}
    for name, beside in UNLISTED.items():
        levels.setdefault(name, levels[beside])
    return levels


LEVELS = _levels()


def _module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {_module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(module: str) -> tuple[set[str], set[str]]:
    """Modules of the package, and top-level names from outside, that `module` imports anywhere but for types."""
    path = MODULES[module]
    package = [] if module == "__init__" else module.split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    inside, outside = set(), set()

    def resolve(base: list[str], names: list[str]) -> None:
        for name in names:
            dotted = ".".join([*base, name])
            known = dotted if dotted in MODULES else ".".join(base) or name
            inside.add(known if known in MODULES or known in LEVELS else known.split(".")[0])

    def walk(node: ast.AST) -> None:
        if _is_type_checking(node):
            node = ast.Module(node.orelse, [])
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fastbatch":
                    resolve([], [alias.name.partition(".")[2] or "__init__"])
                else:
                    outside.add(alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                resolve([*package[: len(package) - node.level + 1], *base], names)
            elif base[0] == "fastbatch":
                resolve(base[1:], names)
            else:
                outside.add(base[0])
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return inside - {module}, outside


IMPORTS = {module: _imports(module) for module in MODULES}


def _level(module: str) -> int:
    return LEVELS[module.split(".")[0]]


def test_every_module_has_a_level():
    unknown = {module.split(".")[0] for module in MODULES} - set(LEVELS) - DOORS
    assert not unknown, f"{sorted(unknown)}: name them in DESIGN.md's import direction"
    stale = set(LEVELS) - {module.split(".")[0] for module in MODULES} - set(UNLISTED)
    assert not stale, f"{sorted(stale)}: named in DESIGN.md, not in fastbatch/"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    if module in DOORS:
        return
    for other in IMPORTS[module][0]:
        assert other not in DOORS, f"{module} imports the package itself"
        assert _level(other) <= _level(module), f"{module} imports {other}, which stands above it (DESIGN.md)"


def test_no_circles():
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"a circle of imports: {' -> '.join((*trail, module))}"
        if module in state or module not in MODULES:
            return
        state[module] = 1
        for other in IMPORTS[module][0]:
            visit(other, (*trail, module))
        state[module] = 2

    for module in MODULES:
        if module not in DOORS:
            visit(module, ())


def test_backends_do_not_know_each_other():
    files = [module for module in MODULES if module.startswith("backends.")]
    assert files
    for module in files:
        own = ".".join(module.split(".")[:2])
        others = {other for other in IMPORTS[module][0] if other.startswith("backends")}
        others = {other for other in others if not other.startswith((own, "backends.scalars"))}
        assert not others, f"{module} imports {sorted(others)}"


def test_the_reference_is_plain_numpy():
    """What the specification rests on, transitively: NumPy and the standard library, no compiled code of ours."""
    seen, todo = set(), ["backends.reference"]
    while todo:
        module = todo.pop()
        seen.add(module)
        inside, outside = IMPORTS[module]
        assert "_native" not in inside, f"{module} imports compiled code, and the reference imports {module}"
        foreign = outside - set(sys.stdlib_module_names) - {"numpy", "__future__", "safetensors"}
        assert not foreign, f"{module} imports {sorted(foreign)}"
        todo += [other for other in inside if other in MODULES and other not in seen]


def test_few_modules_touch_the_extension():
    touching = {module for module in MODULES if "_native" in IMPORTS[module][0]}
    assert touching == {"backends.native", "backends.native_bf16", "bench.machine", "info", "torch.fused"}


def test_the_package_does_not_know_its_surroundings():
    for module in MODULES:
        assert not IMPORTS[module][1] & {"tests", "benchmarks", "examples", "pytest", "hypothesis"}, module


def test_importing_is_light():
    """Optional libraries are imported inside functions only, but for those that a door is named after."""
    optional = {"torch", "jax", "threadpoolctl", "sklearn", "scipy", "matplotlib", "tqdm", "pandas", "safetensors"}
    compiler = {"numba", "llvmlite", "numba_cuda", "cuda"}  # of modules that are loaded when their backend is
    optional |= {"onnx", "polars", "pyarrow"}
    for module, path in MODULES.items():
        tops = ast.parse(path.read_text()).body
        for node in tops:
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
                lazy = module.startswith(("backends.cuda", "backends.numba_cpu", "backends.scalars"))
                refused = optional - OWN_LIBRARIES.get(module.split(".")[0], set()) | (set() if lazy else compiler)
                assert not {name.split(".")[0] for name in names} & refused, f"{module}: {ast.unparse(node)}"


# -- C -----------------------------------------------------------------------------------------------------------------


def code(path: Path) -> str:
    """Source without comments and string literals."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"(?!\s*$)', " ", text)


def sources(*patterns: str) -> list[Path]:
    found = sorted(path for pattern in patterns for path in CSRC.glob(pattern))
    assert found, patterns
    return found


EVERY = sources("*.[ch]", "*/*.[ch]", "*/*.inc", "*/*.def")
NAMED = [path.relative_to(CSRC).as_posix() for path in EVERY]
ISA = re.compile(r"_mm\d*_|__m\d+|__AVX|__SSE|__ARM|__x86_64__|__aarch64__|\b(avx\d*\w*|sse\d?|neon|sve)\b", re.I)
LIBC = re.compile(
    r"\b(malloc|calloc|realloc|free|memalign|alloca|printf|abort|exit|"
    r"(?:exp|exp2|expm1|log|log1p|log2|tanh|erf|erfc|pow|sqrt|sin|cos|fma|fmax|fmin|fabs)[fl]?)\s*\("
)


@pytest.mark.parametrize("name", [name for name in NAMED if name.startswith(("kernels/", "ops/"))])
def test_kernels_name_no_instruction_set_and_call_no_library(name):
    text = code(CSRC / name)
    assert not ISA.search(text), f"{name}: {ISA.search(text)[0]}"
    assert not LIBC.search(text), f"{name}: {LIBC.search(text)[0]}"
    assert not re.findall(r"#include\s*<", text)


@pytest.mark.parametrize("name", [name for name in NAMED if re.fullmatch(r"targets/\w+_b?f\d+\.c", name)])
def test_targets_are_data(name):
    for line in filter(None, map(str.strip, code(CSRC / name).splitlines())):
        assert re.match(r"#\s*(define|include|if|ifdef|endif|else)\b", line), f"{name}: {line!r} is not data"
    text = (CSRC / name).read_text()
    for word in ("TARGET", "TABLE", "VEC_BYTES", "TILE_ROWS", "TILE_VECTORS"):
        assert f"#define {word}" in text, f"{name}: no {word}"


KERNELS = (
    "elementwise", "source", "random", "loss", "norm", "update", "dense", "weights", "row", "dense_bf16", "measure",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_borders(name):
    text, bare = (CSRC / name).read_text(), code(CSRC / name)
    threads, asks = r"pthread|sched_yield|stdatomic|_Atomic", r"__builtin_cpu|cpuid|xgetbv|getauxval|sysctlbyname"
    assert name == "pool.c" or not re.search(threads, bare), f"{name}: only pool.c knows threads"
    probes = name in ("dispatch.c", "targets/targets.def")
    assert probes or not re.search(asks, bare), f"{name}: only dispatch.c asks about the CPU"
    assert "math.h>" not in text, f"{name}: no libm, its bits differ between systems"
    assert not re.search(r"\bomp\b|_OPENMP", text), f"{name}: no OpenMP"
    allowed = {
        "kernels/": ("../simd/", "../ops/", *(f"{kernel}.inc" for kernel in KERNELS)),
        "ops/": (),
        "simd/": ("math_f32.h", "math_f64.h"),
        "targets/": ("begin.h", "end.h", "../kernels/table.inc", "../fastbatch.h", "../simd/"),
    }
    for folder, prefixes in allowed.items():
        if name.startswith(folder):
            for included in re.findall(r'#include\s*"([^"]+)"', text):
                assert included.startswith(prefixes), f"{name} includes {included}"


@pytest.mark.parametrize("name", ["run.c", "calls.c", "rows.c", "mix.c", "gradient.c", "frame.h"])
def test_walkers_do_no_arithmetic_on_data(name):
    """They see data as bytes: no element type, and as numbers only the per-row sums, which are double."""
    text = code(CSRC / name)
    assert not re.search(r"\b(float|real|vec)\b", text)
    assert not LIBC.search(text)
    for cast in re.findall(r"\((?:const )?double \*\)\s*\(([^;]*)", text):
        assert re.search(r"row_(loss|weight|share)", cast), cast
    assert not re.search(r"\*\s*\((?:const )?(?:int|double)\w* \*\)", text)


def test_only_symbols_that_cross_files_are_public():
    for path in sources("kernels/*.inc", "simd/*.h", "ops/*.h"):
        for line in code(path).splitlines():
            if re.match(r"[a-z]\w*[\w* ]*\b\w+\([^;]*$", line) and not line.startswith(("static", "typedef", "enum")):
                raise AssertionError(f"{path.name}: {line!r} is not static")


@pytest.mark.parametrize(
    "path",
    sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("_native.p*"), *PACKAGE.glob("*.pxi")]) + EVERY,
    ids=lambda path: path.name,
)
def test_files_stay_readable(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 600, f"{path.name} has {len(lines)} lines: two files (house style: about 400)"
