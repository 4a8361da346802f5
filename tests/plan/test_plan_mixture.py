"""GPT-3's table to the last published digit; caps and needs; mixtures as files."""

import itertools
import math
from fractions import Fraction

import pytest

from jaxlm.plan.mixture import MixtureTable, Source, cap_epochs, needs, published
from jaxlm.plan.mixture_file import read_mixture
from jaxlm.plan.mixture_report import mixture_report
from jaxlm.types import UserError

GPT3 = {
    # tokens, weight, published epochs; formula, difference, low, high, weights / 101 %, drawn, implied weight
    "CommonCrawl": (410e9, 60, 0.44, 0.439, 0.002, 0.435, 0.443, 0.435, 180.40, 60.1),
    "WebText2": (19e9, 22, 2.9, 3.474, -0.165, 3.31, 3.65, 3.439, 55.10, 18.4),
    "Books1": (12e9, 8, 1.9, 2.000, -0.050, 1.80, 2.22, 1.980, 22.80, 7.6),
    "Books2": (55e9, 8, 0.43, 0.436, -0.015, 0.405, 0.468, 0.432, 23.65, 7.9),
    "Wikipedia": (3e9, 3, 3.4, 3.000, 0.133, 2.14, 4.20, 2.970, 10.20, 3.4),
}
"""Table 2.2 of arXiv:2005.14165, and what follows from it, computed apart from this code."""


def mixture(*sources, budget_tokens=100.0):
    return MixtureTable("test", tuple(Source(*source) for source in sources), budget_tokens)


def capped(table, **max_epochs):
    return {name: float(share) for name, share in cap_epochs(table, table.shares()[0], max_epochs).items()}


def test_gpt3s_table_is_the_papers():
    table = read_mixture("gpt3")
    assert table.budget_tokens == 300e9
    assert {s.name: (s.tokens, s.weight, s.published_epochs) for s in table.sources} == {
        name: row[:3] for name, row in GPT3.items()
    }


@pytest.mark.parametrize("name", GPT3)
def test_gpt3s_epochs_are_recomputed(name):
    found = published(read_mixture("gpt3"))[name]
    formula, difference, low, high, normalised, drawn, implied = GPT3[name][3:]
    assert round(found.formula, 3) == formula
    assert round(found.difference, 3) == difference
    digits = 3 if low < 1 else 2
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)
    assert round(found.normalised, 3) == normalised
    assert round(found.drawn_tokens / 1e9, 2) == drawn
    assert round(found.implied_weight, 1) == implied
    assert found.is_rounding == (name != "WebText2")


def test_what_does_not_add_up_in_gpt3s_table_is_named():
    report = mixture_report(read_mixture("gpt3"))
    notes = [note for table in report.tables for note in table.notes]
    assert "The weights add to 101%, not to 100%." in notes
    assert any("WebText2's 2.9 epochs imply 18.4% of the tokens, not 22%" in note for note in notes)
    assert not any("Wikipedia's" in note for note in notes)
    assert "The published epochs account for 292B of 300B tokens." in notes
    assert report.data["published_drawn_tokens"] == pytest.approx(292.15e9, rel=1e-12)
    assert report.data["weight_sum"] == 101
    assert report.warnings == [
        "GPT-3: the weights sum to 101, not to 1 (or 100); each was multiplied by 0.00990099: Books1 0.07921, Books2 "
        "0.07921, CommonCrawl 0.5941, WebText2 0.2178, Wikipedia 0.0297."
    ]


def test_epochs_are_share_times_budget_over_tokens():
    table = mixture(("web", 3, 200.0), ("books", 1, 5.0), ("unused", 0, 10.0))
    shares, warning = table.shares()
    assert shares == {"web": Fraction(3, 4), "books": Fraction(1, 4), "unused": 0}
    assert "sum to 4" in warning
    assert table.drawn(shares) == {"web": 75, "books": 25, "unused": 0}
    assert table.epochs(shares) == {"web": 0.375, "books": 5.0, "unused": 0.0}


