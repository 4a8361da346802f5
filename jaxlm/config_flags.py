"""`--config=NAME_OR_PATH[:arg]` and `--config.key=value` -> ConfigDict, by ml_collections. Imports no JAX."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxlm.config import (
    TYPE_NAMES,
    Spec,
    check_entry_name,
    complete,
    key_names,
    lock,
    nearest,
    nearest_key,
    read_json,
    specs,
    unknown_key,
)
from jaxlm.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG_FILE = "config.json"
"""Name of the resolved config inside a workdir."""

_FLAG = re.compile(r"--?(?P<no>no)?config(?:\.(?P<key>[^=]+))?(?:=(?P<value>.*))?", re.DOTALL)
_MISTYPED = re.compile(
    r"field '(\w+)'.*?\. (.*) is of original type <class '([\w.]+)'> "
    r"and cannot be casted to type <class '([\w.]+)'>"
)
"""What ml_collections says of a value of the wrong type."""
_NEGATIVE = re.compile(r"-[\d.]")
_KINDS = {"model": ("a run", "jaxlm train --config"), "sources": ("a corpus", "jaxlm corpus build --config")}
"""A key that only one kind of config has -> what that is, and the command that takes it."""


def split_config_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the `--config...` flags with their values, everything else), each in its order.

    `--config.key value` is joined to `--config.key=value`. What follows `--` is never a config flag.
    """
    config_argv, rest, position = [], [], 0
    while position < len(argv):
        arg = argv[position]
        position += 1
        match = _FLAG.fullmatch(arg)
        if arg == "--":
            rest += argv[position - 1 :]
            break
        if match is None:
            rest.append(arg)
            continue
        follows = argv[position] if position < len(argv) else "--"
        is_value = not follows.startswith("-") or _NEGATIVE.match(follows)
        if match["value"] is None and not match["no"] and is_value:
            arg = f"{arg}={follows}"
            position += 1
        config_argv.append(arg)
    return config_argv, rest


def parse_config_flags(argv: list[str], cls: type) -> ConfigDict:
    """The config file that `--config` names, with the overrides of the other flags: a locked ConfigDict.

    `--config.a.b=None` unsets an optional key. A named entry (of data.sources) is added by setting its
    first field (`--config.data.sources.mine.path=text.txt`) and dropped by `--config.data.sources.mine=None`;
    all of them by `--config.data.sources=None`. The last flag for a key wins.

    Errors: UserError, one line, for everything a user can get wrong.
    """
    config_argv, rest = split_config_flags(argv)
    if rest:
        raise UserError(f"{rest[0]!r} is not a config flag: write --config=NAME, --config.key=value.")
    name, overrides = _scan(config_argv)
    config: Any = load_config_file(name, cls)
    config.unlock()
    values = _restructure(config, cls, overrides)
    leaves = dict(_leaves(config, cls))
    texts, unset = {}, []
    for key, text in values.items():
        if key not in leaves:
            raise _no_leaf(key, leaves, config, cls)
        spec = leaves[key]
        if text is None and spec.type is not bool:
            raise UserError(f"--config.{key} needs a value: --config.{key}=..., {TYPE_NAMES[spec.type]}.")
        if text == "None":
            if not spec.optional:
                raise UserError(
                    f"--config.{key}=None must be {TYPE_NAMES[spec.type]}: this key cannot be unset."
                )
            unset.append(key)
        else:
            texts[key] = "true" if text is None else text
    _apply(config, leaves, texts)
    for key in unset:
        section, _, field = key.rpartition(".")
        (config[section] if section else config)[field] = None
    return lock(config, cls)


def _scan(config_argv: list[str]) -> tuple[str, list[tuple[str, str | None]]]:
    """(name of the config file, [(key, text or None)]) in the order of the command line."""
    names, overrides = [], []
    for arg in config_argv:
        match = _FLAG.fullmatch(arg)
        assert match is not None
        if match["key"] is None:
            names.append(match["value"])
        elif match["no"]:
            overrides.append((match["key"], "false"))
        else:
            overrides.append((match["key"], match["value"]))
    if not names or not names[-1]:
        raise UserError(
            f"--config=NAME is needed: one of {', '.join(config_names())}, or the path of a .py file."
        )
    if len(names) > 1:
        raise UserError(
            f"--config is given twice: {names[0]} and {names[1]}. Give one, and override single keys."
        )
    return names[0], overrides


