"""Promises of `jaxlm tokenizer`: a model file that works, a report whose numbers are right and fit a page."""

import argparse
import json

import pytest
from small_tokenizers import level

from jaxlm.cli import tokenizer as cli
from jaxlm.corpus import embedded
from jaxlm.corpus.tokenizer_report import Report, script_of
from jaxlm.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.types import UserError


def run(*argv, config_argv=()):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.main(parser.parse_args([str(arg) for arg in argv]), list(config_argv))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "a.model"
    assert run("train", "--input", "embedded:topics", "--output", path, "--vocab-size", 600) == 0
    return path


def test_train_writes_a_model_of_the_size_asked_for_and_prints_its_hash(model, capsys, tmp_path):
    assert load_tokenizer(model).vocab_size == 600
    run("train", "--input", "embedded:topics", "--output", tmp_path / "b.model", "--vocab-size", 600)
    assert load_tokenizer(model).sha256 in capsys.readouterr().out
    assert (tmp_path / "b.model").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_train_makes_every_kind(kind, tmp_path):
    run("train", "--input", "embedded:licences", "--output", tmp_path / "a.model", "--kind", kind,
        "--vocab-size", 400)  # fmt: skip
    text = embedded.texts("embedded:licences")[0]
    tokenizer = load_tokenizer(tmp_path / "a.model")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_train_reads_at_most_max_bytes_evenly(tmp_path, monkeypatch):
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": f"{i} " * 100}) + "\n" for i in range(10_000))
    seen = []
    monkeypatch.setattr(
        "jaxlm.data.tokenizer_training.train_tokenizer",
        lambda texts, *a: seen.extend(texts) or train_tokenizer(["a"], "char", 0),
    )
    run("train", "--input", tmp_path / "a.jsonl", "--output", tmp_path / "a.model", "--max-bytes", 300_000)
    assert 270_000 < sum(map(len, seen)) < 330_000
    assert {int(text.split()[0]) // 2500 for text in seen} == {0, 1, 2, 3}


def test_train_refuses_a_vocabulary_without_room_and_writes_nothing(tmp_path):
    for size in (259, 100_000):
        with pytest.raises(UserError, match=f"vocab.size={size}"):
            run(
                "train",
                "--input",
                "embedded:licences",
                "--output",
                tmp_path / "a.model",
                "--vocab-size",
                size,
            )
    assert not (tmp_path / "a.model").exists()


def test_train_refuses_an_empty_output_before_it_reads():
    with pytest.raises(UserError, match="--output is empty"):
        run("train", "--input", "/no/such", "--output", "")


def test_train_makes_the_folder_and_refuses_one_before_it_reads(tmp_path):
    run(
        "train", "--input", "embedded:licences", "--output", tmp_path / "new" / "a.model", "--vocab-size", 300
    )
    assert (tmp_path / "new" / "a.model").exists()
    with pytest.raises(UserError, match="is a folder: name the file in it"):
        run("train", "--input", "nowhere.txt", "--output", tmp_path)


@pytest.mark.parametrize("number", ["nan", "0", "-5"])
def test_max_bytes_must_be_positive(number, tmp_path):
    with pytest.raises(UserError, match=f"--max-bytes={number} must be at least 1"):
        run(
            "train", "--input", "embedded:licences", "--output", tmp_path / "a.model", f"--max-bytes={number}"
        )


def test_config_flags_are_refused(model):
    with pytest.raises(UserError, match="--config=quickstart: `jaxlm tokenizer` takes no --config"):
        run("report", "--tokenizer", model, "embedded:licences", config_argv=["--config=quickstart"])


def test_report_numbers_are_those_of_a_count_by_hand(tmp_path, capsys):
    tokenizer = SentencePieceTokenizer(train_tokenizer(["lion zoo"], "char", 0))
    (tmp_path / "a.model").write_bytes(tokenizer.model_bytes)
    (tmp_path / "a.txt").write_text("lion zoo\nzoo é")
    (tmp_path / "b.txt").write_text("oil")
    run("report", "--tokenizer", tmp_path / "a.model", tmp_path / "a.txt", tmp_path / "b.txt", "--json")
    report = json.loads(capsys.readouterr().out)
    # l i o n _ z o o (newline, a byte) z o o _ (two bytes of é): 15 tokens, 3 of them bytes
    first = report["files"]["a.txt"]
    assert (first["documents"], first["bytes"], first["words"], first["tokens"]) == (1, 15, 4, 15)
    assert first["byte_fallback_share"] == 3 / 15
    assert first["tokens_per_word"] == 15 / 4
    assert first["unknown_share"] == 0
    assert first["round_trip_exact"]
    assert first["vocabulary_use"] == (6 + 3) / tokenizer.vocab_size
    assert report["total"]["tokens"] == 18
    assert report["total"]["bytes_per_token"] == 1.0
    assert report["scripts"]["Latin"]["words"] == 5


def test_report_says_what_a_normalising_model_loses(tmp_path, capsys):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the lion is in the zoo"] * 10), model_writer=model, vocab_size=30, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "a.model").write_bytes(model.getvalue())
    (tmp_path / "a.txt").write_text("the lion\n\nis  in\nQ")
    run("report", "--tokenizer", tmp_path / "a.model", tmp_path / "a.txt")
    text = capsys.readouterr().out
    assert "nmt_nfkc" in text
    assert "1 of 1 documents change, 3 newlines lost" in text
    run("report", "--tokenizer", tmp_path / "a.model", tmp_path / "a.txt", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["unknown_share"] > 0
    assert not report["total"]["round_trip_exact"]


def test_report_fits_100_columns_and_names_scripts(model, tmp_path, capsys):
    (tmp_path / ("a_rather_long_file_name_" * 4 + ".txt")).write_text("আমার সোনার বাংলা\nthe lion 123 日本語 ...")
    run("report", "--tokenizer", model, tmp_path, "embedded:topics", "embedded:licences")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for part in ("Latin", "numbers", "embedded:topics", "all", "decode(encode(text)): exact"):
        assert part in text
    run("report", "--tokenizer", model, tmp_path)
    text = capsys.readouterr().out
    assert "Bengali" in text
    assert "Chinese" in text


def test_report_on_nothing_is_an_error(model, tmp_path):
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(UserError, match="no document"):
        run("report", "--tokenizer", model, tmp_path)


def test_scripts_of_words():
    words = {"the": "Latin", "ক্‌ষ": "Bengali", "(кот": "Cyrillic", "12": "numbers", "...": "symbols",
             "مرحبا": "Arabic", "漢字": "Chinese", "かな": "Japanese", "한국": "Hangul", "1st": "Latin"}  # fmt: skip
    assert {word: script_of(word) for word in words} == words


def test_rare_scripts_are_summed_up(model):
    report = Report(load_tokenizer(model))
    report.add("x", ["the lion is here " * 1000 + "кот"])
    assert list(report.scripts()) == ["Latin", "others"]
    assert report.scripts()["others"].words == 1


def test_report_on_a_hugging_face_tokenizer(tmp_path, capsys):
    for name, content in level().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a.txt").write_text("the lion\n<|end|>é\u20ad")
    run("report", "--tokenizer", tmp_path, tmp_path / "a.txt", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["tokenizer"]["normalizer"] == "identity"
    assert report["tokenizer"]["vocab_size"] == 505
    assert report["total"]["round_trip_exact"]
    assert report["total"]["unknown_share"] == 0
    assert report["total"]["bytes"] == len("the lion\n<|end|>") + 2 + 3
    assert report["total"]["byte_fallback_share"] > 0
    run("report", "--tokenizer", tmp_path / "tokenizer.json", tmp_path / "a.txt")
    assert "505 pieces, normaliser identity" in capsys.readouterr().out