def test_what_a_cap_cuts_off_goes_to_the_others_in_proportion():
    table = mixture(("web", 60, 1000.0), ("books", 30, 10.0), ("wiki", 10, 1000.0))
    # books give 10 of 100; the other 90 are shared 6 : 1.
    assert capped(table, books=1) == pytest.approx({"web": 0.9 * 6 / 7, "books": 0.1, "wiki": 0.9 / 7})


def test_a_cap_that_breaks_only_after_the_first_spread_is_kept_too():
    table = mixture(("web", 60, 1000.0), ("books", 30, 10.0), ("wiki", 10, 12.0))
    # After books is cut to 10, wiki would get 12.86 of its 12.
    assert capped(table, books=1, wiki=1) == pytest.approx({"web": 0.78, "books": 0.1, "wiki": 0.12})


def test_no_cap_is_ever_broken_and_nothing_is_lost():
    sizes, limits = (3.0, 10.0, 40.0, 90.0), (0.5, 1.0, 2.0, 4.0)
    for weights, order in itertools.product(itertools.permutations((50, 30, 15, 5)), (limits, limits[::-1])):
        table = mixture(*zip("abcd", weights, sizes), budget_tokens=60.0)
        caps = dict(zip("abcd", order))
        after = cap_epochs(table, table.shares()[0], caps)
        assert sum(after.values()) == 1
        epochs = table.epochs(after)
        assert all(epochs[name] <= caps[name] for name in caps)
        free = {
            name: after[name] / weight for name, weight in zip("abcd", weights) if epochs[name] < caps[name]
        }
        assert len(set(free.values())) == 1  # the others keep their proportions


def test_a_cap_that_is_met_exactly_changes_nothing():
    table = mixture(("a", 0.1, 1.0), ("b", 0.9, 1e6), budget_tokens=30.0)
    assert capped(table, a=3) == {"a": 0.1, "b": 0.9}


def test_a_budget_that_capped_sources_cannot_fill_says_which_one_they_can():
    table = mixture(("a", 1, 10.0), ("b", 1, 20.5))
    with pytest.raises(UserError, match=r"give 61 tokens at most .*budget is 100\. Try --tokens=61 "):
        capped(table, a=2, b=2)
    fits = MixtureTable("test", table.sources, 61.0)
    assert sum(capped(fits, a=2, b=2).values()) == pytest.approx(1)


def test_a_source_of_weight_zero_fills_no_budget():
    with pytest.raises(UserError, match="give 10 tokens at most"):
        capped(mixture(("a", 1, 10.0), ("unused", 0, 1e6)), a=1, unused=1)


def test_an_unknown_size_can_neither_be_capped_nor_guessed():
    table = mixture(("a", 1, 10.0), ("b", 1, None))
    assert table.epochs(table.shares()[0]) == {"a": 5.0, "b": None}
    assert capped(table, a=2) == {"a": 0.2, "b": 0.8}
    with pytest.raises(UserError, match="--source-tokens=b=NUMBER"):
        capped(table, b=2)
    assert needs(table, table.shares()[0], {})["b"].short_tokens is None


def test_needs_are_what_a_source_must_have_to_be_read_so_often():
    table = mixture(("a", 75, 30.0), ("b", 25, 30.0))
    found = needs(table, table.shares()[0], {"a": 2})
    assert found["a"] == (2, 75.0, 37.5, 7.5)
    assert found["b"] == (1, 25.0, 25.0, 0.0)


def test_only_more_than_four_epochs_are_warned_of():
    four, more = mixture(("a", 1, 25.0)), mixture(("a", 1, 24.9))
    assert mixture_report(four).warnings == []
    assert "arXiv:2305.16264" in mixture_report(more).warnings[0]
    # A cap that is kept needs no warning, and one above four does.
    table = mixture(("a", 1, 2.0), ("b", 1, 99.0))
    assert mixture_report(table, max_epochs={"a": 4}).warnings[1:] == []
    assert "a is read 5.0 times" in mixture_report(table, max_epochs={"a": 5}).warnings[1]


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_is_read_with_its_numbers_as_text_or_not(tmp_path):
    path = write(
        tmp_path,
        "budget_tokens: 1e9\nsources:\n- {name: a b, tokens: 3e9, weight: 0.5}\n- {name: c, tokens: null, weight: 1}",
    )
    assert read_mixture(path) == MixtureTable("mine", (Source("a b", 0.5, 3e9), Source("c", 1, None)), 1e9)
    assert read_mixture(path, 5e9).budget_tokens == 5e9