def _entries_of(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(key, dataclass of the entries) of every dict of named entries."""
    for name, spec in specs(cls).items():
        if spec.entries:
            yield prefix + name, spec.type
        elif spec.section:
            yield from _entries_of(spec.type, f"{prefix}{name}.")


def _restructure(config: Any, cls: type, overrides: list[tuple[str, str | None]]) -> dict[str, str | None]:
    """Adds and drops named entries in place; returns the overrides of leaves, the last one for each."""
    from ml_collections import ConfigDict

    values: dict[str, str | None] = {}
    for key, text in overrides:
        home = next((item for item in _entries_of(cls) if f"{key}.".startswith(f"{item[0]}.")), None)
        if home is None:
            values.pop(key, None)
            values[key] = text
            continue
        root, entry_cls = home
        entry, _, field = key.removeprefix(root).removeprefix(".").partition(".")
        if text == "None" and not field:
            dropped = [entry] if entry else list(config[root])
            for name in dropped:
                if name not in config[root]:
                    match = nearest(name, config[root])
                    hint = f"; did you mean {match}?" if match else "."
                    raise UserError(f"--config.{key}=None: {root} has no {name}{hint}")
                del config[root][name]
                values = {key: text for key, text in values.items() if not key.startswith(f"{root}.{name}.")}
            continue
        if entry not in config[root] and field == next(iter(specs(entry_cls))):
            check_entry_name(f"{root}.{entry}")
            config[root][entry] = ConfigDict()
            complete(config[root][entry], entry_cls)
        values.pop(key, None)
        values[key] = text
    return values


def _leaves(config: Any, cls: type, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    """(key, Spec) of every leaf, those of the named entries included."""
    for name, spec in specs(cls).items():
        if spec.section:
            yield from _leaves(config[name], spec.type, f"{prefix}{name}.")
        elif spec.entries:
            for entry in config[name]:
                yield from _leaves(config[name][entry], spec.type, f"{prefix}{name}.{entry}.")
        else:
            yield prefix + name, spec


def _no_leaf(key: str, leaves: dict[str, Spec], config: Any, cls: type) -> UserError:
    inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
    if inside:
        more = f" and {len(inside) - 4} more" if len(inside) > 4 else ""
        return UserError(f"--config.{key} is a section, not a key: it holds {', '.join(inside[:4])}{more}.")
    for root, entry_cls in _entries_of(cls):
        error = _no_leaf_of_entry(key, root, list(config[root]), list(specs(entry_cls)), leaves)
        if error is not None:
            return error
    return unknown_key(key, leaves)


def _no_leaf_of_entry(
    key: str, root: str, entries: list[str], fields: list[str], leaves: dict[str, Spec]
) -> UserError | None:
    """The error for a key of a named entry, there or not, below `root` or its like; None for any other key."""
    section, _, last = key.rpartition(".")
    above, _, entry = section.rpartition(".")
    if key.startswith(f"{root}."):
        entry, _, field = key.removeprefix(f"{root}.").partition(".")
        check_entry_name(f"{root}.{entry}")
        meant = entry if entry in entries else nearest(entry, entries)
        if meant is None and field in fields:
            return UserError(
                f"--config.{key}: {root} holds {', '.join(entries) or 'nothing'}, not {entry}. To add it, also set "
                f"--config.{root}.{entry}.{fields[0]}=..."
            )
        if not field:
            last = fields[0]
    elif above and nearest(above, [root]):
        meant = nearest(entry, entries)
    else:
        return None
    home = f"{root}.{meant or entry}"
    match = nearest_key(f"{home}.{last}", [f"{home}.{field}" for field in fields]) or nearest_key(key, leaves)
    hint = f"; did you mean {match}?" if match else f"; {home} has {', '.join(fields)}."
    return UserError(f"Unknown config key {key}{hint}")


def _apply(config: ConfigDict, leaves: dict[str, Spec], texts: dict[str, str]) -> None:
    """Sets the overrides in place, parsed as ml_collections parses flags."""
    from absl import flags
    from ml_collections import config_flags

    argv = [f"--config.{key}={text}" for key, text in texts.items()]
    flag_values = flags.FlagValues()  # our own: the global one belongs to whoever embeds jaxlm
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=flag_values, lock_config=False, sys_argv=["jaxlm", *argv]
        )
        flag_values(["jaxlm", *argv])
    except flags.IllegalFlagValueError as error:
        arg = next(arg for arg in argv if str(error).startswith(f"flag {arg}: "))
        key, _, text = arg.removeprefix("--config.").partition("=")
        hint = ""
        with contextlib.suppress(ValueError):
            if leaves[key].type is int and float(text).is_integer():
                hint = f" Try {int(float(text))}."
        raise UserError(f"{arg} must be {TYPE_NAMES[leaves[key].type]}.{hint}") from None


def config_names() -> list[str]:
    """Names that `--config=NAME` knows without a path."""
    return sorted({path.stem for folder in _config_folders() for path in folder.glob("[!_]*.py")})


def _config_folders() -> list[Path]:
    """Where named configs are: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    folders = [package / "configs"]
    if (package.parent / "pyproject.toml").is_file():  # else ../configs is anybody's
        folders.append(package.parent / "configs")
    return [folder for folder in folders if folder.is_dir()]


def find_config(name: str) -> Path:
    """The file that `--config=NAME` means: a path as given, else a named config (`quickstart`).

    A saved config (.json) counts, and so does the workdir that holds one, if written as a path: `runs/mine`.
    Errors: UserError with the nearest name.
    """
    named = name.removeprefix("configs/").removesuffix(".py")
    candidates = [Path(name), *(folder / f"{named}.py" for folder in _config_folders())]
    if "/" in name:
        candidates.insert(1, Path(name) / CONFIG_FILE)
    found = next((path for path in candidates if os.path.isfile(path)), None)  # False where it may not look
    if found is not None:
        return found
    names = config_names()
    match = nearest(named, names)
    hint = f"Did you mean {match}? " if match else ""
    raise UserError(
        f"--config={name}: no such config. {hint}Known: {', '.join(names)}; or give the path of a .py file."
    )


def load_config_file(name: str, cls: type) -> ConfigDict:
    """`NAME_OR_PATH[:arg]` -> the ConfigDict its get_config returns, completed and checked against `cls`.

    Errors: UserError that names the file and, where its code raises, the line.
    """
    from ml_collections import ConfigDict

    path_text, colon, arg = name.partition(":")
    path = find_config(path_text)
    if path.suffix == ".json":
        config: Any = dict(_read_saved(path))
    else:
        config = _call_get_config(path, [arg] if colon else [], cls)
    if isinstance(config, dict):
        config = ConfigDict(config)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() must return a ConfigDict, not {type(config).__name__}. Does it end with "
            "`return cfg`?"
        )
    for key, (what, command) in _KINDS.items():
        if key in config and key not in specs(cls):
            raise UserError(f"{path} is the config of {what}: it goes with `{command}`.")
    config.unlock()
    try:
        complete(config, cls)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return lock(config, cls)


