"""English prose that every Python has: `embedded:topics`, `docstrings`, `comments` and `licences`.

Nothing is downloaded, imported or run. The text is that of this machine's Python: it differs a little between
versions, not between machines with the same one.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import sysconfig
import tokenize
import warnings
import zipfile
from collections.abc import Iterator

from jaxlm.config import check_choice
from jaxlm.types import UserError

PREFIX = "embedded:"
_ABOUT_BYTES = {"topics": 500_000, "docstrings": 1_800_000, "comments": 700_000, "licences": 16_000}
NAMES = tuple(_ABOUT_BYTES)
_VERSION = 2  # raise it when the same Python would give other texts
_SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "encodings",
            "site-packages", "dist-packages", "_bundled", "__pycache__"}  # fmt: skip
_LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)[^/]*", re.IGNORECASE)
_SECTION = re.compile(r"^(?=[A-Z][^\n]*\n(?:-{5,}|={5,})\n)", re.MULTILINE)
_LICENCE_FOLDERS = ("/usr/share/licenses/python3-libs", "/usr/share/licenses/python")  # Fedora's, Arch's
_COMMENT_OR_STRING = re.compile(
    r"""
    (?P<comment> \# [^\r\n]* )
    | \"{3} (?: [^\\"]++ | \\. | "(?!"") )*+ \"{3}
    | '{3} (?: [^\\']++ | \\. | '(?!'') )*+ '{3}
    | " (?: [^\\"\n]++ | \\. )*+ "
    | ' (?: [^\\'\n]++ | \\. )*+ '
    """,
    re.DOTALL | re.VERBOSE,
)
"""What may hold a "#", found from left to right: a sixth of the time that `tokenize` takes, and the same comments."""
_COMMENT_WORDS = 8
_COMMENT_LETTERS = 0.8
"""A comment of fewer words, or with fewer letters and spaces among its characters, is rarely a sentence."""
_COMMON_LICENCES = "/usr/share/common-licenses"
_OFTEN_INSTALLED = ("numpy", "jax", "pyarrow")


def is_embedded(path: str) -> bool:
    """Whether the path names an embedded source (or tries to)."""
    return path.startswith(PREFIX)


@functools.cache
def texts(path: str) -> tuple[str, ...]:
    """The documents of `embedded:<name>`, in a fixed order."""
    name = _name(path)
    found = {"topics": _topics, "docstrings": _docstrings, "comments": _comments, "licences": _licences}
    documents = tuple(found[name]())
    if not documents:
        raise UserError(
            f"{path}: this Python ({sys.executable}) was packaged without these texts; use a folder of .txt "
            "files instead, or a Python from python.org, pyenv, conda or uv."
        )
    return documents


def num_bytes(path: str) -> int:
    """Size of the texts in UTF-8."""
    return sum(len(text.encode()) for text in texts(path))


def about_bytes(path: str) -> int:
    """A rough size, known without the second or two that reading the docstrings takes."""
    return _ABOUT_BYTES[_name(path)]


def _name(path: str) -> str:
    name = path.removeprefix(PREFIX)
    check_choice(f"the source {path}", name, NAMES)
    return name


def fingerprint(path: str) -> str:
    """Changes whenever the texts may have changed; far quicker than reading them."""
    if _name(path) == "licences":  # few, and not all of them lie in the standard library
        return hashlib.sha256(repr(texts(path)).encode()).hexdigest()
    digest = hashlib.sha256(f"{path} {_VERSION} {sys.version}".encode())
    for file in _standard_library():
        digest.update(f"{os.path.relpath(file, _stdlib())} {os.path.getsize(file)}\n".encode())
    return digest.hexdigest()


def _stdlib() -> str:
    return sysconfig.get_path("stdlib")


def _topics() -> Iterator[str]:
    """What `help("...")` says on the language: pydoc_data.topics, read as data."""
    spec = importlib.util.find_spec("pydoc_data")
    if spec is None or not spec.submodule_search_locations:
        return
    path = os.path.join(spec.submodule_search_locations[0], "topics.py")
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        tree = ast.parse(file.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            # A few names share a text.
            yield from dict.fromkeys(topics[key].strip() + "\n" for key in sorted(topics))


def _standard_library() -> list[str]:
    """Its Python files, sorted, without tests and what is installed beside it."""
    files = []
    for folder, folders, names in os.walk(_stdlib()):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and not f.startswith("config-"))
        # _sysconfigdata_* records how this Python was compiled: no prose, and machines differ.
        files += [
            os.path.join(folder, name)
            for name in sorted(names)
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return files


def _docstrings() -> Iterator[str]:
    """One document per module of the standard library: its docstring, those of its classes and functions."""
    for path in _standard_library():
        module = _module(path)
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes such as "\d" in strings
            try:
                tree = ast.parse(file.read())
            except (SyntaxError, ValueError):
                continue  # a file kept as an example of what does not parse
        parts = list(_docstrings_of(tree, module))
        if parts:
            yield "\n\n".join(parts) + "\n"


def _module(path: str) -> str:
    relative = os.path.relpath(path, _stdlib()).removesuffix(".py")
    return relative.replace(os.sep, ".").removesuffix(".__init__")


def _docstrings_of(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and text.strip():
            yield f"{name}\n\n{text.strip()}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_of(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):  # such as `try:` and `if sys.platform == ...:`
            yield from _docstrings_of(child, name)


def _comments() -> Iterator[str]:
    """One document per module of the standard library: its comments of whole lines that read like prose."""
    seen = set()  # the same notice stands at the top of many files
    for path in _standard_library():
        with open(path, "rb") as file:
            found = [text for text in _comment_blocks(file.read()) if _is_prose(text) and text not in seen]
        seen.update(found)
        if found:
            yield "\n\n".join([_module(path), *found]) + "\n"


def _comment_blocks(source: bytes) -> Iterator[str]:
    """The text of comments on lines of their own; neighbours of one indentation are one block."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return  # a file kept as an example of what does not parse
    lines: list[str] = []
    next_line, last_column = -1, 0
    for found in _COMMENT_OR_STRING.finditer(text):
        if found["comment"] is None:
            continue
        start_of_line = text.rfind("\n", 0, found.start()) + 1
        column = found.start() - start_of_line
        if text[start_of_line : found.start()].strip():
            continue
        if (start_of_line, column) != (next_line, last_column):
            yield "\n".join(lines).strip()
            lines = []
        lines.append(re.sub(r"^#+:? ?", "", found["comment"]).rstrip())
        next_line, last_column = text.find("\n", found.end()) + 1, column
    yield "\n".join(lines).strip()


