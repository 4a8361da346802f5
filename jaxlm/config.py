"""Dataclass sections <-> ConfigDict and JSON; did-you-mean; diff of two configs. Imports no JAX.

Sections are frozen dataclasses beside their owner. A leaf is an int, float, bool or str, or one of them
`| None`; a field may also be another section, or a `dict[str, Section]` of named entries (data.sources). A
key is the dotted path of a leaf: `data.sources.topics.path`. Flags are parsed in config_flags.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import keyword
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from jaxlm.redact import redact
from jaxlm.types import JSON_ERRORS, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")

MAX_CONFIG_BYTES = 4 << 20
"""Of a saved config: the longest has some kilobytes."""
TYPE_NAMES = {
    int: "a whole number (int)",
    float: "a number (float)",
    bool: "true or false (bool)",
    str: "text (str)",
}
"""Type of a leaf -> what an error calls it."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, or None where none is alike."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def check_choice(key: str, value: object, choices: Iterable[str]) -> None:
    """Raises a UserError that lists the choices, and the nearest one, unless `value` is one of them."""
    names = list(choices)
    if value in names:
        return
    match = nearest(str(value), names)
    hint = f"; did you mean {match!r}?" if match else "."
    raise UserError(f"{key}={value!r} is not one of {', '.join(names)}{hint}")


def divisors(n: int) -> list[int]:
    """All positive divisors of n, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d < n]


class Spec(NamedTuple):
    """One field of a section."""

    type: type
    """Of a leaf: int, float, bool or str; else the dataclass of the section or of the named entries."""
    optional: bool = False
    """A leaf that may be None."""
    section: bool = False
    entries: bool = False


class Key(NamedTuple):
    """A leaf as `jaxlm config --keys` lists it."""

    name: str
    """Dotted path, with `<name>` for the name of an entry."""
    spec: Spec
    default: Any
    doc: str
    """The string under the field, or ""."""


@functools.cache
def specs(cls: type) -> dict[str, Spec]:
    """Field -> Spec of a section, in declared order."""
    hints = typing.get_type_hints(cls)
    return {field.name: _spec(hints[field.name]) for field in dataclasses.fields(cls)}


def _spec(hint: Any) -> Spec:
    if dataclasses.is_dataclass(hint):
        return Spec(typing.cast(type, hint), section=True)
    if typing.get_origin(hint) is dict:
        return Spec(typing.get_args(hint)[1], entries=True)
    optional = isinstance(hint, types.UnionType)
    leaf = next(arg for arg in typing.get_args(hint) if arg is not type(None)) if optional else hint
    if leaf not in TYPE_NAMES:
        raise TypeError(
            f"A config field cannot be {hint}: give it a leaf type, a section or dict[str, section]."
        )
    return Spec(leaf, optional=optional)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def iterate_keys(cls: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a section and of those inside it, in declared order, with default and docstring."""
    docs = _docs(cls)
    for field in dataclasses.fields(cls):
        spec = specs(cls)[field.name]
        if spec.section:
            yield from iterate_keys(spec.type, f"{prefix}{field.name}.")
        elif spec.entries:
            yield from iterate_keys(spec.type, f"{prefix}{field.name}.<name>.")
        else:
            yield Key(prefix + field.name, spec, _default(field), docs.get(field.name, ""))


