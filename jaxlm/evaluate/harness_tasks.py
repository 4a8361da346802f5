"""Finds tasks of lm-evaluation-harness in a folder of YAML, and in the installed package; runs nothing they name.

To lm-eval a task file is a program: `!function` imports Python, a metric may be a script, `include` reads any file.
Here a folder's files are read as plain data. What would run code is refused, and what is left is written out anew for
lm-eval to read: it never sees the files themselves. Tasks that come with lm-eval are code of an installed package.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import nearest
from jaxlm.data.yaml_files import read_yaml
from jaxlm.types import UserError

MAX_FILES = 20_000
"""YAML files of one folder of tasks; lm-eval itself brings 14,000."""
MAX_INCLUDES = 16
TRUST = "--trust-task-code"
_NAMES = re.compile(
    r"^(task|group|tag)\s*:[ \t]*([^\s#\[{&*!|>'\"][^\n#]*?|'[^'\n]*'|\"[^\"\n]*\")[ \t]*(?:#.*)?$", re.M
)
_TAG_LIST = re.compile(r"^tag\s*:[ \t]*\n((?:[ \t]*-[^\n]*\n?)+)", re.M)
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}
_CORE = "tag:yaml.org,2002:"


class TaskFile(NamedTuple):
    """A file that defines a task or a group."""

    name: str
    path: Path
    config: dict[str, Any]
    """With what it includes; `Code` stands for what would run."""


class Code(NamedTuple):
    """What a file wants to run."""

    what: str


def package_folder() -> Path:
    """The tasks of the installed lm-eval. Imports nothing of it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Tasks of lm-evaluation-harness need lm-eval: pip install 'jaxlm[eval]'.")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def yaml_files(root: Path) -> Iterator[Path]:
    """All below a folder, in a fixed order."""
    count = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".yaml"):
                count += 1
                if count > MAX_FILES:
                    raise UserError(
                        f"{root} holds more than {MAX_FILES:,} YAML files: give a folder of tasks."
                    )
                yield Path(folder, name)


@functools.lru_cache(maxsize=2)
def package_index(root: Path) -> dict[str, tuple[Path, ...]]:
    """Name of a task, group or tag that comes with lm-eval -> the files that say it.

    A pattern instead of YAML: parsing all 14,000 files takes half a minute.
    """
    found: dict[str, list[Path]] = {}
    for path in yaml_files(root):
        text = path.read_text(encoding="utf-8", errors="replace")
        names = [match[2].strip("'\" ") for match in _NAMES.finditer(text)]
        for block in _TAG_LIST.finditer(text):
            names += [line.strip(" \t-'\"") for line in block[1].splitlines()]
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}


def read_folder(folder: str, *, trusted: bool = False) -> dict[str, TaskFile]:
    """Name -> task or group of a folder of the user's.

    Args:
      trusted: read it only to know the names; lm-eval then reads the files itself.

    Errors: UserError for a folder that is none, a file that is no YAML, an include that leaves the folder, and two
      tasks of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"--task-path={folder} is not a folder. Give the one that holds the YAML files of tasks."
        )
    real = root.resolve()
    found: dict[str, TaskFile] = {}
    for path in yaml_files(root):
        config = _read(path, real, trusted=trusted)
        name = config.get("group") if "group" in config else config.get("task")
        if not isinstance(name, str):
            continue  # something that tasks include
        if name in found:
            raise UserError(
                f"{path}: a task {name!r} is defined in {found[name].path}, too. Rename one of them."
            )
        found[name] = TaskFile(name, path, config)
    return found


def _read(path: Path, root: Path, *, trusted: bool, depth: int = 0) -> dict[str, Any]:
    """The config of a file, with what it includes below it."""
    if depth > MAX_INCLUDES:
        raise UserError(f"{path}: files include each other more than {MAX_INCLUDES} deep. Is it a circle?")
    if not path.resolve().is_relative_to(root):
        raise UserError(f"{path} is a link that leads out of {root}: copy the file there.")
    config = _plain(path)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        other = path.parent / str(name)
        inside = other.resolve().is_relative_to(root)
        if not inside and not trusted:
            raise UserError(
                f"{path}: `include: {name}` leads out of the folder of tasks {root}. Copy what it includes there."
            )
        if inside:
            if not other.is_file():
                raise UserError(f"{path}: `include: {name}` names no file in {path.parent}.")
            merged |= _read(other, root, trusted=trusted, depth=depth + 1)
    for key, value in config.items():
        # The paths of data are those of the file that names them.
        merged[key] = _from_here(value, path.parent) if key == "dataset_kwargs" else value
    return merged


def _plain(path: Path) -> dict[str, Any]:
    """A YAML file as plain data; other tags than YAML's own become Code."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def unknown(loader: Any, suffix: str, node: Any) -> Code:
        value = node.value if isinstance(node.value, str) else "..."
        return Code(f"{node.tag} {value} (line {node.start_mark.line + 1})")

    Loader.add_multi_constructor("", unknown)
    value = read_yaml(path, "a YAML file of a task", Loader)  # other tags are inert
    if not isinstance(value, dict):
        raise UserError(f"{path} is no task: its YAML is not a mapping such as `task: my_task`.")
    return value