def _is_prose(text: str) -> bool:
    letters = sum(char.isalpha() or char.isspace() for char in text)
    return len(text.split()) >= _COMMENT_WORDS and letters > _COMMENT_LETTERS * len(text)


def _licences() -> Iterator[str]:
    """Python's own licence, section by section, and those of the wheels it bundles; each text once."""
    found = list(_python_licences())
    if not found:  # distributions move them: Debian's are in one folder, and packages bring theirs
        found = list(_common_licences()) or list(_package_licences())
    seen = set()
    for text in found:
        text = text.replace("\r\n", "\n").strip() + "\n"
        if len(text) > 1 and text not in seen:
            seen.add(text)
            yield text


def _python_licences() -> Iterator[str]:
    bases = [_stdlib(), sys.base_prefix, *_LICENCE_FOLDERS]
    for path in [os.path.join(base, name) for base in bases for name in ("LICENSE.txt", "LICENSE")]:
        if os.path.isfile(path):
            yield from _SECTION.split(_read(path))
            break
    wheels = sysconfig.get_config_var("WHEEL_PKG_DIR") or os.path.join(_stdlib(), "ensurepip", "_bundled")
    if not os.path.isdir(wheels):
        return
    for wheel in sorted(name for name in os.listdir(wheels) if name.endswith(".whl")):
        with zipfile.ZipFile(os.path.join(wheels, wheel)) as archive:
            for entry in sorted(archive.namelist()):
                if _LICENCE_FILE.fullmatch(entry.rsplit("/", 1)[-1]):
                    yield archive.read(entry).decode("utf-8", "replace")


def _common_licences() -> Iterator[str]:
    if os.path.isdir(_COMMON_LICENCES):
        for name in sorted(os.listdir(_COMMON_LICENCES)):
            path = os.path.join(_COMMON_LICENCES, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield _read(path)


def _package_licences() -> Iterator[str]:
    for package in _OFTEN_INSTALLED:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in sorted(files, key=str):
            if _LICENCE_FILE.fullmatch(file.name) and os.path.isfile(str(file.locate())):
                yield _read(str(file.locate()))


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
