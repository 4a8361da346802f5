"""A Hugging Face tokenizer.json behind the protocol `Tokenizer`, through the package `tokenizers` alone.

In the text of a corpus a special token that is written out is text: only `encode_markup`, for prompts and
rendered chat templates, gives it its id. BOS stands before a text where transformers puts it, and once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxlm.data import hf_files
from jaxlm.data.files import make_folder, write_atomic
from jaxlm.data.hf_files import CONFIG, TOKENIZER_JSON, Addition
from jaxlm.data.tokenizer import SPACE, TOKENIZER_FOLDER, Span, check_ids, check_unicode
from jaxlm.limits import MALFORMED
from jaxlm.types import UserError

MAX_VOCAB_SIZE = 1 << 24
"""A higher id is a damaged file: the largest known vocabularies have 2**18."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_KEEPS_ALL = {"ByteLevel", "Split", "Digits"}
"""Steps before the model that cut text and drop none of it."""
_BYTES_ONLY = ({"ByteLevel"}, {"ByteFallback", "Fuse"}, {"Replace", "ByteFallback", "Fuse"})
"""Decoders that turn every id into bytes of its own, whatever stands before it."""


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary -> the byte.

    Source: Radford et al. 2019, GPT-2, encoder.py: printable Latin-1 stands for itself.
    """
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in itself]
    return {chr(b): b for b in itself} | {chr(256 + i): b for i, b in enumerate(others)}


def _package() -> Any:
    """The package `tokenizers`; its batches then use the calling thread alone: builds use processes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise UserError("tokenizer.json needs the package tokenizers: pip install 'jaxlm[hf]'.") from None
    return tokenizers


