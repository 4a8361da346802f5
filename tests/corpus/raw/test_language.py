"""Identifying languages, on sentences written out here."""

import pickle
import sys

import pytest
from datatrove.data import Document

from jaxlm.corpus.raw import language
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import FilterConfig
from jaxlm.corpus.raw.language import SAMPLE_CHARS, LanguageIdentifier, LanguageStep, windows
from jaxlm.corpus.raw.language_codes import short_code
from jaxlm.types import UserError

SENTENCES = {
    "en": "The old harbour lies behind the hill, and every evening the boats come home with fish.",
    "bn": "পাহাড়ের পিছনে পুরানো বন্দর, আর প্রতি সন্ধ্যায় নৌকাগুলি মাছ নিয়ে ঘরে ফেরে।",
    "de": "Der alte Hafen liegt hinter dem Hügel, und jeden Abend kommen die Boote mit Fischen heim.",
    "fr": "Le vieux port se trouve derrière la colline, et chaque soir les bateaux rentrent avec du poisson.",
    "es": "El viejo puerto está detrás de la colina y cada tarde los barcos vuelven con pescado.",
    "hi": "पुराना बंदरगाह पहाड़ी के पीछे है और हर शाम नावें मछली लेकर घर लौटती हैं।",
    "ru": "Старая гавань лежит за холмом, и каждый вечер лодки возвращаются домой с рыбой.",
    "zh": "旧港口在山后，每天晚上船只都带着鱼回家，孩子们在岸边等着他们的父亲。",
    "ja": "古い港は丘の向こうにあり、毎晩、船は魚を積んで帰ってきます。",
    "ar": "الميناء القديم يقع خلف التل وفي كل مساء تعود القوارب إلى البيت بالسمك.",
    "ta": "பழைய துறைமுகம் மலைக்குப் பின்னால் உள்ளது, ஒவ்வொரு மாலையும் படகுகள் மீன்களுடன் வீடு திரும்புகின்றன.",
}


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier()


def run(step, *documents):
    return [document.id for document in step(iter(documents))]


@pytest.mark.parametrize("code", SENTENCES)
def test_each_language_is_identified(code, identifier, no_network):
    found, score = identifier.identify(SENTENCES[code])
    assert (found, score > 0.65) == (code, True)


@pytest.mark.parametrize("text", ["", " \n ", "!!! ... 12345 6789 ???", "\ufeff", "1" * 1000])
def test_what_is_no_language_is_undetermined(text, identifier):
    assert identifier.identify(text) == ("und", pytest.approx(0.1, abs=0.1))


