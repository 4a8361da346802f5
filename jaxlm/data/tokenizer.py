"""Text to ids and back: one small protocol; sentencepiece behind it, or a tokenizer.json (tokenizer_hf.py).

A tokenizer we train never changes the text: no normalisation, no added or removed space, and every byte has
an id of its own for what the vocabulary lacks. So decode(encode(x)) == x for every valid Unicode string,
and the bytes that ids stand for add up to those of the text, which makes bits per byte exact.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import sentencepiece
from etils import epath

from jaxlm.data.files import reachable, read_file, write_atomic
from jaxlm.types import UserError

TOKENIZER_FILE = "tokenizer.model"
"""Where a sentencepiece model lies in the folder of a run or corpus."""
TOKENIZER_FOLDER = "tokenizer"
"""Where the files of a Hugging Face tokenizer lie there."""
SPACE = "\u2581"
"""Sentencepiece writes a space as this character, and so cannot tell one from the other by itself."""
NUM_RESERVED = 259
"""<unk>, <s>, </s> and 256 bytes: ids 0 to 258 of the tokenizers we train."""
CACHED_WORDS = 200_000
CACHED_WORD_CHARS = 48

_RETURNS_ARRAYS = hasattr(sentencepiece.SentencePieceProcessor, "EncodeAsNumpy")
"""Since 0.2.3; a fifth faster than lists of Python's integers."""
_WORD = re.compile(r" *+[^ ]*+")
_PIECE_ACROSS_WORDS = re.compile(f"[^{SPACE}]{SPACE}")
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")


Span = tuple[int, int]
"""Characters [start, end) of a text."""


class Tokenizer(Protocol):
    """What the rest of jaxlm asks of a tokenizer."""

    vocab_size: int
    """The highest id + 1; there may be holes below it."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    """Fills what is masked by position anyway; may be a real token."""
    unk_id: int | None
    prefix_ids: tuple[int, ...]
    """What every document and prompt begins with: BOS, or nothing where the model wants none."""
    stop_ids: tuple[int, ...]
    """Every id that ends what a model writes, EOS first: some chat models have several."""
    chat_template: str | None
    """The Jinja template of a chat model."""
    special: Mapping[str, int]
    """Texts that `encode_markup` reads as one id, and `encode` as any other text."""
    sha256: str
    """Of all that decides about ids: goes into every manifest and checkpoint."""
    exact: bool
    """Whether decode(encode(x)) == x for every text."""
    normalizer: str
    """What is done to a text first; `identity`: nothing."""
    adds_space: bool
    """Whether a space is put before a text."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS and EOS. For data: a special token that is written out is text."""
        ...

    def encode_markup(self, text: str) -> list[int]:
        """Like `encode`, but a special token that is written out becomes its id: for prompts, rendered chats."""
        ...

    def encode_spans(self, text: str, *, markup: bool) -> tuple[list[int], list[Span]]:
        """Ids as of `encode_markup` or `encode`, and the characters [start, end) of the text that each stands for."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts."""
        ...

    def document(self, text: str) -> list[int]:
        """Ids of a whole document: `prefix_ids`, its text, and EOS where the tokenizer has it."""
        ...

    def documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`document` of many texts, end to end: (int32 ids, int64 tokens of each)."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special ids add nothing, bytes that are not UTF-8 become U+FFFD."""
        ...

    def piece(self, token_id: int) -> str:
        """What one id looks like, for people: its text, or a name such as <s> or <0x0A>."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Whether the id stands for a single byte of a character that the vocabulary lacks."""
        ...

    def bytes_per_id(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes each id adds to decoded text; 0 for special ids."""
        ...

    def save(self, folder: epath.PathLike) -> list[str]:
        """Writes the files into the folder, where `saved_tokenizer` finds them; returns their names there."""
        ...


class _WordCache(dict[str, tuple[int, ...]]):
    """Ids of words seen before. A lookup is many times faster than sentencepiece's BPE."""

    def __init__(self, processor):
        super().__init__()
        self._processor = processor

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._processor.encode(word))
        if len(word) <= CACHED_WORD_CHARS:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


