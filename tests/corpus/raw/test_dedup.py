"""Copies: which documents go, whichever way they are compared; against datatrove and against all pairs by hand."""

import random

import numpy as np
import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document

from jaxlm.corpus.raw.config import DedupConfig
from jaxlm.corpus.raw.dedup import (
    ChooseCopies,
    FindPairs,
    choose_copies,
    dedup_folder,
    find_pairs,
    removed_file,
)
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.minhash import Signatures, words_of
from jaxlm.corpus.raw.read import WriteUnits, num_columns, read_documents
from jaxlm.corpus.raw.tokens import kept_documents
from jaxlm.corpus.raw.work import RawUnit, result_of
from jaxlm.data.checksums import npy
from jaxlm.data.npy import read_npy

VOCABULARY = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "re", "sta") for b in ("ba", "den", "fu", "gul", "ho")
]


def words(seed, count=120):
    return random.Random(seed).choices(VOCABULARY, k=count)


def changed(seed, share):
    """A document and one that differs from it in a share of its words."""
    text = words(seed)
    for place in random.Random(seed + 1).sample(range(len(text)), int(share * len(text))):
        text[place] = "other"
    return " ".join(text)


def built(tmp_path, groups, dedup):
    """Units with these texts, compared; (units, folder of the comparison)."""
    output = str(tmp_path)
    units = [RawUnit(source, (), f"key{index}") for index, (source, _) in enumerate(groups)]
    for rank, (_, texts) in enumerate(groups):
        documents = (Document(text=text, id=f"{rank}-{i}") for i, text in enumerate(texts))
        WriteUnits(units, output, dedup, Account()).run(documents, rank)
    for column in range(num_columns(dedup)):
        FindPairs(units, output, dedup).run(rank=column)
    ChooseCopies(units, output, dedup).run()
    return units, dedup_folder(output, units, dedup)


def removed(units, folder):
    return [read_npy(removed_file(folder, unit)).tolist() for unit in units]


@pytest.mark.parametrize("memory_gib", [1.0, 1e-6])  # in one pass, and in many
def test_of_each_group_the_first_document_stays(tmp_path, memory_gib):
    a, b = " ".join(words(1)), " ".join(words(2))
    near_a = changed(1, 0.01)
    groups = [("wiki", [a, "too short", b]), ("crawl", [near_a, "new words only here", b, "too short"])]
    units, folder = built(tmp_path, groups, DedupConfig(memory_gib=memory_gib))
    assert removed(units, folder) == [[], [0, 2, 3]]
    assert result_of(folder)["removed"] == {"key0": {"exact": 0, "near": 0}, "key1": {"exact": 2, "near": 1}}
    kept = [document["id"] for unit in units for document in kept_documents(unit, str(tmp_path), folder)]
    assert kept == ["0-0", "0-1", "0-2", "1-1"]


def test_groups_are_joined_over_columns(tmp_path):
    # 5 - 1 in one column, 1 - 3 and 7 - 5 in others: all are copies of 1.
    pairs = [[[1, 5]], [[1, 3], [5, 7]], [[2, 4]], []]
    files = []
    for number, rows in enumerate(pairs):
        files.append(str(tmp_path / f"{number}.npy"))
        (tmp_path / f"{number}.npy").write_bytes(npy(np.array(rows, np.uint64).reshape(-1, 2)))
    goes, stays = choose_copies(files)
    assert goes.tolist() == [3, 4, 5, 7]
    assert stays.tolist() == [1, 2, 1, 1]


def test_copies_in_other_sources_stay_where_each_is_compared_by_itself(tmp_path):
    text = " ".join(words(3))
    groups = [("a", [text, text]), ("b", [text, text])]
    assert removed(*built(tmp_path / "all", groups, DedupConfig())) == [[1], [0, 1]]
    assert removed(*built(tmp_path / "each", groups, DedupConfig(across_sources=False))) == [[1], [1]]


def test_without_exact_and_without_minhash_nothing_goes(tmp_path):
    text = " ".join(words(4))
    none = DedupConfig(exact=False, minhash=False)
    assert removed(*built(tmp_path / "none", [("a", [text, text])], none)) == [[]]
    exact = DedupConfig(minhash=False)
    assert removed(*built(tmp_path / "exact", [("a", [text, changed(4, 0.01), text])], exact)) == [[2]]


