"""Labels as words of a language model, beside the chain rule done by hand on a model that is a table."""

from types import SimpleNamespace

import pytest
from standin import ByteTokenizer, history_lm, history_logits, random_table

from jaxlm.evaluate import label_words
from jaxlm.evaluate.classification import log_softmax
from jaxlm.evaluate.label_words import pick_examples, prompts_of, zero_shot
from jaxlm.infer.text import encode_prompt
from jaxlm.types import UserError

TOKENIZER = ByteTokenizer([" ham", " spam", " not", " sp", "Label:", "Text:"])
V = TOKENIZER.vocab_size
TABLE = random_table(V + 4, seed=1, scale=1.5)  # four ids pad the embedding
LM, PARAMS = history_lm(TABLE)
TEXTS = ["win a prize", "see you", "a", "call now now now"]


def loaded(num_classes=None):
    config = SimpleNamespace(model=SimpleNamespace(num_classes=num_classes))
    return SimpleNamespace(lm=LM, params=PARAMS, tokenizer=TOKENIZER, config=config)


def by_hand(prompt, label):
    """(sum of nats, number of tokens) of the label after the prompt and a space."""
    ids, nats = encode_prompt(TOKENIZER, prompt), 0.0
    tokens = TOKENIZER.encode(f" {label}")
    for token in tokens:
        nats += log_softmax(history_logits(TABLE, ids)[:V])[token]
        ids = [*ids, token]
    return nats, len(tokens)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("labels", [("ham", "spam"), ("ham", "not spam", "sparse"), ("ham",)])
def test_each_label_has_the_probability_of_its_tokens(labels, normalise):
    found = zero_shot(loaded(), TEXTS, labels, normalise=normalise, batch_size=3)
    for i, text in enumerate(TEXTS):
        for c, label in enumerate(labels):
            nats, num = by_hand(f"Text: {text}\nLabel:", label)
            assert found[i, c] == pytest.approx(nats / num if normalise else nats, rel=1e-4)


def test_examples_stand_before_each_text():
    examples = [("buy", "spam"), ("hello", "ham")]
    found = zero_shot(loaded(), ["see you"], ("ham", "spam"), "{text} is", examples)
    prompt = "buy is spam\n\nhello is ham\n\nsee you is"
    assert found[0, 1] == pytest.approx(by_hand(prompt, "spam")[0], rel=1e-4)


def test_labels_of_one_token_share_a_pass(monkeypatch):
    rows, original = [], label_words.row_logits

    def counted(lm, params, inputs, starts):
        rows.append(len(inputs))
        return original(lm, params, inputs, starts)

    monkeypatch.setattr(label_words, "row_logits", counted)
    zero_shot(loaded(), TEXTS, ("ham", "spam"))
    zero_shot(loaded(), TEXTS, ("ham", "not spam"))
    assert rows == [len(TEXTS), 2 * len(TEXTS)]


def test_long_texts_are_cut():
    prompts = prompts_of(TOKENIZER, ["abcdef"], "{text}!", [("uvwxyz", "ham")], max_text_tokens=3)
    assert prompts == ["uvw! ham\n\nabc!"]


def test_examples_are_taken_in_turn_over_the_labels():
    pairs = [("a", "ham"), ("b", "ham"), ("c", "ham"), ("d", "spam"), ("e", "ham")]
    assert pick_examples(pairs, ("ham", "spam"), 3) == [("a", "ham"), ("d", "spam"), ("b", "ham")]


def test_a_classifier_and_a_template_without_the_text_are_refused():
    with pytest.raises(UserError, match="A classifier writes no labels"):
        zero_shot(loaded(num_classes=2), TEXTS, ("ham", "spam"))
    for template in ("Label:", "{text} {text}"):
        with pytest.raises(UserError, match="must hold"):
            zero_shot(loaded(), TEXTS, ("ham", "spam"), template)