def _docs(cls: type) -> dict[str, str]:
    """Field -> the string literal under it, on one line."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(body.body, body.body[1:])
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


@functools.cache
def key_names(cls: type) -> tuple[str, ...]:
    """Every key of a section, with `<name>` for the name of an entry; no docstrings are read."""
    return tuple(_iterate_names(cls, ""))


def _iterate_names(cls: type, prefix: str) -> Iterator[str]:
    for name, spec in specs(cls).items():
        if spec.section or spec.entries:
            yield from _iterate_names(spec.type, f"{prefix}{name}." + ("<name>." if spec.entries else ""))
        else:
            yield prefix + name


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known key someone who typed `key` most likely meant, or None.

    The field decides, and the section only between fields alike: often the section is what is wrong.
    """

    def alike(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    section, _, field = key.rpartition(".")
    scores = {}
    for name in known:
        known_section, _, known_field = name.rpartition(".")
        if alike(field, known_field) >= 0.6:
            scores[name] = alike(field, known_field) + alike(section, known_section) / 4
    return max(scores, key=lambda name: scores[name], default=None)


def unknown_key(key: str, known: Iterable[str]) -> UserError:
    """The error for a key that does not exist."""
    match = nearest_key(key, known)
    hint = f"; did you mean {match}?" if match else "; `jaxlm config --keys` lists all keys."
    return UserError(f"Unknown config key {key}{hint}")


def checked_leaf(key: str, value: Any, spec: Spec) -> Any:
    """`value` as the leaf's type: an int serves as a float, and nothing else is converted."""
    if value is None:
        if spec.optional:
            return None
        raise UserError(f"{key}=None must be {TYPE_NAMES[spec.type]}: this key cannot be unset.")
    if isinstance(value, bool) != (spec.type is bool) or not isinstance(
        value, (int, float) if spec.type is float else spec.type
    ):
        raise UserError(f"{key}={value!r} must be {TYPE_NAMES[spec.type]}, not {type(value).__name__}.")
    if spec.type is float and not math.isfinite(value):
        raise UserError(f"{key}={value!r} must be a finite number.")
    if spec.type is str and (shown := redact(value)) != value:
        raise UserError(
            f"{key}={shown!r} holds a secret, and the config is kept beside the run, in its checkpoints and reports. "
            "Leave it out: credentials of gs://, s3:// and the hub come from their own files and variables of the "
            "environment (GOOGLE_APPLICATION_CREDENTIALS, AWS_PROFILE, HF_TOKEN)."
        )
    return spec.type(value)


def check_entry_name(key: str) -> None:
    """Raises a UserError unless the last part of `key` can name an entry in flags and in files."""
    from ml_collections import ConfigDict

    name = key.rpartition(".")[2]
    if not name.isidentifier() or keyword.iskeyword(name) or hasattr(ConfigDict, name):
        raise UserError(
            f"{key}: {name!r} cannot be a name here, since it becomes part of flags and of metric names. Use "
            "letters, digits and underscores, no word of Python or ConfigDict: 'my_text', for example."
        )


def to_config_dict(section: Any) -> ConfigDict:
    """A dataclass -> locked ConfigDict with every key; the named entries stay open to new names.

    An optional leaf becomes a typed placeholder, so that flags can set it, and unset it with `None`.
    """
    from ml_collections import ConfigDict

    config = ConfigDict()
    complete(config, type(section), section)
    return lock(config, type(section))


def complete(
    config: Any, cls: type, defaults: Any = None, prefix: str = "", keys: Iterable[str] | None = None
) -> None:
    """Adds, in place, the keys that a ConfigDict lacks, with the values of `defaults`, else the fields' own.

    References between keys that a config file made stay references. `config` must be unlocked. `keys` are
    those that an error may suggest; default: all of this section.
    Errors: UserError for unknown keys and wrong types.
    """
    from ml_collections import ConfigDict, FieldReference

    known = specs(cls)
    keys = [prefix + key for key in key_names(cls)] if keys is None else keys
    for name in config:
        if name not in known:
            raise unknown_key(prefix + str(name), keys)
    for field in dataclasses.fields(cls):
        name, spec, key = field.name, known[field.name], prefix + field.name
        default = _default(field) if defaults is None else getattr(defaults, name)
        if spec.section or spec.entries:
            if config.get(name) is None:
                config[name] = ConfigDict()
            if not isinstance(config[name], ConfigDict):
                raise UserError(
                    f"{key}={config[name]!r} must be a section with keys of its own: {key}.<key>."
                )
        if spec.section:
            complete(config[name], spec.type, default, f"{key}.", keys)
        elif spec.entries:
            for entry, value in default.items():
                config[name][entry] = to_config_dict(value).unlock()
            for entry, value in config[name].items():
                check_entry_name(f"{key}.{entry}")
                if not isinstance(value, ConfigDict):
                    raise UserError(
                        f"{key}.{entry}={value!r} must be a dict with keys {', '.join(specs(spec.type))}."
                    )
                complete(value, spec.type, None, f"{key}.{entry}.")
        elif name not in config or config.get_type(name) is not spec.type:
            # A file's own dict may hold a bare None, or an int for a float: no flag could set those.
            value = checked_leaf(key, config[name] if name in config else default, spec)
            if name in config:
                del config[name]
            config[name] = FieldReference(value, field_type=spec.type) if spec.optional else value


def lock(config: Any, cls: type) -> ConfigDict:
    """Locks a ConfigDict, except the dicts of named entries, which take new names."""
    config.lock()
    for name, spec in specs(cls).items():
        if spec.section:
            lock(config[name], spec.type)
        elif spec.entries:
            config[name].unlock()
    return config


def from_config_dict(cls: type[T], config: Any, prefix: str = "", keys: Iterable[str] | None = None) -> T:
    """A ConfigDict or nested dict -> the frozen dataclass, checked. Absent keys take their defaults.

    Named entries come out in alphabetical order, so that equal configs mean equal runs. `keys` are those that
    an error may suggest; default: all of this section.
    Errors: UserError for unknown keys, wrong types, and whatever the sections' own checks refuse.
    """
    known = specs(cls)
    keys = [prefix + key for key in key_names(cls)] if keys is None else keys
    values = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name not in known:
            raise unknown_key(key, keys)
        spec = known[name]
        if not (spec.section or spec.entries):
            values[name] = checked_leaf(key, value, spec)
        elif not hasattr(value, "items"):
            raise UserError(f"{key}={value!r} must be a section with keys of its own: {key}.<key>.")
        elif spec.section:
            values[name] = from_config_dict(spec.type, value, f"{key}.", keys)
        else:
            values[name] = {entry: _entry(spec.type, value[entry], key, entry) for entry in sorted(value)}
    return cls(**values)


def _entry(cls: type, value: Any, key: str, entry: str) -> Any:
    check_entry_name(f"{key}.{entry}")
    if not hasattr(value, "items"):
        raise UserError(f"{key}.{entry}={value!r} must be a dict with keys {', '.join(specs(cls))}.")
    try:
        return from_config_dict(cls, value, f"{key}.{entry}.")
    except UserError as error:
        raise UserError(str(error).replace("<name>", entry)) from None


def flatten(config: Any) -> dict[str, Any]:
    """Key -> value of every leaf of a dataclass, ConfigDict or nested dict, in its order."""
    if dataclasses.is_dataclass(config):
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    flat = {}
    for name, value in config.items():
        if dataclasses.is_dataclass(value) or hasattr(value, "items"):
            flat.update({f"{name}.{key}": leaf for key, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


class Difference(NamedTuple):
    """A key in which two configs differ; a side that lacks the key holds ABSENT."""

    key: str
    a: Any
    b: Any


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


def diff(a: Any, b: Any) -> list[Difference]:
    """The keys in which two configs (dataclass, ConfigDict or nested dict) differ, in the order of `a`."""
    flat_a, flat_b = flatten(a), flatten(b)
    keys = [*flat_a, *(key for key in flat_b if key not in flat_a)]
    sides = (Difference(key, flat_a.get(key, ABSENT), flat_b.get(key, ABSENT)) for key in keys)
    return [side for side in sides if side.a != side.b]


def to_json(config: Any) -> str:
    """A dataclass as the text of a saved config: declared order, one key a line, ending in a newline."""
    import json

    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def read_json(path: str | os.PathLike) -> Mapping[str, Any]:
    """The nested dict in a saved config. Errors: UserError naming the file if it is not one."""
    from jaxlm.limits import read_json as read

    try:
        config = read(path, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: no saved config here.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except JSON_ERRORS as error:
        raise UserError(f"{path} is not a saved config: it is not valid JSON ({error}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a saved config: it holds {type(config).__name__}, not an object.")
    return config


def load_section(cls: type[T], path: str | os.PathLike) -> T:
    """What `to_json` gave, checked again; keys younger than the file take their defaults."""
    try:
        return from_config_dict(cls, read_json(path))
    except UserError as error:
        message = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
        raise UserError(message) from None