def _read_saved(path: Path) -> Mapping[str, Any]:
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(
            f"{error} Give the name of a config, a .py file, or a workdir whose {CONFIG_FILE} is whole."
        ) from None


def _call_get_config(path: Path, args: list[str], cls: type) -> Any:
    module = types.ModuleType(f"jaxlm_config_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses defined in the file look their module up
    try:
        # Compiled by hand: importing would leave a __pycache__ beside the user's file.
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(
                f"{path} has no function get_config(): a config file defines one and returns the config."
            )
        try:
            inspect.signature(get_config).bind(*args)
        except TypeError:
            rule = "takes no argument" if args else "needs an argument"
            way = f"--config={path}" if args else f"--config={path}:ARGUMENT"
            raise UserError(f"{path}: get_config() {rule}. Try {way}.") from None
        return get_config(*args)
    except UserError:
        raise
    except Exception as error:
        _raise_with_line(path, error, cls)


def _raise_with_line(path: Path, error: Exception, cls: type) -> NoReturn:
    """One line for whatever a config file raised: the place and, for a typo, the nearest key."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    place = f"{path}, line {line}" if line else str(path)
    known = key_names(cls)
    written = re.findall(r"\b[A-Za-z_]\w*\.([A-Za-z_][\w.]*)", linecache.getline(str(path), line or 0))
    if isinstance(error, (AttributeError, KeyError)) and "ml_collections" in frames[-1].filename:
        for key in written:
            if not any(f"{name}.".startswith(f"{key}.") for name in known):
                raise UserError(f"{place}: {unknown_key(key, known)}") from error
    mistyped = _MISTYPED.search(str(error))
    if isinstance(error, TypeError) and mistyped:
        field, value, actual, expected = mistyped.groups()
        key = next((key for key in written if key.rpartition(".")[2] == field), field)
        wanted = next((text for leaf, text in TYPE_NAMES.items() if leaf.__name__ == expected), "a section")
        raise UserError(f"{place}: {key}={value} must be {wanted}, not {actual}.") from error
    message = " ".join(str(error).split()).partition(" Other fields present")[0]
    raise UserError(f"{place}: {type(error).__name__}: {message}") from error
