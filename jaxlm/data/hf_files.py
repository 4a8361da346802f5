"""What the tokenizer files of a Hugging Face model say: special tokens, BOS and EOS, chat template.

They are read as data: nothing in them is executed or imported (`auto_map`, `tokenizer_class`). Where they
contradict each other, what transformers does decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from jaxlm.data.files import read_file
from jaxlm.limits import parse_json, short
from jaxlm.types import JSON_ERRORS, UserError

TOKENIZER_JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
GENERATION = "generation_config.json"
MODEL = "tokenizer.model"
VOCAB, MERGES = "vocab.json", "merges.txt"
NAMES = (
    TOKENIZER_JSON, CONFIG, SPECIAL_MAP, ADDED, "chat_template.jinja", "chat_template.json", GENERATION, MODEL,
    VOCAB, MERGES,
)  # fmt: skip
"""The files of a tokenizer; only the first is necessary. All are kept as they are."""
GPT2_END = "<|endoftext|>"
LARGE = (TOKENIZER_JSON, MODEL, VOCAB, MERGES)
MAX_BYTES = {True: 256 << 20, False: 16 << 20}
"""Of the files in LARGE, and of the others; the largest tokenizer.json of a known model has 35 MB."""
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REBUILT = {"Llama": None, "CodeLlama": None, "Gemma": None, "Cohere": None, "GPTNeoX": False}
"""Classes that in transformers 4 put `add_bos_token` in place of what tokenizer.json says, and what holds where
nothing is said; None: tokenizer.json."""


class Addition(NamedTuple):
    """A token that these files have in addition to tokenizer.json, or that they call special."""

    content: str
    flags: dict[str, bool]
    """lstrip, rstrip, single_word, normalized, special."""
    token_id: int | None
    """The id it is said to have."""


def read_tokenizer_files(
    folder: epath.PathLike, tokenizer_json: epath.PathLike | None = None
) -> dict[str, bytes]:
    """The files of NAMES in a folder, as they are.

    Args:
      tokenizer_json: the file to take as tokenizer.json, where it has another name.
    """
    files = {}
    for name in NAMES:
        path = epath.Path(folder) / name
        if name == TOKENIZER_JSON and tokenizer_json is not None:
            path = epath.Path(tokenizer_json)
        elif not path.exists():
            continue
        limit = MAX_BYTES[name in LARGE]
        if (size := path.stat().length) > limit:
            raise UserError(
                f"{path} has {size:,} bytes, and at most {limit:,} are read: it is no file of a tokenizer."
            )
        files[name] = read_file(path, f"a {name} file")
    return files


def is_old_gpt2(folder: epath.PathLike) -> bool:
    """Whether the folder has GPT-2's tokenizer as vocab.json and merges.txt alone, as before there was tokenizer.json.

    Models of other types have such files, too, and cut a text otherwise before they merge (Qwen, RoBERTa).
    """
    folder = epath.Path(folder)
    if (folder / TOKENIZER_JSON).exists() or not all((folder / name).exists() for name in (VOCAB, MERGES)):
        return False
    files = {
        name: read_file(folder / name, f"a {name} file", MAX_BYTES[False])
        for name in (CONFIG, "config.json")
        if (folder / name).exists()
    }
    named = read_object(files, CONFIG).get("tokenizer_class")
    if named is not None:
        return named in ("GPT2Tokenizer", "GPT2TokenizerFast")
    return read_object(files, "config.json").get("model_type") == "gpt2"


def with_gpt2_json(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files and a tokenizer.json, as GPT2Tokenizer of transformers makes it from vocab.json and merges.txt."""
    vocab, config = read_object(files, VOCAB), read_object(files, CONFIG)
    lines = files[MERGES].decode("utf-8", "replace").split("\n")
    merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise UserError(
            f"{MERGES}: {' '.join(wrong[0])!r:.60} is not two tokens: it is damaged. Copy it again."
        )
    prefix = bool(config.get("add_prefix_space"))
    special = [GPT2_END] if GPT2_END in vocab else []
    bos = content_of(config.get("bos_token", GPT2_END), "bos_token", CONFIG)
    spec: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[token], "content": token, **_flags({}, True)} for token in special],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": prefix,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    if config.get("add_bos_token") and bos in vocab:
        text = {"Sequence": {"id": "A", "type_id": 0}}
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
        }
    made = {**files, TOKENIZER_JSON: json.dumps(spec, ensure_ascii=False).encode()}
    if special and SPECIAL_MAP not in files:  # what the class assumes where nothing is said
        named = {key: GPT2_END for key in ("bos_token", "eos_token", "unk_token") if key not in config}
        made[SPECIAL_MAP] = json.dumps(named).encode()
    return made


