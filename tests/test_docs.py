"""docs/ and README.md: examples print what they show, tables agree with the registries, nothing public is missing."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import inspect
import io
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import fastbatch as fb
from fastbatch import ops
from fastbatch.ops.initializers import AUTO
from fastbatch.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
NEEDS = {
    "docs/training.md": ("matplotlib", "pandas"),
    "docs/custom.md": ("numba",),
    "docs/machine.md": ("numba",),
    "docs/migrating.md": ("sklearn",),
    "docs/migrating_torch.md": ("torch",),
    "docs/migrating_keras.md": ("keras",),
    "docs/exporting.md": ("onnx", "onnxruntime"),
    "docs/tables.md": ("pyarrow",),
}
WITHOUT_EXAMPLE = {
    "docs/README.md": "a list of the others",
    "docs/accuracy.md": "generated",
    "docs/speed.md": "measured",
}
LINKED = [*PAGES, *map(ROOT.joinpath, ("CONTRIBUTING.md", "DESIGN.md", "tests/README.md", "examples/README.md"))]

# Functions that the library's own modules share through `__all__`
INTERNAL = {"AUGMENTATIONS", "parts_of"}
MODULES = ("augment", "batching", "kernels", "losses", "schedules")


# As imported: tests may register more
REGISTRIES = {
    "activations": list(ops.ACTIVATIONS),
    "initializers": list(ops.INITIALIZERS),
    "losses": list(ops.LOSSES),
    "metrics": list(ops.METRICS),
    "optimizers": [cls.__name__ for cls in ops.OPTIMIZERS.values()],
    "schedules": list(SCHEDULES),
}


class Block(NamedTuple):
    """A fenced block: what is behind the fence, its text, the line it begins in."""

    kind: str
    text: str
    line: int


def blocks_of(text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2))) for m in found]


def run(text: str, name: str) -> list[str]:
    """Run the ```python blocks of a page one after another; what differs from the ```text behind each."""
    blocks, namespace, wrong = blocks_of(text), {"__name__": "__main__"}, []
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block, behind in zip(blocks, [*blocks[1:], Block("", "", 0)]):
        if block.kind != "python":
            continue
        shown = behind.text if behind.kind == "text" else ""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # the page's own lines in a traceback
            exec(compile("\n" * block.line + block.text, name, "exec"), namespace)
        if not checker.check_output(shown, printed.getvalue(), flags):
            wrong.append(f"{name}:{block.line}: the page shows\n{shown}but it prints\n{printed.getvalue()}")
    return wrong


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, on torch
@pytest.mark.parametrize("name", [name for name in TEXTS if name not in WITHOUT_EXAMPLE])
def test_examples_print_what_the_page_shows(name, tmp_path, monkeypatch):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module, reason=f"an example needs {module}")
    monkeypatch.chdir(tmp_path)
    assert any(block.kind == "python" for block in blocks_of(TEXTS[name])), f"{name}: expected an example"
    registries = [(registry, dict(registry)) for registry in (ops.ACTIVATIONS, ops.LOSSES, ops.OPTIMIZERS)]
    wrong = run(TEXTS[name], name)
    for registry, before in registries:  # examples may register operations of their own
        registry.clear()
        registry.update(before)
    assert not wrong, "\n".join(wrong)


def test_examples_that_print_something_else_are_found():
    assert not run("```python\nx = 3\nprint(x)\n```\n\n```text\n3\n```\n", "page")
    assert run("```python\nprint(4)\n```\n\n```text\n3\n```\n", "page")
    assert run("```python\nprint(4)\n```\n", "page"), "what is printed has to be shown"


@pytest.mark.parametrize("name", TEXTS)
def test_code_is_where_it_is_run(name):
    text = TEXTS[name]
    kinds = {block.kind for block in blocks_of(text)}
    assert kinds <= {"python", "text", "sh"}, f"{name}: expected ```python, ```text or ```sh, got {kinds}"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "```" not in prose, f"{name}: a fence that is not closed"
    loose = re.findall(r"^    .*(?:fb\.|trainer\.|model\.|import ).*", prose, re.MULTILINE)
    assert not loose, f"{name}: code that nothing runs: {loose}"


# -- links -------------------------------------------------------------------------------------------------------------


def anchors_of(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)", TEXTS["docs/README.md"]))
    assert linked == {Path(name).name for name in TEXTS if name.startswith("docs/")} - {"README.md"}
    assert "](docs/README.md)" in TEXTS["README.md"]


# -- nothing is missing ------------------------------------------------------------------------------------------------


def words_in_code() -> set[str]:
    """Identifiers in fenced blocks and between backticks."""
    code: list[str] = []
    for text in TEXTS.values():
        code += [block.text for block in blocks_of(text)]
        code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return set(re.findall(r"\w+", "\n".join(code)))


def test_every_public_name_is_in_the_docs():
    names = {name for module in (fb, *(getattr(fb, name) for name in MODULES)) for name in module.__all__}
    assert not sorted(names - INTERNAL - words_in_code())


def members_of(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_methods_and_parameters_are_in_the_docs():
    """Of the trainer, the model and what the fit returns: each method, property and parameter."""
    names = (
        members_of(fb.Trainer) | members_of(fb.Sequential) | (members_of(fb.History) - members_of(dict) - {"append"})
    )
    for function in (fb.Trainer, fb.Trainer.fit, fb.Trainer.resume, fb.Sequential.predict, fb.MLP, fb.Sequential):
        names |= set(inspect.signature(function).parameters)
    assert not sorted(names - {"self"} - words_in_code())


def test_every_row_of_the_registries_is_in_the_docs():
    assert not sorted(set().union(*REGISTRIES.values()) - words_in_code())


# -- tables ------------------------------------------------------------------------------------------------------------

NUMPY = {name: getattr(np, name) for name in ("abs", "cos", "exp", "log", "log1p", "maximum", "sign", "tanh", "where")}
NUMPY |= {"pi": math.pi, "sqrt": np.sqrt, "erf": np.vectorize(math.erf), "sum": lambda a: a.sum(axis=1, keepdims=True)}


def table(page: str, heading: str) -> list[list[str]]:
    """Rows of the table whose first column has this heading, without backticks."""
    lines = TEXTS[page].splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`").replace("\\|", "|") for cell in line.strip("|").split(" | ")])
    return rows


def signature(text: str) -> tuple[str, dict[str, object]]:
    """Name and arguments of a call as a table shows it; what has no default is `inspect.Parameter.empty`."""
    call = ast.parse(text, mode="eval").body
    arguments: dict[str, object] = {ast.unparse(argument): inspect.Parameter.empty for argument in call.args}
    arguments.update({keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})
    return ast.unparse(call.func), arguments


def real_signature(function) -> dict[str, object]:
    found = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    fields = dataclasses.fields(function) if dataclasses.is_dataclass(function) else ()
    made = {each.name: each.default_factory() for each in fields if each.default_factory is not dataclasses.MISSING}
    return {**found, **made}


@pytest.mark.parametrize(("page", "heading"), [("models", "layer"), ("callbacks", "callback")])
def test_signatures_of_layers_and_callbacks(page, heading):
    for row in table(f"docs/{page}.md", heading):
        if "=..." in row[0] or "(" not in row[0]:
            continue
        name, arguments = signature(row[0])
        assert arguments.items() <= real_signature(getattr(fb, name)).items(), row[0]


def test_formulas_of_the_activations():
    rows = table("docs/models.md", "activation")
    assert [row[0] for row in rows] == REGISTRIES["activations"]
    z = np.linspace(-4, 4, 41)
    for name, formula in (row[:2] for row in rows):
        got = eval(formula, NUMPY, {"z": z, "sigmoid": ops.ACTIVATIONS["sigmoid"].value})
        assert np.allclose(got, ops.ACTIVATIONS[name].value(z), rtol=1e-12, atol=1e-15), name
    assert [row[2] for row in rows] == [AUTO[ops.ACTIVATIONS[row[0]].gain] for row in rows]


def test_formulas_of_the_losses(rng):
    rows = table("docs/losses.md", "loss")
    assert [row[0] for row in rows] == REGISTRIES["losses"]
    a = rng.normal(size=(9, 3))
    for name, written, formula in (row[:3] for row in rows):
        cls = ops.LOSSES[name]
        own = {key: value for key, value in real_signature(cls).items() if key != "semantics"}  # of every loss
        assert signature(written) == (cls.__name__, own)
        for loss in (cls(), *others(cls)):
            y = rng.uniform(0.1, 0.9, size=a.shape)
            y = y / y.sum(axis=1, keepdims=True) if loss.targets == "classes" else y
            given = {"a": a, "y": y, "K": 3, "sigmoid": ops.ACTIVATIONS["sigmoid"].value}
            values = {each.name: getattr(loss, each.name) for each in dataclasses.fields(loss)}
            got = eval(formula, {**NUMPY, **given, **values})
            expected = loss.rows(a, y)[0][:, None] if loss.targets == "classes" else loss.elements(a, y)[0]
            assert np.allclose(got, expected, rtol=1e-12, atol=1e-15), loss


def others(cls: type) -> list[ops.Loss]:
    """The loss with another parameter than the default, where it has one."""
    values = {"huber": {"delta": 0.3}, "quantile": {"q": 0.9}, "tweedie": {"power": 1.2}, "focal": {"gamma": 0.7}}
    values["cross_entropy"] = {"label_smoothing": 0.1}
    return [cls(**values[cls.name])] if cls.name in values else []


def test_losses_of_the_metrics():
    kinds = {"cross_entropy": {"classes"}, "classification": {"classes", "binary"}}
    kinds["regression"] = {"values", "counts", "positive"}
    found = {name: kinds[row[1]] for row in table("docs/losses.md", "metric") for name in re.findall(r"\w+", row[0])}
    assert found == {name: set(ops.METRICS[name][1]) for name in REGISTRIES["metrics"]}


def test_formulas_of_the_schedules():
    rows = table("docs/training.md", "schedule")
    assert [row[0].partition("(")[0] for row in rows] == REGISTRIES["schedules"]
    then = fb.schedules.Step(0.3, 4)
    values = {"lr": 0.2, "every": 3, "gamma": 0.7, "total_steps": 12, "min_lr": 0.01, "steps": 5, "then": then}
    for written, formula in (row[:2] for row in rows):
        cls = SCHEDULES[written.partition("(")[0]]
        assert signature(written) == (cls.__name__, real_signature(cls))
        if cls is fb.schedules.OneCycle:
            continue  # in words
        own = {each.name: values[each.name] for each in dataclasses.fields(cls)}
        got = [eval(formula, NUMPY, {**own, "t": t}) for t in range(12)]
        assert np.allclose(got, cls(**own).values(0, 12), rtol=1e-12), cls


def test_keywords_of_the_optimizers():
    rows = table("docs/optimizers.md", "optimizer")
    assert [row[0].partition("(")[0] for row in rows] == REGISTRIES["optimizers"]
    shared = {each.name for each in dataclasses.fields(ops.Optimizer)} - {"lr"}
    for row in rows:
        cls = getattr(fb, row[0].partition("(")[0])
        real = {name: default for name, default in real_signature(cls).items() if name not in shared}
        assert signature(f"{row[0][:-1]}, {row[1]})") == (cls.__name__, real)


# -- docstrings --------------------------------------------------------------------------------------------------------


def public_callables() -> dict[str, object]:
    """What users call, by name: public classes and functions, and the methods of those that have some."""
    found = {name: getattr(fb, name) for name in fb.__all__}
    for name in MODULES:
        module = found.pop(name)
        found |= {f"{name}.{member}": getattr(module, member) for member in module.__all__}
    found = {name: value for name, value in found.items() if callable(value) and not name.endswith("Error")}
    for cls in (fb.Trainer, fb.Sequential, fb.History, fb.Callback, fb.EMA):
        own = members_of(cls) - (members_of(dict) if cls is fb.History else set())
        own = {name for name in own if callable(getattr(cls, name)) and name not in {"get_state", "set_state"}}
        hooks = set() if cls is fb.Callback else {name for name in own if name.startswith("on_")}
        found |= {f"{cls.__name__}.{name}": getattr(cls, name) for name in own - hooks}
    return {name: value for name, value in found.items() if name.rpartition(".")[2] not in INTERNAL}


def parameters_of(doc: str) -> dict[str, str]:
    """Names in the section Parameters, and what is behind the colon."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}|\Z)", doc, re.MULTILINE | re.DOTALL)
    lines = [line for line in (section[1] if section else "").splitlines() if line and line[0] != " "]
    pairs = [line.partition(" : ") for line in lines]
    return {name: described for names, _, described in pairs for name in names.replace("*", "").split(", ")}