class HFTokenizer:
    """The tokenizer of a Hugging Face model: tokenizer.json and the files beside it, which are kept as they are.

    `exact` says whether decode(encode(x)) == x is promised; `bytes_per_id` adds up to the text then, and for
    other byte-level tokenizers to the normalised text.
    """

    def __init__(self, files: Mapping[str, bytes]):
        """Reads the files, by the names of hf_files.NAMES. Errors: UserError that names the file."""
        with _reading():
            self._read(files)

    def _read(self, files: Mapping[str, bytes]) -> None:
        if TOKENIZER_JSON not in files:
            raise UserError(f"{TOKENIZER_JSON} is missing: it holds the vocabulary.")
        self.files = {name: files[name] for name in hf_files.NAMES if name in files}
        self._spec = spec = hf_files.read_object(self.files, TOKENIZER_JSON)
        self._additions = list(hf_files.additions(self.files))
        data, hidden = _as_data(spec, self._special_contents())
        self._tokenizer = self._load(data, set(hidden))
        self._tokenizer.encode_special_tokens = True
        by_id = {i: token for token, i in self._tokenizer.get_vocab(True).items()}
        by_id |= {i: token for token, i in hidden.items()}
        self._ids: dict[str, int] = {token: i for i, token in by_id.items()}
        if not self._ids:
            raise UserError(f"{TOKENIZER_JSON} has an empty vocabulary.")
        self.vocab_size = max(self._ids.values()) + 1
        if self.vocab_size > MAX_VOCAB_SIZE:
            token = max(self._ids, key=self._ids.__getitem__)
            raise UserError(f"{TOKENIZER_JSON}: {token!r} has the id {self.vocab_size - 1:,}: it is damaged.")
        self._find_special(hidden)
        self._tokenizer.post_processor = _package().processors.ByteLevel(
            trim_offsets=False
        )  # see `encode_spans`
        self._find_bytes()
        self.chat_template = hf_files.chat_template(self.files)
        policy = [self.prefix_ids, self._suffix_ids, sorted(hidden), self._added_vocabulary()]
        content = self.files[TOKENIZER_JSON] + b"\n" + json.dumps(policy).encode()
        self.sha256 = hashlib.sha256(content).hexdigest()

    def _special_contents(self) -> set[str]:
        """The texts of all special tokens."""
        added = self._spec.get("added_tokens") or []
        found = {t.get("content") for t in added if isinstance(t, dict) and t.get("special")}
        return {c for c in found if isinstance(c, str)} | {
            one.content for one in self._additions if one.flags["special"]
        }

    def _load(self, spec: dict[str, Any], hidden: set[str]) -> Any:
        """A `tokenizers.Tokenizer` with the additions, except those that are hidden in text."""
        package = _package()
        with _reading():
            made = package.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        made.no_truncation()  # some files carry the limits of the model they were saved with
        made.no_padding()
        for one in self._additions:
            if one.content not in hidden:
                _add(made, one, package)
        return made

    @functools.cached_property
    def _markup(self) -> Any:
        """The same tokenizer, which finds special tokens in a text."""
        made = self._load(_without_chance(self._spec), set())
        made.post_processor = _package().processors.ByteLevel(trim_offsets=False)
        return made

    def _find_special(self, hidden: Mapping[str, int]) -> None:
        named = hf_files.named_tokens(self.files)
        decoder = self._tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in decoder.items() if token.special} | set(hidden.values())
        self._added = {i: token.content for i, token in decoder.items() if i not in self._special}
        self.special: Mapping[str, int] = {t: i for t, i in self._ids.items() if i in self._special}
        bos, eos, pad = (self._named(named, key) for key in ("bos", "eos", "pad"))
        self.bos_id: int | None = bos[0] if bos else None
        self.eos_id: int | None = eos[0] if eos else None
        self.pad_id: int = pad[0] if pad else (self.eos_id or 0)
        ends = hf_files.generation_ids(self.files, "eos_token_id", self.vocab_size)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos[:1], *ends]))
        model = self._spec.get("model") or {}
        name = model.get("unk_token")
        self.unk_id: int | None = self._ids.get(name) if isinstance(name, str) else model.get("unk_id")
        self.prefix_ids, behind = self._policy()
        self._suffix_ids = behind if self.eos_id is None else (self.eos_id,)

    def _named(self, named: Mapping[str, tuple[str | None, str]], key: str) -> list[int]:
        """The ids of bos, eos or pad; an eos is the first of those in generation_config.json if need be."""
        content, name = named.get(f"{key}_token", (None, ""))
        if content in self._ids:
            return [self._ids[content]]
        if content is not None and key != "pad":
            raise UserError(
                f"{name}: {key}_token {content!r} is not in the vocabulary of {TOKENIZER_JSON}: one of the two belongs "
                "to another model."
            )
        if f"{key}_token" in named and key != "eos":
            return []  # null: the model has none, whatever generation_config.json says
        return hf_files.generation_ids(self.files, f"{key}_token_id", self.vocab_size)

    def _policy(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(ids before every text, ids after it), as transformers has them."""
        texts = (text for text in ("a", "0", *self._ids) if self.encode(text))
        text = next(texts, "a")
        with_special = self._tokenizer.encode(text, add_special_tokens=True).ids
        alone = self.encode(text)
        count = len(with_special) - len(alone)
        places = [i for i in range(count + 1) if with_special[i : i + len(alone)] == alone]
        start = places[0] if places else count
        before, behind = tuple(with_special[:start]), tuple(with_special[start + len(alone) :])
        if unknown := [i for i in before + behind if i >= self.vocab_size]:
            raise UserError(
                f"{TOKENIZER_JSON}: its post_processor adds the id {unknown[0]}, and the vocabulary has ids 0 to "
                f"{self.vocab_size - 1}: it was made for another vocabulary."
            )
        for key, token_id in (("add_bos_token", self.bos_id), ("add_eos_token", self.eos_id)):
            wanted = hf_files.rebuilt_policy(self.files, key)
            if wanted is not None:
                ids = (token_id,) if wanted and token_id is not None else ()
                before, behind = (ids, behind) if key == "add_bos_token" else (before, ids)
        return before, behind

    def _find_bytes(self) -> None:
        """Sets the text and the bytes of every id, and whether text is kept exactly."""
        decoder = hf_files.types_in(self._spec.get("decoder"))
        kinds = {str(step["type"]) for step in decoder}
        self._by_bytes = kinds in _BYTES_ONLY
        texts: list[str | None] = [None] * self.vocab_size
        for token, i in self._ids.items():
            texts[i] = token
        self._texts = texts
        if "ByteLevel" in kinds:
            make = _level_bytes
        else:
            marks = {str((step.get("pattern") or {}).get("String")): str(step.get("content"))
                     for step in decoder if step["type"] == "Replace"}  # fmt: skip
            marks |= {str(step.get("replacement")): " " for step in decoder if step["type"] == "Metaspace"}
            make = functools.partial(_text_bytes, marks=marks, fallback="ByteFallback" in kinds)
        plain = [b"" if text is None or i in self._special else make(text) for i, text in enumerate(texts)]
        for i, text in self._added.items():
            plain[i] = text.encode()
        if self.unk_id is not None:  # stands for a text that it does not tell
            plain[self.unk_id] = b""
        self._bytes = plain
        if not self._by_bytes and not kinds & {"ByteFallback", "Metaspace", "ByteLevel"}:
            self._bytes = self._decoded_bytes()
        normalizer = hf_files.types_in(self._spec.get("normalizer"))
        cuts = hf_files.types_in(self._spec.get("pre_tokenizer"))
        self.normalizer: str = "+".join(step["type"] for step in normalizer) or "identity"
        self.adds_space: bool = any(map(_adds_space, normalizer + cuts))
        strips = any(token.lstrip or token.rstrip for token in self._tokenizer.get_added_tokens_decoder().values()
                     if not token.special)  # fmt: skip
        model = self._spec.get("model") or {}
        level = any(step["type"] == "ByteLevel" for step in cuts) and kinds == {"ByteLevel"}
        self.exact: bool = (
            self._by_bytes
            and "merges" in model  # Unigram takes the text <0x0A> for the byte
            and (level or bool(model.get("byte_fallback")) and "Replace" not in kinds)
            and not normalizer
            and not self.adds_space
            and not strips
            and all(step["type"] in _KEEPS_ALL and step.get("behavior") != "Removed" for step in cuts)
            and {b for b in self._bytes if len(b) == 1} == {bytes([b]) for b in range(256)}
        )

    def _decoded_bytes(self) -> list[bytes]:
        """What each id adds to decoded text, found by decoding it after another."""
        anchor = next((self._tokenizer.encode(c, add_special_tokens=False).ids[:1] for c in "ae"), [])
        skip = len(self.decode(anchor))
        known = (i for i, text in enumerate(self._texts) if text is not None and i not in self._special)
        found = [b""] * self.vocab_size
        for i in known:
            found[i] = self.decode([*anchor, i])[skip:].encode()
        return found

    def _added_vocabulary(self) -> list[list[Any]]:
        """All that is found in a text before the model sees it, for the hash."""
        return [
            [i, t.content, t.special, t.lstrip, t.rstrip, t.single_word, t.normalized]
            for i, t in sorted(self._tokenizer.get_added_tokens_decoder().items())
        ]

    def __reduce__(self):
        return HFTokenizer, (self.files,)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS and EOS; a special token that is written out is text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in one thread: parallel builds use processes."""
        return [encoding.ids for encoding in self._encodings(texts)]

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        try:
            with _using():
                return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                check_unicode(text)
            raise

    def encode_markup(self, text: str) -> list[int]:
        """Ids of the text, in which special tokens that are written out become their ids, as in transformers."""
        check_unicode(text)
        with _using():
            return self._markup.encode(text, add_special_tokens=False).ids

    def encode_spans(self, text: str, *, markup: bool) -> tuple[list[int], list[Span]]:
        """Ids as of `encode_markup` or `encode`, and the characters [start, end) of the text that each stands for.

        Each of the ids that spell a character in bytes stands for all of it. Post-processors add nothing to our ids,
        but some would take the space before a word out of its span: none is left in place.
        """
        check_unicode(text)
        with _using():
            found = (self._markup if markup else self._tokenizer).encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def document(self, text: str) -> list[int]:
        """What stands before every text of the model, the ids, and EOS where the tokenizer has it."""
        return [*self.prefix_ids, *self.encode(text), *self._suffix_ids]

    def documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`document` of many texts, end to end: (int32 ids, int64 tokens of each)."""
        parts = [encoding.ids for encoding in self._encodings(texts)]
        around = len(self.prefix_ids) + len(self._suffix_ids)
        lengths = np.array([len(part) + around for part in parts], np.int64)
        chained = itertools.chain.from_iterable(
            itertools.chain(self.prefix_ids, part, self._suffix_ids) for part in parts
        )
        return np.fromiter(chained, np.int32, int(lengths.sum())), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special ids add nothing, bytes that are not UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        check_ids(ids, self.vocab_size)
        if self._by_bytes:
            return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
        with _using():
            return self._tokenizer.decode(
                [i for i in ids if i not in self._special], skip_special_tokens=False
            )

    def piece(self, token_id: int) -> str:
        """The text of one id, or a name such as <|endoftext|> or <0xE0>."""
        text = self._texts[token_id]
        if text is None:
            return f"<{token_id}>"
        if token_id in self._special or _BYTE.fullmatch(text):
            return text
        content = self._bytes[token_id]
        try:
            return content.decode() or text
        except UnicodeDecodeError:
            return "".join(f"<0x{b:02X}>" for b in content)

    def is_byte(self, token_id: int) -> bool:
        """Whether the id stands for a single byte of a character that the vocabulary lacks."""
        content = self._bytes[token_id]
        return len(content) == 1 and (
            content[0] >= 0x80 or bool(_BYTE.fullmatch(self._texts[token_id] or ""))
        )

    def bytes_per_id(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes each id adds to decoded text; 0 for special ids."""
        return np.array([len(b) for b in self._bytes], np.int32)

    def save(self, folder: epath.PathLike) -> list[str]:
        """Writes the files, as they were read, to FOLDER/tokenizer/; returns their names relative to FOLDER."""
        make_folder(epath.Path(folder) / TOKENIZER_FOLDER)
        names = [f"{TOKENIZER_FOLDER}/{name}" for name in self.files]
        for name, content in zip(names, self.files.values()):
            write_atomic(epath.Path(folder) / name, content)
        return names


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns what `tokenizers` and we raise that stumble over a damaged file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (
        BaseException
    ) as error:  # a panic of Rust is no Exception, and an error of it is nothing more special
        if not isinstance(error, MALFORMED) and type(error).__name__ not in ("PanicException", "Exception"):
            raise
        raise UserError(
            f"{TOKENIZER_JSON} cannot be read ({str(error).strip():.300}): it is damaged, or of a later format than "
            f"tokenizers {_package().__version__} knows. Copy it again, or pip install -U tokenizers."
        ) from error


@contextlib.contextmanager
def _using() -> Iterator[None]:
    """A panic of Rust over a text, such as of a pattern that takes too many steps, becomes a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ not in ("PanicException", "Exception"):
            raise
        raise UserError(
            f"{TOKENIZER_JSON} fails on a text ({str(error).strip():.300}): it is damaged, or the text was made to "
            "break it. Copy the tokenizer again."
        ) from error


def _add(tokenizer: Any, one: Addition, package: Any) -> None:
    """Adds a token; one that is there already becomes special if it is called so, and is left alone otherwise."""
    known = tokenizer.token_to_id(one.content)
    if known is None and one.token_id is None:
        return  # a name for a token that the vocabulary does not have
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    if one.content in added and (added[one.content].special or not one.flags["special"]):
        return
    if known is not None and one.content not in added and one.token_id not in (None, known):
        raise UserError(
            f"{CONFIG}: {one.content!r} has the id {one.token_id}, and {known} in {TOKENIZER_JSON}."
        )
    tokenizer.add_tokens([package.AddedToken(one.content, **one.flags)])
    found = tokenizer.token_to_id(one.content)
    if one.token_id not in (None, found):
        raise UserError(
            f"{CONFIG}: {one.content!r} has the id {one.token_id}, and comes to {found} after the tokens of "
            f"{TOKENIZER_JSON}: one of the two belongs to another model."
        )


def _as_data(spec: Mapping[str, Any], special: set[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """(a tokenizer.json in which no text can become a special id, the ids hidden in it by their tokens).

    `tokenizers` can be told to find no special token in a text, but its model may still put one together, where
    the base vocabulary has it: Unigram and whole-word models do so always, BPE where merges lead to it. There the
    vocabulary gets another spelling of it.
    """
    spec = _without_chance(spec)
    model = dict(spec.get("model") or {})
    vocab = model.get("vocab")
    within = special & ({row[0] for row in vocab if row} if isinstance(vocab, list) else set(vocab or ()))
    merges = model.get("merges")
    if isinstance(merges, list):
        pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in merges]
        made = {"".join(pair) for pair in pairs}
        within = {t for t in within if t in made or len(t) == 1 or model.get("ignore_merges")}
        model["merges"] = [
            m for m, pair in zip(merges, pairs) if not within.intersection(("".join(pair), *pair))
        ]
    names = {token: f"\uffff\0{token}\0\uffff" for token in within}
    if isinstance(vocab, list):
        hidden = {row[0]: i for i, row in enumerate(vocab) if row and row[0] in names}
        model["vocab"] = [[names.get(row[0], row[0]), *row[1:]] if row else row for row in vocab]
    else:
        hidden = {token: vocab[token] for token in names} if vocab else {}
        model["vocab"] = {names.get(token, token): i for token, i in (vocab or {}).items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [
        t for t in spec.get("added_tokens") or [] if not isinstance(t, dict) or t.get("content") not in hidden
    ]
    return {**spec, "model": model, "added_tokens": added}, hidden


def _without_chance(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json without BPE dropout, which makes ids a matter of luck."""
    model = spec.get("model")
    return (
        {**spec, "model": {**model, "dropout": None}}
        if isinstance(model, dict) and model.get("dropout")
        else {**spec}
    )


def _level_bytes(text: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[char] for char in text])
    except KeyError:
        return text.encode()


def _text_bytes(text: str, marks: Mapping[str, str], fallback: bool) -> bytes:
    byte = _BYTE.fullmatch(text) if fallback else None
    if byte:
        return bytes([int(byte[1], 16)])
    for mark, content in marks.items():
        text = text.replace(mark, content)
    return text.encode()


def _adds_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return (
            step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        )
    if step["type"] == "Prepend":
        return step.get("prepend") in (" ", SPACE)
    return step["type"] == "ByteLevel" and bool(step.get("add_prefix_space"))
