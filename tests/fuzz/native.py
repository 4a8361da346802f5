"""Good files of formats that libraries in C++ and Rust read, and their damage: for processes that may crash."""

import functools
import io
import json
import random
from pathlib import Path

from hostile import NAMES, changed, places, random_damage

ODD = [
    None,
    True,
    -1,
    0,
    5,
    2**31,
    2**63,
    0.5,
    1e308,
    "",
    "a",
    "\u2581",
    "<0x00>",
    [],
    {},
    [[]],
    ["a", 1],
    *NAMES[:8],
]


@functools.cache
def parquet() -> bytes:
    """Two row groups, dictionary and plain pages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "instruction": ["a", "b", None] * 20,
            "output": [f"text {i}" for i in range(60)],
            "n": list(range(60)),
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=30, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def read_damaged_parquet(folder: Path, rng: random.Random) -> None:
    from jaxlm.corpus.inputs import find_inputs, plan_units
    from jaxlm.corpus.readers import read_documents
    from jaxlm.corpus.records import read_all
    from jaxlm.corpus.text import ReadOptions, Tally

    path = folder / "a.parquet"
    path.write_bytes(random_damage(rng, parquet()))
    if rng.random() < 0.5:
        for _ in read_all(str(path), "strict", Tally()):
            pass
        return
    options = ReadOptions(text_key="output")
    for unit in plan_units(find_inputs([str(path)], Tally()), options):
        for part in unit:
            for _ in read_documents(part, options, Tally()):
                pass


@functools.cache
def arrayrecord(folder: Path) -> bytes:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / "good.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(20):
        writer.write(json.dumps({"text": f"text {i}" * 5}).encode())
    writer.close()
    return path.read_bytes()


def read_damaged_arrayrecord(folder: Path, rng: random.Random) -> None:
    from jaxlm.corpus.inputs import find_inputs, plan_units
    from jaxlm.corpus.readers import read_documents
    from jaxlm.corpus.text import ReadOptions, Tally

    path = folder / "a.arrayrecord"
    path.write_bytes(random_damage(rng, arrayrecord(folder)))
    options = ReadOptions()
    for unit in plan_units(find_inputs([str(path)], Tally()), options):
        for part in unit:
            for _ in read_documents(part, options, Tally()):
                pass


@functools.cache
def models() -> list[bytes]:
    """Sentencepiece: BPE and unigram of ours, and one with a normaliser."""
    import sentencepiece

    from jaxlm.data.tokenizer_training import train_tokenizer

    texts = [
        "the quick brown fox jumps over the lazy dog",
        *(f"pack my box with {i} liquor jugs" for i in range(99)),
    ]
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, vocab_size=50, model_type="unigram", minloglevel=2,
        normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    return [train_tokenizer(texts, "bpe", 300), train_tokenizer(texts, "unigram", 290), file.getvalue()]


def _changed_model(rng: random.Random, base: bytes) -> bytes:
    """Damage to the fields of a model, where bytes alone would mostly break the encoding of all."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(base)
    for _ in range(rng.randrange(1, 4)):
        piece = rng.choice(proto.pieces)
        how = rng.randrange(7)
        if how == 0:
            charsmap = bytearray(proto.normalizer_spec.precompiled_charsmap or rng.randbytes(2000))
            for _ in range(rng.choice([1, 30, 1000])):
                charsmap[rng.randrange(len(charsmap))] = rng.randrange(256)
            proto.normalizer_spec.precompiled_charsmap = bytes(charsmap)
        elif how == 1:
            proto.trainer_spec.model_type = rng.choice([1, 2, 3, 4])
        elif how == 2:
            piece.type = rng.choice([1, 2, 3, 4, 5, 6])
        elif how == 3:
            piece.piece = rng.choice(["", "a", "<0x00>", "\u2581" * 9, "\0", "é"])
        elif how == 4:
            piece.score = rng.choice([float("nan"), float("inf"), -1e38, 0.0])
        elif how == 5:
            proto.trainer_spec.byte_fallback = not proto.trainer_spec.byte_fallback
        else:
            proto.normalizer_spec.escape_whitespaces = not proto.normalizer_spec.escape_whitespaces
    return proto.SerializeToString()


def read_damaged_model(folder: Path, rng: random.Random) -> None:
    from jaxlm.data.sentencepiece_json import tokenizer_json
    from jaxlm.data.tokenizer import load_tokenizer

    base = rng.choice(models())
    path = folder / "tokenizer.model"
    path.write_bytes(rng.choice([random_damage, _changed_model])(rng, base))
    tokenizer = load_tokenizer(path)
    use(tokenizer)
    tokenizer_json(tokenizer)


@functools.cache
def checkpoint(folder: Path):
    """(abstract state, folder of a good step)."""
    from checkpoint_states import abstract, save_steps

    states = save_steps(folder / "good", [1])
    return abstract(states[1]), folder / "good"


def read_damaged_checkpoint(folder: Path, rng: random.Random) -> None:
    """Its arrays, which TensorStore reads, under a seal that fits again."""
    import shutil

    from checkpoint_states import KEEP_ALL

    from jaxlm import checkpoint_integrity as integrity
    from jaxlm.checkpoint import Checkpoints

    wanted, good = checkpoint(folder)
    shutil.rmtree(folder / "bad", ignore_errors=True)
    shutil.copytree(good, folder / "bad")
    step = folder / "bad" / "1"
    path = rng.choice(
        sorted(path for path in (step / "state").rglob("*") if path.is_file() and path.stat().st_size)
    )
    path.write_bytes(random_damage(rng, path.read_bytes()))
    (step / integrity.SEAL).unlink()
    integrity.seal(step)
    with Checkpoints(folder / "bad", KEEP_ALL) as checkpoints:
        checkpoints.restore(wanted)


def use(tokenizer) -> None:
    """What is done with a tokenizer."""
    for text in ("the quick brown", "a\u2581b é 😀", "", "x" * 500, "<s>\0"):
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)
        tokenizer.encode_markup(text)
        tokenizer.encode_spans(text, markup=True)
        tokenizer.documents([text])
    tokenizer.bytes_per_id()


def read_damaged_hf(folder: Path, rng: random.Random) -> None:
    import small_tokenizers

    from jaxlm.data.tokenizer import load_tokenizer

    kind = rng.choice(["level", "metaspace", "unigram"])
    made = getattr(small_tokenizers, kind, small_tokenizers.level)()
    name = rng.choice(sorted(made))
    for file, content in made.items():
        if file == name and rng.random() < 0.2:
            content = random_damage(rng, content)
        elif file == name and file.endswith(".json"):
            value = json.loads(content)
            for _ in range(rng.randrange(1, 4)):
                deep = rng.randrange(2, 6)
                path = rng.choice([p for p in places(value) if 0 < len(p) <= deep] or [()])
                value = changed(value, path, rng.choice(ODD)) if path else value
            content = json.dumps(value).encode()
        (folder / file).write_bytes(content)
    use(load_tokenizer(folder))


def read_damaged_raw_parquet(folder: Path, rng: random.Random) -> None:
    from jaxlm.corpus.raw.document import Account
    from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
    from jaxlm.corpus.raw.rows import read_rows

    path = folder / "a.parquet"
    path.write_bytes(random_damage(rng, parquet()))
    file = RawFile(str(path), path.name, "parquet", "", path.stat().st_size, "")
    for _ in read_rows(RawPart(file, 0, file.num_bytes), RawOptions(text_key="output"), Account()):
        pass