def _from_here(value: Any, folder: Path) -> Any:
    """dataset_kwargs, whose data_files and data_dir may be relative to the YAML file."""
    if not isinstance(value, dict):
        return value

    def absolute(name: Any) -> Any:
        if isinstance(name, dict):
            return {key: absolute(one) for key, one in name.items()}
        if isinstance(name, list):
            return [absolute(one) for one in name]
        if not isinstance(name, str) or "://" in name or os.path.isabs(name) or os.path.exists(name):
            return name
        return os.path.normpath(folder / name) if (folder / name).exists() else name

    return {key: absolute(one) if key in ("data_files", "data_dir") else one for key, one in value.items()}


def pick(
    names: Sequence[str], own: Mapping[str, TaskFile], known: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """(names of the user's own tasks, of those of lm-eval) for what --tasks lists; * and ? are wild.

    Errors: UserError for a name that nothing has, with the nearest that something has.
    """
    chosen: dict[str, bool] = {}
    for name in names:
        if name in own or name in known:
            chosen[name] = name in own
            continue
        matches = fnmatch.filter([*own, *known], name) if any(c in name for c in "*?[") else []
        if not matches:
            if os.sep in name or name.endswith((".yaml", ".json")):
                raise UserError(
                    f"--tasks={name} is a path: give its folder as --task-path and the name inside the file as --tasks."
                )
            match = nearest(name, [*own, *known])
            hint = f"did you mean {match}?" if match else "`--tasks=list` lists them."
            where = "--task-path, nor lm-eval," if own else "lm-eval"
            raise UserError(
                f"--tasks={name}: {where} has {'no' if not own else 'a'} task of that name; {hint}"
            )
        chosen |= {match: match in own for match in matches}
    return [name for name, is_own in chosen.items() if is_own], [
        n for n, is_own in chosen.items() if not is_own
    ]


def members(config: Mapping[str, Any]) -> Iterator[str]:
    """Names that a group refers to."""
    inner = config.get("task")
    for one in inner if isinstance(inner, list) else []:
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            if "group" in one:
                yield str(one["group"])
            elif isinstance(one.get("task"), str):
                yield one["task"]
            yield from members(one)


def with_members(names: Sequence[str], own: Mapping[str, TaskFile], known: Mapping[str, Any]) -> list[str]:
    """Those of the names, and of all that their groups refer to, which something defines."""
    found: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if name in own or name in known:
            found[name] = None
        if name in own:
            todo += members(own[name].config)
    return list(found)


def code_of(file: TaskFile, metrics: Sequence[str], *, allow_download: bool = False) -> list[str]:
    """What a task would run, or fetch although nobody asked for it.

    Args:
      metrics: names that lm-eval itself computes; another is looked up as a script.
    """
    found = [code.what for code in _codes(file.config)]
    config = file.config
    if config.get("unsafe_code"):
        found.append("`unsafe_code: true`: programs that the model writes")
    for one in _entries(config.get("metric_list")):
        name = one.get("metric")
        if one.get("hf_evaluate") or (isinstance(name, str) and name not in metrics):
            found.append(f"metric {name!r}: a script of the evaluate library")
    prompt = config.get("use_prompt")
    if isinstance(prompt, str) and (".yaml" in prompt or prompt.startswith("promptsource:")):
        found.append(f"`use_prompt: {prompt}`: a file outside of the task")
    if not allow_download:
        kwargs = config.get("dataset_kwargs")
        urls = [text for text in _texts(kwargs) + _texts(config.get("dataset_path")) if "://" in text]
        found += [f"data from {url}: give --allow-download, too" for url in urls]
    return found


def _entries(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _codes(value: Any) -> Iterator[Code]:
    if isinstance(value, Code):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _codes(one)
    elif isinstance(value, list):
        for one in value:
            yield from _codes(one)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in _texts(one)]


def refuse_code(file: TaskFile, found: Sequence[str]) -> None:
    """Errors: UserError that says what the task would run."""
    if found:
        raise UserError(
            f"{file.path}: the task {file.name} would run code that its file names: {'; '.join(found)}. jaxlm runs "
            f"none of it unless you have read it and give {TRUST}."
        )


def write_plain(files: Sequence[TaskFile], folder: Path) -> None:
    """Writes tasks out as lm-eval reads them: one file each, nothing included, no tags."""
    import yaml

    for i, file in enumerate(files):
        path = folder / f"{i:05d}.yaml"
        path.write_text(
            yaml.safe_dump(dict(file.config), allow_unicode=True, sort_keys=False), encoding="utf-8"
        )


def package_folders(names: Sequence[str], known: Mapping[str, Sequence[Path]], root: Path) -> list[Path]:
    """The folders of lm-eval's tasks that define these names: the outermost, since files of one refer to each other."""
    folders = {
        root / path.relative_to(root).parts[0]
        for name in names
        for path in known.get(name, ())
        if len(path.relative_to(root).parts) > 1
    }
    return sorted(folders)