@pytest.mark.parametrize("name", public_callables())
def test_docstrings_name_every_parameter_and_its_default(name):
    function = public_callables()[name]
    doc = inspect.cleandoc(vars(function).get("__doc__") or "" if inspect.isclass(function) else function.__doc__ or "")
    assert doc, f"{name}: expected a docstring"
    described = parameters_of(doc)
    if "settings" in described:  # the keywords that all optimizers share, which their base describes
        described |= parameters_of(inspect.cleandoc(ops.Optimizer.__doc__))
    if inspect.isclass(function) and issubclass(function, ops.Loss):
        described |= parameters_of(inspect.cleandoc(ops.Loss.__doc__))
    if function in (fb.losses.Loss, fb.schedules.Schedule, fb.augment.Augmentation, fb.Callback, fb.History):
        return  # made by subclasses or by fit
    for parameter, default in real_signature(function).items():
        if parameter == "self":
            continue
        assert parameter in described, f"{name}: {parameter} is not in its section Parameters"
        written = re.search(r"default (.*)$", described[parameter])
        with contextlib.suppress(ValueError, SyntaxError):  # "auto" and the like are as they are
            if written:
                assert ast.literal_eval(written[1]) == default, f"{name}: {parameter}"
    if inspect.isfunction(function) and inspect.signature(function).return_annotation not in ("None", "Iterator[None]"):
        assert re.search(r"^Returns\n-+", doc, re.MULTILINE), f"{name}: expected a section Returns"