def test_a_long_text_is_identified_by_a_bounded_sample(identifier):
    text = SENTENCES["bn"] + "\n" + " ".join([SENTENCES["en"]] * 200_000)
    assert len(text) > 16 << 20
    assert sum(map(len, windows(text))) <= SAMPLE_CHARS
    assert identifier.identify(text)[0] == "en"
    assert windows("x" * (16 << 20)) == ["x" * (SAMPLE_CHARS // 3)] * 3


def test_a_page_is_not_taken_for_the_language_of_its_menu(identifier):
    menu = "Home | About us | Contact | Log in | Subscribe to our newsletter | Terms and conditions | " * 2
    code, score = identifier.identify(menu + "\n".join([SENTENCES["bn"]] * 20))
    assert code == "bn"
    assert 0.6 < score < 0.75


def test_documents_in_other_languages_are_dropped_and_shown():
    account = Account()
    step = LanguageStep(FilterConfig(languages="en,bn"), account)
    documents = [Document(text, code) for code, text in SENTENCES.items()]
    assert run(step, *documents) == ["en", "bn"]
    assert account.dropped == {"language_other": len(SENTENCES) - 2}
    assert account.examples["language_other"][0].startswith("de: de 1.00: Der alte Hafen")
    assert [documents[0].metadata["language"], documents[1].metadata["language"]] == ["en", "bn"]


def test_a_document_that_may_be_of_its_language_is_dropped_as_unsure():
    account = Account()
    step = LanguageStep(FilterConfig(languages="en", language_threshold=0.999999), account)
    score = LanguageIdentifier().identify("Hello there, world")[1]
    assert score < 0.999999
    assert run(step, Document("Hello there, world", "short")) == []
    assert account.dropped == {"language_unsure": 1}


def test_without_languages_every_document_is_kept_and_labelled():
    step = LanguageStep(FilterConfig(language_threshold=1.0))
    documents = [Document(SENTENCES["hi"], "hi"), Document("", "empty")]
    assert run(step, *documents) == ["hi", "empty"]
    assert documents[0].metadata["language"] == "hi"


def test_the_language_that_a_source_states_is_taken():
    step = LanguageStep(FilterConfig(languages="bn"))
    assert run(step, Document(SENTENCES["en"], "stated", metadata={"language": "bn"})) == ["stated"]


def test_predict_answers_as_datatrove_asks():
    best, scores = LanguageIdentifier(languages=["bn", "de"]).predict(Document(SENTENCES["de"], "x"))
    assert best == ("de", scores["de"])
    assert scores["bn"] == 0.0
    identifier = pickle.loads(pickle.dumps(LanguageIdentifier()))
    assert identifier.identify(SENTENCES["fr"])[0] == "fr"


def test_what_cannot_work_is_said_at_the_start(monkeypatch, tmp_path):
    with pytest.raises(
        UserError, match="languages has xx, which the identifier does not know. It knows .*bn"
    ):
        LanguageIdentifier(languages=["xx", "en"]).check()
    language._open_py3langid.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match="needs py3langid: pip install"):
        LanguageIdentifier().check()
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(UserError, match="needs fastText: pip install"):
        LanguageIdentifier(str(tmp_path / "lid.bin")).check()


class FakeFasttext:
    """Stands in for the package: says what its file says."""

    def __init__(self, path):
        with open(path) as file:
            self.labels = file.read().split()
        if not self.labels:
            raise ValueError("has wrong file format")

    def predict(self, text, k):
        assert "\n" not in text
        return (self.labels[0],), [1.00003]


def test_a_fasttext_model_of_this_machine(monkeypatch, tmp_path):
    fake = type(sys)("fasttext")
    fake.load_model = FakeFasttext
    monkeypatch.setitem(sys.modules, "fasttext", fake)
    with pytest.raises(UserError, match="is not a file. Nothing is downloaded"):
        LanguageIdentifier(str(tmp_path / "lid.bin")).check()
    (tmp_path / "bad.bin").write_text("")
    with pytest.raises(UserError, match="is no fastText model: has wrong file format"):
        LanguageIdentifier(str(tmp_path / "bad.bin")).check()
    (tmp_path / "lid.bin").write_text("__label__ben_Beng __label__eng_Latn")
    identifier = LanguageIdentifier(str(tmp_path / "lid.bin"), ["bn"])
    identifier.check()
    assert identifier.identify("some\ntext") == ("bn", 1.0)


@pytest.mark.parametrize("languages", ["EN", "english", "en,,bn", "en bn", "e"])
def test_bad_codes_are_refused(languages):
    with pytest.raises(UserError, match="is no ISO 639 code"):
        FilterConfig(languages=languages)
    assert language.language_codes(" en, bn ") == ("en", "bn")


@pytest.mark.parametrize("stated", ["eng", "en-US", "EN_gb", "__label__eng_Latn", " en "])
def test_a_stated_language_is_compared_in_one_code(stated):
    """Common Crawl's WET files say `eng`: with filters.languages=en all of them would go."""
    document = Document(SENTENCES["de"], "stated", metadata={"language": stated})
    assert run(LanguageStep(FilterConfig(languages="eng,bn")), document) == ["stated"]
    assert document.metadata["language"] == "en"


@pytest.mark.parametrize("stated", ["und", "zxx", "unknown", "", "Deutsch", "123", "x-klingon"])
def test_what_states_no_language_is_identified(stated):
    document = Document(SENTENCES["de"], "stated", metadata={"language": stated})
    assert run(LanguageStep(FilterConfig(languages="de")), document) == ["stated"]


def test_codes_of_three_letters_of_both_kinds_have_one_of_two():
    codes = ["deu", "ger", "zho", "chi", "ben", "nob", "arz", "yue"]
    assert [short_code(code) for code in codes] == ["de", "de", "zh", "zh", "bn", "nb", "arz", "yue"]