A = "{name: a, tokens: 10, weight: 60%s}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping with keys title, source"),
        ("- 1", "must be a mapping"),
        ("budget_tokens: 1", "has no 'sources'"),
        ("sources: 3", "'sources' must be a list"),
        ("sources: []", "'sources' must be a list"),
        ("sources: [1]", "source 1 must be a mapping"),
        (f"sources: [{A % ''}]\nbudgets: 1", "key='budgets' is not one of .*did you mean"),
        (f"sources: [{A % ''}]", "has no 'budget_tokens': add it, or give --tokens"),
        (f"budget_tokens: 0\nsources: [{A % ''}]", "budget_tokens=0 must be from 1e-09"),
        (f"budget_tokens: lots\nsources: [{A % ''}]", "budget_tokens='lots' must be a number"),
        (f"budget_tokens: true\nsources: [{A % ''}]", "budget_tokens=True must be a number"),
        ("budget_tokens: 9\nsources: [{name: a, tokens: 10}]", "source 1 has no 'weight'"),
        ("budget_tokens: 9\nsources: [{name: a, weight: 10}]", "source 1 has no 'tokens'"),
        ("budget_tokens: 9\nsources: [{name: 3, weight: 1, tokens: 1}]", "name=3 must be a text"),
        ("budget_tokens: 9\nsources: [{name: 'a=b', weight: 1, tokens: 1}]", "without ',' and '='"),
        ("budget_tokens: 9\nsources: [{name: a, weight: -1, tokens: 1}]", r"a\.weight=-1 must be 0, or from"),
        ("budget_tokens: 9\nsources: [{name: a, weight: .nan, tokens: 1}]", r"a\.weight=nan must be"),
        ("budget_tokens: 9\nsources: [{name: a, weight: 1, tokens: 0}]", r"a\.tokens=0 must be from"),
        (f"budget_tokens: 9\nsources: [{A % ''}, {A % ''}]", "source 'a' stands there twice"),
        (f"budget_tokens: 9\nsources: [{A % ', weight: 3'}]", "'weight' stands twice"),
        (f"budget_tokens: 9\nsources: [{A % ', published_epochs: 1'}]", "needs 'rounding"),
        (
            f"budget_tokens: 9\nrounding: {{weight: 1}}\nsources: [{A % ''}]",
            "rounding has no 'tokens'",
        ),
        (
            f"budget_tokens: 9\nrounding: {{weight: 1, tokens: 10}}\nsources: [{A % ', published_epochs: 1'}]",
            "tokens above rounding.tokens=10",
        ),
        (
            "budget_tokens: 9\nrounding: {weight: 1, tokens: 1}\n"
            "sources: [{name: a, tokens: 10, weight: 1, published_epochs: 1}]",
            "need weights in percent, and these add to 1",
        ),
        ("sources: [", "line 1 is not YAML"),
        ("sources: !!python/object/apply:os.system [echo]", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_mixture(path)
    assert path in str(caught.value)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(UserError, match="weights of a, b are all zero"):
        mixture_report(mixture(("a", 0, 1.0), ("b", 0, 1.0)))


def test_a_mixture_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(UserError, match="'gpt' is no mixture; did you mean gpt3"):
        read_mixture("gpt")
    with pytest.raises(UserError, match=r"none\.yaml does not exist: give gpt3"):
        read_mixture(str(tmp_path / "none.yaml"))
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(UserError, match="is a folder: give"):
        read_mixture(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        read_mixture(str(tmp_path / "b.yaml"))


def test_what_floats_cannot_hold_is_refused_before_it_is_divided(tmp_path):
    for tokens in ("1e-300", "1e300", "1" + 400 * "0"):
        with pytest.raises(UserError, match=r"a\.tokens="):
            read_mixture(
                write(tmp_path, f"budget_tokens: 9\nsources: [{{name: a, weight: 1, tokens: {tokens}}}]")
            )
    assert math.isfinite(1e21 / 1e-9)
