"""The import rule: what is above imports from what is below, and never back; LAYERS says what is above what.

Reads the imports of every file of jaxlm/, those inside functions included, and names each offence.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxlm"
LAYERS = (
    {"__main__"},
    {"cli"},
    {"playground"},
    {
        "doctor",
        "launch",
        "origin",
        "run",
        "run_bad_steps",
        "run_compile",
        "run_data",
        "run_evaluate",
        "run_hooks",
        "run_interop",
        "run_label_scores",
        "run_lm_eval",
        "run_loading",
        "run_lora",
        "run_replay",
        "run_samples",
        "run_weights",
        "runconfig",
        "workdir",
    },
    {"evaluate"},
    {"infer", "report", "interop", "plan"},
    {"corpus"},
    {"train"},
    {"objectives"},
    {"models", "data", "parallel"},
    {
        "checkpoint",
        "checkpoint_integrity",
        "checkpoint_meta",
        "checkpoint_orbax",
        "collective",
        "compile_cache",
        "config",
        "config_flags",
        "limits",
        "paths",
        "processes",
        "redact",
        "source_hash",
        "step_memory",
        "tiles",
        "types",
        "__init__",
    },
)
"""From the command line down: a module imports from its own part of jaxlm, and from layers below."""
HEAVY = {
    "array_record", "flax", "grain", "jax", "jaxlib", "matplotlib", "numpy", "optax", "orbax", "pyarrow",
    "sentencepiece", "tensorstore",
}  # fmt: skip
"""Packages that take more than a moment to import: help, plans and config errors answer without them."""


def is_light(module: str) -> bool:
    """Whether a module has to be importable at once."""
    light = {
        "jaxlm",
        "jaxlm.config_flags",
        "jaxlm.run",
        "jaxlm.runconfig",
    }
    packages = ("jaxlm.cli.", "jaxlm.launch.", "jaxlm.plan.")
    return module in light or module.startswith(packages) or module.endswith(".config")


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path, modules: frozenset[str], top_level: bool) -> list[tuple[int, str]]:
    """(line, imported module) of a file; `from jaxlm import run` imports jaxlm.run.

    At top level: what importing the file runs, so not what is inside functions or for type checkers.
    """

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in modules else str(node.module)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and top_level:
            return
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and top_level:
            return
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return list(visit(ast.parse(path.read_text(encoding="utf-8"))))


def layer_of(module: str) -> tuple[int, str]:
    """(place in LAYERS, part of jaxlm) of a module."""
    part = (module.split(".") + ["__init__"])[1]
    place = next((place for place, parts in enumerate(LAYERS) if part in parts), None)
    assert place is not None, (
        f"{module}: jaxlm.{part} has no place in LAYERS; decide which layer it belongs to"
    )
    return place, part


def offences(package: Path) -> list[str]:
    """One line for each import that breaks a rule."""
    files = {
        name_of(path, package): path for path in sorted(package.rglob("*.py")) if "configs" not in path.parts
    }
    modules, found = set(files), []
    for module, path in files.items():
        place, part = layer_of(module)
        for line, target in imports(path, frozenset(modules), top_level=False):
            where = f"{path.relative_to(package.parent)}:{line}"
            if target.partition(".")[0] == "flax" and part != "models":
                found.append(f"{where} imports {target}: only jaxlm/models may know Flax")
            if target.partition(".")[0] != package.name:
                continue
            target_place, target_part = layer_of(target)
            shared = (
                target_part == part
                or place == target_place == len(LAYERS) - 1
                or {part, target_part} <= LAYERS[3]
            )
            if not shared and target_place <= place:
                found.append(f"{where} imports {target}: {part} is not above {target_part}")
    for module in filter(is_light, files):
        chain = heavy_chain(module, files)
        if chain:
            found.append(f"{module} must import at once, but needs {chain}")
    return found


def heavy_chain(module: str, files: dict[str, Path]) -> str | None:
    """The shortest chain of module-level imports from a module to a heavy package, or None."""
    chains, modules = {module: ""}, set(files)
    for step in chains_in_order(chains):
        for _, target in imports(files[step], frozenset(modules), top_level=True):
            if target.partition(".")[0] in HEAVY:
                return chains[step] + target
            # Importing a.b.c runs a/__init__.py and a/b/__init__.py first.
            for parent in (target.rsplit(".", up)[0] for up in range(target.count(".") + 1)):
                if parent in modules and parent not in chains:
                    chains[parent] = f"{chains[step]}{parent} -> "
    return None


def chains_in_order(chains: dict[str, str]) -> Iterator[str]:
    """The keys, those included that are added while the caller iterates."""
    done = 0
    while done < len(chains):
        yield list(chains)[done]
        done += 1


def test_imports_point_down_and_light_modules_stay_light():
    found = offences(PACKAGE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "text", "offence"),
    [
        ("models/build.py", "from jaxlm.train import step", "models is not above train"),
        ("models/build.py", "def f():\n    import jaxlm.train.step", "models is not above train"),
        ("train/step.py", "if TYPE_CHECKING:\n    from jaxlm import run", "train is not above run"),
        ("data/pipeline.py", "from jaxlm.models.build import LM", "data is not above models"),
        ("config.py", "from jaxlm.data.files import f", "config is not above data"),
        ("run.py", "from jaxlm.cli import main", "run is not above cli"),
        ("train/step.py", "import flax.linen as nn", "only jaxlm/models may know Flax"),
        ("data/config.py", "import numpy as np", "jaxlm.data.config must import at once, but needs numpy"),
        (
            "cli/train.py",
            "from jaxlm.train import step\nclass A:\n    import os",
            "needs jaxlm.train.step -> jax",
        ),
        (
            "plan/memory.py",
            "try:\n    from jaxlm.data.config import C\nexcept ImportError:\n    import jax",
            "jaxlm.plan.memory must import at once, but needs jax",
        ),
    ],
)
def test_each_rule_is_enforced(tmp_path, path, text, offence):
    package = tmp_path / "jaxlm"
    files = {
        "__init__.py": "", "config.py": "", "run.py": "", "cli/main.py": "import jaxlm.config",
        "train/__init__.py": "", "train/step.py": "import jax", "models/build.py": "import flax.linen, jax",
        "data/__init__.py": "", "data/files.py": "", "data/config.py": "import jaxlm.config",
    }  # fmt: skip
    for name, content in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    assert offences(package) == []
    imports.cache_clear()
    (package / path).parent.mkdir(exist_ok=True)
    (package / path).write_text(text)
    found = offences(package)
    assert any(offence in line for line in found), found


def test_a_new_folder_must_find_its_layer(tmp_path):
    (tmp_path / "jaxlm" / "helpers").mkdir(parents=True)
    (tmp_path / "jaxlm" / "helpers" / "misc.py").write_text("")
    with pytest.raises(AssertionError, match=r"jaxlm\.helpers has no place in LAYERS"):
        offences(tmp_path / "jaxlm")
