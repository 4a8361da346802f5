"""YAML from outside: plain types, limits on size and depth, no two keys of one name, and aliases that stay small."""

from __future__ import annotations

from typing import Any

from etils import epath

from jaxlm.data.files import read_file
from jaxlm.limits import MALFORMED, MAX_DEPTH, TooLarge
from jaxlm.types import UserError

MAX_YAML_BYTES = 256 << 10
"""As many take a second to read; the longest file of the package has 19 kB."""
MAX_YAML_VALUES = 100_000
"""After its aliases are written out: nine lines of them can stand for a billion values."""


def read_yaml(path: epath.PathLike, what: str, loader_class: Any = None) -> Any:
    """The value of a YAML file, of plain types only.

    Args:
      what: it should be, for the error: "a YAML file of rules".
      loader_class: a SafeLoader that knows what to make of more tags.

    Errors: UserError that names file, line and limit.
    """
    import yaml

    content = read_file(path, what, max_bytes=MAX_YAML_BYTES)
    try:
        # In steps, and with no other loader: libyaml's recurses in C, which deep brackets would crash.
        loader = (loader_class or yaml.SafeLoader)(content.decode())
        node = loader.get_single_node()
        check_node(node)
        return None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})."
        ) from None
    except (yaml.YAMLError, *MALFORMED) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1:,}" if mark else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(f"{path}{where} is not YAML: {' '.join(str(reason).split())}.") from None


def check_node(node: Any) -> None:
    """Refuses two keys of one name, and aliases that stand for more values than anybody writes."""
    import yaml

    level, count = [node], 0
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, yaml.MappingNode):
                _check_keys(one)
                inner += (part for pair in one.value for part in pair)
            elif isinstance(one, yaml.SequenceNode):
                inner += one.value
        count += len(inner)
        if count > MAX_YAML_VALUES:
            raise TooLarge(f"it has more than {MAX_YAML_VALUES:,} values, aliases written out")
        if not inner:
            return
        level = inner
    raise TooLarge(f"it is more than {MAX_DEPTH} levels deep")


def _check_keys(node: Any) -> None:
    """YAML itself lets the later of two equal keys win without a word."""
    import yaml

    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            line = node.start_mark.line + 1
            raise TooLarge(f"{key.value!r} stands twice in the mapping of line {line}. Remove one")
        if isinstance(key, yaml.ScalarNode):
            seen.add(key.value)