def test_case_accents_and_digits_make_no_difference_to_phrases():
    assert words_of("Café-Crème, 12 €!") == words_of("CAFE  creme 34") == [b"cafe", b"creme", b"00"]
    assert words_of("ক্ষুদ্র বাংলা") == words_of("ক্ষুদ্র\u200c বাংলা।")
    assert words_of("漢字 ab") == ["漢".encode(), "字".encode(), b"ab"]
    assert words_of("naïve words") == [b"naive", b"words"]  # an ASCII text has the same words
    assert words_of("naive words") == [b"naive", b"words"]


def test_the_share_of_equal_hashes_is_the_share_of_common_phrases():
    # Of 112 hashes: a standard deviation of 0.04, of the mean of 100 pairs 0.004.
    signatures, random_ = Signatures(DedupConfig()), np.random.default_rng(0)
    errors = []
    for _ in range(100):
        common, left, right = (random_.integers(0, 1 << 63, n, np.uint64) for n in (300, 50, 50))
        one, two = (signatures._lowest(np.concatenate([common, own]).reshape(-1, 1)) for own in (left, right))
        errors.append((one == two).mean() - 300 / 400)
    assert abs(np.mean(errors)) < 0.015
    assert 0.03 < np.std(errors) < 0.055


def jaccard(one, two, n=5):
    first, second = (
        {tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (words_of(one), words_of(two))
    )
    return len(first & second) / len(first | second)


def test_decisions_agree_with_all_pairs_compared_by_hand(tmp_path):
    texts = [" ".join(words(seed)) for seed in range(60)]
    texts += [changed(seed, share) for seed in range(60) for share in (0.01, 0.02, 0.05, 0.2)]
    units, folder = built(tmp_path, [("a", texts)], DedupConfig())
    gone = set(removed(units, folder)[0])
    for seed in range(60):
        for number, share in enumerate((0.01, 0.02, 0.05, 0.2)):
            place = 60 + 4 * seed + number
            alike = jaccard(texts[seed], texts[place])
            if alike > 0.88:  # found with probability 0.9995
                assert place in gone, (seed, share, alike)
            if alike < 0.3:  # with probability 0.0009
                assert place not in gone, (seed, share, alike)
    assert not gone & set(range(60))


def test_datatrove_finds_the_same_copies(tmp_path):
    """Where the decision is clear (documents that are nearly equal, or not alike at all)."""
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig

    from jaxlm.corpus.raw.words import UnicodeWords

    texts = [" ".join(words(seed)) for seed in range(30)]
    texts += [changed(seed, 0.01) for seed in range(0, 30, 3)]
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
    folder = str(tmp_path / "datatrove")
    MinhashDedupSignature(f"{folder}/sig", config, language=UnicodeWords()).run(iter(documents))
    for bucket in range(14):
        MinhashDedupBuckets(f"{folder}/sig", f"{folder}/buckets", config=config).run(None, bucket, 14)
    MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config).run()
    kept = [int(d.id) for d in MinhashDedupFilter(f"{folder}/remove").run(iter(documents))]
    theirs = {min(i % 30, i) if i < 30 else (i - 30) * 3 for i in kept}
    units, ours = built(tmp_path / "ours", [("a", texts)], DedupConfig())
    gone = removed(units, ours)[0]
    assert gone == list(range(30, 40))
    assert theirs == set(range(30))
    assert len(kept) == 30


def test_pairs_do_not_depend_on_the_number_of_passes(tmp_path):
    texts = [" ".join(words(seed % 7)) for seed in range(40)]
    units, _ = built(tmp_path, [("a", texts[:20]), ("b", texts[20:])], DedupConfig())
    every = [
        np.concatenate(list(find_pairs(units, str(tmp_path), 3, DedupConfig(memory_gib=gib))))
        for gib in (1.0, 1e-6, 4e-7)
    ]
    assert len(every[0]) == 33
    for other in every[1:]:
        assert sorted(map(tuple, other)) == sorted(map(tuple, every[0]))


def test_documents_come_back_as_they_were_written(tmp_path):
    texts = ["a\u2028b\x85c", 'tab\tquote"\\', "বাংলা \U0001f600", "x" * 3_000_000]
    units = [RawUnit("a", (), "key")]
    documents = (
        Document(text=text, id=str(i), metadata={"url": None, "title": "t"}) for i, text in enumerate(texts)
    )
    WriteUnits(units, str(tmp_path), DedupConfig(), Account()).run(documents, 0)
    found = list(read_documents(units[0].folder(str(tmp_path))))
    assert [row["text"] for row in found] == texts
    assert found[0] == {"text": texts[0], "id": "0", "title": "t"}
