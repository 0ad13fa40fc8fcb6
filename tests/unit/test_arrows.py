"""The arrows of the design: who may import whom, read from the source, and what `shoal plan` really loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "launcher" / "shoal"

HEAVY = frozenset({"torch", "transformers", "deepspeed", "peft", "bitsandbytes", "accelerate", "safetensors"})
HEAVY_ROOMS = frozenset({"train", "tasks", "infer"})
"""Rooms that may import heavy libraries anywhere."""
HEAVY_INSIDE = frozenset(
    {"models.py", "rows/chat_template.py", "data/prepare.py", "doctor/measure.py", "doctor/group.py"}
)
"""Files that may import them inside functions."""

FOUNDATION = frozenset(
    {"errors", "spec", "storage", "store", "store_server", "plan", "runs", "record", "hub", "models"}
)
"""Used by all, and using none of the rooms above."""
MAY_USE: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "spec": frozenset({"errors"}),
    "hub": frozenset({"errors"}),
    "store_server": frozenset({"errors", "spec"}),
    "store": frozenset({"errors", "spec", "store_server"}),
    "storage": frozenset({"errors", "spec", "store"}),
    "runs": frozenset({"errors", "storage"}),
    "record": frozenset({"errors", "spec", "storage", "runs"}),
    "models": frozenset({"errors", "hub", "plan", "storage"}),
    "plan": frozenset({"errors", "spec", "storage", "facts"}),
    "kube": frozenset({"errors", "spec", "plan"}),
    "kuberay": frozenset({"errors", "spec", "kube", "submit"}),
    "submit": FOUNDATION | {"lease", "train"},
    "rows": frozenset({"errors", "spec", "storage", "plan"}),
    "facts": frozenset({"errors", "spec", "storage", "plan", "runs", "hub", "rows", "data"}),
    "data": FOUNDATION | {"rows"},
    "survey": FOUNDATION | {"rows", "data"},
    "tasks": FOUNDATION | {"rows", "data"},
    "infer": FOUNDATION | {"rows", "data", "tasks"},
    "train": FOUNDATION | {"rows", "data", "tasks", "infer"},
    "doctor": FOUNDATION | {"train", "lease"},
    "backends": FOUNDATION | {"rows", "data", "train"},
}
"""What each room may import of ours; a room that is not here (cli, launch, display) may import all."""
LIGHT = frozenset({"shoal.rows.formats", "shoal.rows.samples", "shoal.rows.sources", "shoal.data.summary"})
"""Of rows/ and data/, what facts may use."""


@dataclass(frozen=True)
class Import:
    path: str
    """Below launcher/shoal."""
    line: int
    module: str
    inside: bool
    """In a function, so that importing the file does not import the module."""

    @property
    def room(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file; those under TYPE_CHECKING are for the type checker alone and do not count."""
    name = path.relative_to(ROOT).as_posix()

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(other, inside)
                continue
            if isinstance(child, ast.Import):
                yield from (Import(name, child.lineno, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}:{child.lineno} is a relative import"
                module = child.module or ""
                if module == "shoal":
                    yield from (Import(name, child.lineno, f"shoal.{alias.name}", inside) for alias in child.names)
                else:
                    yield Import(name, child.lineno, module, inside)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function)

    yield from walk(ast.parse(path.read_text()), False)


ALL = [one for path in sorted(ROOT.rglob("*.py")) for one in imports(path)]


def test_the_source_is_read() -> None:
    assert {"spec", "plan", "facts", "train", "data"} <= {one.room for one in ALL}
    assert any(one.inside and one.module == "torch" for one in ALL if one.path == "models.py")


def test_heavy_libraries_stay_below() -> None:
    wrong = [
        one
        for one in ALL
        if one.module.split(".")[0] in HEAVY
        and one.room not in HEAVY_ROOMS
        and not (one.inside and (one.path in HEAVY_INSIDE or one.room == "backends"))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_ray_stays_in_backends() -> None:
    wrong = [one for one in ALL if one.module.split(".")[0] == "ray" and one.room not in ("backends", "tune")]
    assert not wrong, "\n".join(map(str, wrong))


def test_kubernetes_client_stays_in_one_module() -> None:
    found = {one.path for one in ALL if one.module.split(".")[0] == "kubernetes" and one.inside}
    found |= {f"{one.path}, at the top" for one in ALL if one.module.split(".")[0] == "kubernetes" and not one.inside}
    assert found == {"kuberay/api.py"}


def test_rooms_import_only_what_they_may() -> None:
    wrong = []
    for one in ALL:
        target = one.module.split(".")[1] if one.module.startswith("shoal.") else None
        known = target is not None and ((ROOT / target).is_dir() or (ROOT / f"{target}.py").is_file())
        if known and one.room in MAY_USE and target != one.room and target not in MAY_USE[one.room]:
            wrong.append(one)
    assert not wrong, "\n".join(map(str, wrong))


def test_planning_takes_the_types_of_facts_alone_and_facts_the_light_side_of_data() -> None:
    wrong = [
        one
        for one in ALL
        if one.room == "plan" and one.module.startswith("shoal.facts") and one.module != "shoal.facts.types"
    ]
    wrong += [
        one
        for one in ALL
        if one.room == "facts" and one.module.startswith(("shoal.rows", "shoal.data")) and one.module not in LIGHT
    ]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "modules",
    [
        "shoal.plan.planner, shoal.plan.table, shoal.facts.gather, shoal.spec.load",
        "shoal.models, shoal.hub",
        "shoal.kube.render",
        "shoal.cli.submitting, shoal.submit.place, shoal.submit.package",
        "shoal.cli.kuberay, shoal.kuberay.watch",
        "shoal.cli.sweep, shoal.tune.forecast, shoal.tune.board, shoal.tune.table, shoal.tune.page, shoal.tune.live",
        "shoal.train.world",
    ],
)
def test_planning_loads_nothing_heavy(modules: str) -> None:
    heavy = sorted(HEAVY | {"ray", "pyarrow", "pandas", "datasets", "huggingface_hub"})
    program = f"import sys\nimport {modules}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