class SentencePieceTokenizer:
    """A sentencepiece model: one of ours, or any other .model file (Llama 2, Mistral, Gemma, T5, ...).

    `exact` says whether decode(encode(x)) == x is promised: the model normalises nothing, adds no space and
    has all 256 bytes. `bytes_per_id` of other models is right up to the text their normaliser changes.
    `control` has the pieces that are no text, and <unk> where the model needs it for lack of bytes.
    """

    def __init__(self, model_bytes: bytes):
        self.model_bytes = model_bytes
        self.sha256 = hashlib.sha256(model_bytes).hexdigest()
        self._sp = processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model_bytes)
        self.vocab_size = processor.vocab_size()
        self.unk_id: int | None = processor.unk_id()
        self.bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
        self.eos_id = processor.eos_id() if processor.eos_id() >= 0 else None
        self.pad_id: int = processor.pad_id() if processor.pad_id() >= 0 else (self.eos_id or 0)
        self.prefix_ids: tuple[int, ...] = () if self.bos_id is None else (self.bos_id,)
        self.stop_ids: tuple[int, ...] = () if self.eos_id is None else (self.eos_id,)
        self.chat_template: str | None = None
        pieces = [processor.id_to_piece(i) for i in range(self.vocab_size)]
        self._pieces = pieces
        self._bytes = [self._bytes_of(i, piece) for i, piece in enumerate(pieces)]
        byte_ids = {value[0]: i for i, value in enumerate(self._bytes) if processor.is_byte(i)}
        self.has_bytes = bool(byte_ids)
        self.control: dict[str, int] = {
            piece: i
            for i, piece in enumerate(pieces)
            if piece and (processor.is_control(i) or (processor.is_unknown(i) and not byte_ids))
        }
        self.special: Mapping[str, int] = self.control
        longest_first = sorted(map(re.escape, self.control), key=len, reverse=True)
        self._markup = re.compile(f"({'|'.join(longest_first)})") if longest_first else None
        spec = _normalizer(model_bytes)
        self.normalizer: str = spec["name"]
        self.adds_space: bool = spec["adds_space"]
        self.exact = spec["exact"] and len(byte_ids) == 256
        # The literal U+2581 must not be read as a space: it is spelt in bytes.
        self._literal_space = [byte_ids[b] for b in SPACE.encode()] if self.exact else []
        # No piece of the vocabulary crosses from a word into the space before the next, so that words can be
        # encoded one by one. Not for unigram, where sentencepiece alone is as fast as the cache.
        separable = self.exact and not any(_PIECE_ACROSS_WORDS.search(piece) for piece in pieces)
        self._words = _WordCache(processor) if separable and spec["bpe"] else None

    def _bytes_of(self, token_id: int, piece: str) -> bytes:
        if self._sp.is_control(token_id) or self._sp.is_unknown(token_id) or self._sp.is_unused(token_id):
            return b""
        if self._sp.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def __reduce__(self):
        return SentencePieceTokenizer, (self.model_bytes,)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in one thread: parallel builds use processes."""
        with self._checking(texts):
            if not self.exact:
                return self._sp.encode(list(texts), num_threads=1)
            plain = [text for text in texts if SPACE not in text]
            if len(plain) == len(texts):
                return self._encode_plain(texts)
            encoded = iter(self._encode_plain(plain))
            return [self._encode_pieces(t) if SPACE in t else next(encoded) for t in texts]

    def encode_markup(self, text: str) -> list[int]:
        """Ids of the text, in which control pieces that are written out, such as <s>, become their ids.

        As transformers reads it; what stands between them is encoded by itself.
        """
        if self._markup is None:
            return self.encode(text)
        parts = self._markup.split(text)  # text, control piece, text, ...
        texts = iter(self.encode_batch(parts[::2]))
        return [i for n, part in enumerate(parts) for i in ([self.control[part]] if n % 2 else next(texts))]

    def encode_spans(self, text: str, *, markup: bool) -> tuple[list[int], list[Span]]:
        """Ids as of `encode_markup` or `encode`, and the characters [start, end) of the text that each stands for."""
        ids: list[int] = []
        spans: list[Span] = []
        start = 0
        for part in self._markup.split(text) if self._markup and markup else [text]:
            if markup and part in self.control:
                ids.append(self.control[part])
                spans.append((start, start + len(part)))
            else:
                found = self.encode(part)
                chars = _chars_of_bytes(part)
                places = self._byte_spans(part, found)
                if any(b >= len(chars) for _, b in places):
                    raise UserError(
                        "this sentencepiece model is damaged: its pieces have more letters than the text they were "
                        "found in. Copy it again."
                    )
                ids += found
                spans += [
                    (start + chars[a], start + (chars[b - 1] + 1 if a < b else chars[a])) for a, b in places
                ]
            start += len(part)
        return ids, spans

    def _byte_spans(self, text: str, ids: Sequence[int]) -> list[Span]:
        """The bytes of the text that each id stands for; those of a character that is spelt in bytes: all of it."""
        if self.exact:
            ends = list(itertools.accumulate(len(self._bytes[i]) for i in ids))
            return list(zip([0, *ends], ends))
        found = [(piece.begin, piece.end) for piece in self._sp.encode(text, return_type="proto").pieces]
        assert len(found) == len(ids)
        for n in range(len(ids) - 2, -1, -1):  # sentencepiece gives the character to the last of its bytes
            if found[n][0] == found[n][1] and self.is_byte(ids[n]):
                found[n] = (found[n][0], found[n + 1][1])
        return found

    @contextlib.contextmanager
    def _checking(self, texts: Sequence[str]) -> Iterator[None]:
        """Names a text that is not valid Unicode, which sentencepiece refuses in words of its own."""
        try:
            yield
        except (UnicodeEncodeError, RuntimeError, TypeError):  # which one depends on sentencepiece's version
            for text in texts:
                check_unicode(text)
            raise

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        if self._words is None:
            return self._sp.encode(list(texts), num_threads=1)
        chain, find, ids_of = itertools.chain.from_iterable, _WORD.findall, self._words.__getitem__
        return [list(chain(map(ids_of, find(text)))) for text in texts]

    def _encode_pieces(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._encode_plain(text.split(SPACE))):
            ids += self._literal_space * (i > 0) + part
        return ids

    def document(self, text: str) -> list[int]:
        """[BOS] + ids + [EOS], each where the tokenizer has it: exactly one BOS, whatever the text says."""
        bos = [] if self.bos_id is None else [self.bos_id]
        eos = [] if self.eos_id is None else [self.eos_id]
        return bos + self.encode(text) + eos

    def documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`document` of many texts, end to end: (int32 ids, int64 tokens of each)."""
        if (
            _RETURNS_ARRAYS
            and self._words is None
            and not any(self.exact and SPACE in text for text in texts)
        ):
            has: dict[str, Any] = {"add_bos": self.bos_id is not None, "add_eos": self.eos_id is not None}
            with self._checking(texts):
                arrays = self._sp.encode(list(texts), num_threads=1, return_type="numpy", **has)
            lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
            return np.concatenate(arrays) if arrays else np.empty(0, np.int32), lengths
        bos = [] if self.bos_id is None else [self.bos_id]
        eos = [] if self.eos_id is None else [self.eos_id]
        flat: list[int] = []
        lengths = []
        for ids in self.encode_batch(texts):
            flat += bos
            flat += ids
            flat += eos
            lengths.append(len(bos) + len(ids) + len(eos))
        return np.array(flat, np.int32), np.array(lengths, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special ids add nothing, bytes that are not UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        check_ids(ids, self.vocab_size)
        if self.exact:
            return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
        return self._sp.decode(ids)

    def piece(self, token_id: int) -> str:
        """The text of one id, or a name such as <s> or <0x0A>."""
        return self._pieces[token_id].replace(SPACE, " ")

    def bytes_per_id(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes each id adds to decoded text; 0 for special ids."""
        return np.array([len(b) for b in self._bytes], np.int32)

    def is_byte(self, token_id: int) -> bool:
        """Whether the id stands for a single byte of a character that the vocabulary lacks."""
        return self._sp.is_byte(token_id)

    def save(self, folder: epath.PathLike) -> list[str]:
        """Writes the model file, whose hash is `sha256`, to FOLDER/tokenizer.model."""
        write_atomic(epath.Path(folder) / TOKENIZER_FILE, self.model_bytes)
        return [TOKENIZER_FILE]


def _chars_of_bytes(text: str) -> list[int]:
    """For each byte of the text the index of its character, and their number at the end."""
    return [n for n, char in enumerate(text) for _ in char.encode()] + [len(text)]


def _normalizer(model_bytes: bytes) -> dict[str, Any]:
    """What the model does to text before it looks for pieces."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # generated at import: invisible to type checkers
    proto = messages.ModelProto.FromString(model_bytes)
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    untouched = not spec.precompiled_charsmap and not proto.denormalizer_spec.precompiled_charsmap
    exact = (
        untouched
        and spec.escape_whitespaces
        and not spec.add_dummy_prefix
        and not spec.remove_extra_whitespaces
    )
    name = "identity" if exact else spec.name or "unnamed"
    return {
        "name": name,
        "exact": exact,
        "adds_space": spec.add_dummy_prefix,
        "bpe": trainer.model_type == trainer.BPE,
    }


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises ValueError at an id that the vocabulary does not have."""
    if ids and not (0 <= min(ids) and max(ids) < vocab_size):
        raise ValueError(f"token ids must be in [0, {vocab_size}); found {min(ids)} and {max(ids)}")


def check_unicode(text: str, where: str = "the text") -> None:
    """Raises UserError at a lone surrogate, which JSON escapes and odd terminals can smuggle in."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has a lone surrogate {text[error.start]!r} at character {error.start}: not valid "
            "Unicode. Replace it with U+FFFD or drop it."
        ) from None


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer; a UserError says what is wrong with anything else.

    Args:
      path: a sentencepiece .model file; a tokenizer.json, whose neighbours tokenizer_config.json etc. are read
        too; or a folder with either, the tokenizer.json first: of a Hugging Face model, a run or a corpus.
    """
    try:
        place = reachable(path)
        is_folder = place.is_dir()
        content = (
            b"" if is_folder else read_file(path, "a .model file, a tokenizer.json, or a folder with either")
        )
    except UserError as error:
        raise UserError(f"tokenizer {error}") from None
    if not is_folder and content.lstrip()[:1] != b"{":
        return _load_model(path, content)
    from jaxlm.data.hf_files import read_tokenizer_files
    from jaxlm.data.tokenizer_hf import HFTokenizer

    try:
        return _load_folder(place) if is_folder else HFTokenizer(read_tokenizer_files(place.parent, place))
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None


def _load_model(path: epath.PathLike, content: bytes) -> SentencePieceTokenizer:
    try:
        if content:
            return SentencePieceTokenizer(content)
        reason = "it is empty"
    except Exception:  # sentencepiece and protobuf raise several unrelated types
        reason = "other content, or cut short"
        if _TIKTOKEN.match(content):
            reason = "it is one of tiktoken, whose model has a tokenizer.json too"
    raise UserError(
        f"tokenizer {path} is not a sentencepiece model ({reason}): give a .model file or a tokenizer.json, or make "
        "one with `jaxlm tokenizer train`."
    )


def _load_folder(folder: epath.Path) -> Tokenizer:
    from jaxlm.data import hf_files
    from jaxlm.data.tokenizer_hf import HFTokenizer

    if not (folder / hf_files.TOKENIZER_JSON).exists() and (saved := saved_tokenizer(folder)).is_dir():
        folder = saved
    files = hf_files.read_tokenizer_files(folder)
    if hf_files.TOKENIZER_JSON in files:
        return HFTokenizer(files)
    if hf_files.is_old_gpt2(folder):
        return HFTokenizer(hf_files.with_gpt2_json(files))
    if TOKENIZER_FILE not in files:
        raise UserError(
            f"the folder holds neither {hf_files.TOKENIZER_JSON} nor {TOKENIZER_FILE}: give a folder with one of them, "
            "or the file itself."
        )
    model = _load_model(folder / TOKENIZER_FILE, files[TOKENIZER_FILE])
    declared = {one.content for one in hf_files.additions(files) if one.token_id is not None}
    if declared <= set(model._pieces) and hf_files.chat_template(files) is None:
        return model
    # Such tokens and templates are things of Hugging Face: the model goes there.
    from jaxlm.data.sentencepiece_json import with_tokenizer_json

    return HFTokenizer(with_tokenizer_json(model, files))


def saved_tokenizer(folder: epath.PathLike) -> epath.Path:
    """Where `save` has put the tokenizer of a run or corpus: FOLDER/tokenizer/, else FOLDER/tokenizer.model."""
    files = epath.Path(folder) / TOKENIZER_FOLDER
    return files if (files / "tokenizer.json").exists() else epath.Path(folder) / TOKENIZER_FILE