def read_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no such file."""
    if name not in files:
        return {}
    try:
        value = parse_json(files[name])
    except JSON_ERRORS as error:
        reason = "it is empty" if not files[name].strip() else str(error)
        raise UserError(
            f"{name} is not valid JSON ({reason}): it was cut short or edited. Copy it again."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a JSON {type(value).__name__}, not an object: copy it again.")
    return value


def content_of(value: Any, key: str, name: str) -> str | None:
    """The text of a special token, which may be written as a string or as an object. None: there is none."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{name}: {key} is {short(value)}, and has to be a string, an object with `content`, or null."
        )
    return value


def named_tokens(files: Mapping[str, bytes]) -> dict[str, tuple[str | None, str]]:
    """bos_token, eos_token, ... -> (text or None, file that says so); those of which nothing is said are missing.

    special_tokens_map.json overrides tokenizer_config.json, as in transformers, unless the latter has
    added_tokens_decoder: then it is the newer of the two.
    """
    config, special_map = read_object(files, CONFIG), read_object(files, SPECIAL_MAP)
    sources = [(SPECIAL_MAP, special_map), (CONFIG, config)]
    if "added_tokens_decoder" in config:
        sources.reverse()
    found = {}
    for key in NAMED:
        for name, source in sources:
            if key in source:
                found[key] = (content_of(source[key], key, name), name)
                break
    return found


def additions(files: Mapping[str, bytes]) -> Iterator[Addition]:
    """Tokens that the files beside tokenizer.json declare, in the order in which transformers adds them."""
    config = read_object(files, CONFIG)
    special = {content for content, _ in named_tokens(files).values() if content}
    extra = _extra_special(files)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for key in sorted(decoder, key=lambda key: int(key) if key.isdecimal() else -1):
            content = content_of(decoder[key], f"added_tokens_decoder[{key}]", CONFIG)
            if not key.isdecimal() or content is None:
                raise UserError(f"{CONFIG}: added_tokens_decoder has {key!r}, and maps ids to tokens.")
            flags = decoder[key] if isinstance(decoder[key], dict) else {}
            yield Addition(content, _flags(flags, content in special or content in extra), int(key))
    else:
        for content, token_id in sorted(
            read_object(files, ADDED).items(), key=lambda item: str(item[1]).zfill(12)
        ):
            if not isinstance(token_id, int):
                raise UserError(
                    f"{ADDED}: {content!r} has the id {short(token_id)}, and needs a whole number."
                )
            is_special = content in special or content in extra
            yield Addition(content, _flags({"normalized": not is_special}, is_special), token_id)
    for content in [*sorted(special), *extra]:
        yield Addition(content, _flags({}, True), None)


def _extra_special(files: Mapping[str, bytes]) -> list[str]:
    found: list[str] = []
    for name in (CONFIG, SPECIAL_MAP):
        source = read_object(files, name)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            values = source.get(key) or []
            values = list(values.values()) if isinstance(values, dict) else values
            if not isinstance(values, list):
                raise UserError(f"{name}: {key} has to be a list of tokens, not {short(values)}.")
            found += [content for value in values if (content := content_of(value, key, name))]
    return list(dict.fromkeys(found))


def _flags(given: Mapping[str, Any], special: bool) -> dict[str, bool]:
    flags = {key: bool(given.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
    return {**flags, "special": special or bool(given.get("special", False))}


def generation_ids(files: Mapping[str, bytes], key: str, vocab_size: int) -> list[int]:
    """Ids that generation_config.json has for `bos_token_id`, `eos_token_id` (which may be a list), ..."""
    value = read_object(files, GENERATION).get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
            raise UserError(
                f"{GENERATION}: {key} has {short(token_id)}, and the tokenizer has ids 0 to {vocab_size - 1}: one of "
                "the two belongs to another model."
            )
    return ids


def rebuilt_policy(files: Mapping[str, bytes], key: str) -> bool | None:
    """`add_bos_token` or `add_eos_token` where it overrides the post-processor of tokenizer.json; else None.

    Transformers 5 leaves both out of account, and so does 4, except in the classes of REBUILT, where model and
    files were made with what the config says.
    """
    config = read_object(files, CONFIG)
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    if name not in REBUILT:
        return None
    return REBUILT[name] if config.get(key) is None else bool(config[key])


def chat_template(files: Mapping[str, bytes]) -> str | None:
    """The chat template, the one named `default` where there are several: of chat_template.jinja, else of
    tokenizer_config.json, else of chat_template.json."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"chat_template.jinja is not UTF-8 ({error.reason} at byte {error.start})."
            ) from None
    for name in (CONFIG, "chat_template.json"):
        template = read_object(files, name).get("chat_template")
        if isinstance(template, list):  # [{"name": ..., "template": ...}, ...]
            template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None and not isinstance(template, str):
            raise UserError(
                f"{name}: chat_template has to be a string or named strings, not {short(template)}."
            )
        if template is not None:
            return template
    return None


def types_in(node: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder in tokenizer.json: a `Sequence` is taken apart."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        key = next(
            (key for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in node), ""
        )
        return [step for inner in node.get(key) or [] for step in types_in(inner)]
    return [node]
