"""Mixture: shares of tokens that never drift, every row once per epoch, plans that keep their limits."""

import collections
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.config import SourceConfig
from jaxlm.data.mixture import Mixture, SourceSize, make_plan, permute, seed_key
from jaxlm.data.weights import normalise_weights
from jaxlm.types import UserError

sizes = st.tuples(st.integers(1, 5000), st.floats(0.05, 1.0)).map(
    lambda rows_fill: SourceSize(rows_fill[0], max(1, round(rows_fill[0] * 64 * rows_fill[1])))
)
mixtures = st.dictionaries(
    st.sampled_from(["web", "books", "code", "law", "talk"]),
    st.tuples(st.floats(0.01, 1.0), sizes),
    min_size=1,
).flatmap(lambda sources: st.tuples(st.just(sources), st.integers(0, 2**32 - 1)))


def make(sources, seed):
    shares, _ = normalise_weights({name: weight for name, (weight, _) in sources.items()})
    return Mixture(shares, {name: size for name, (_, size) in sources.items()}, seed), shares


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_permute_visits_every_index_once(size, key):
    assert set(permute(np.arange(size), size, key).tolist()) == set(range(size))


@given(st.lists(st.integers(1, 2**62), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_permute_stays_in_range_and_is_the_same_for_one_index_or_many(spans, key):
    index = np.array([span - 1 for span in spans])
    together = permute(index, np.array(spans), key)
    assert np.all((0 <= together) & (together < spans))
    assert together.tolist() == [int(permute(i, span, key)) for i, span in zip(index, spans)]


@pytest.mark.parametrize("size", [2, 3, 4, 16, 33])
def test_permute_is_uniform_over_keys(size):
    """Chi-squared of where the first two indices go: its mean is `freedom`, the bound 6 sigma."""
    num_keys = 60_000
    keys = np.arange(num_keys, dtype=np.uint64) * np.uint64(seed_key("odd") | 1)
    first, second = (permute(np.full(num_keys, i), size, keys) for i in (0, 1))
    counts = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    expected = num_keys / (size * (size - 1))
    pairs = counts[~np.eye(size, dtype=bool)]
    freedom = len(pairs) - 1
    assert ((pairs - expected) ** 2 / expected).sum() < freedom + 6 * math.sqrt(2 * freedom)


def test_permute_and_keys_are_the_same_for_ever():
    # Golden: a change here changes the data of every run. Renew only with a note in CHANGELOG.md.
    assert permute(np.arange(10), 10, 7).tolist() == [9, 4, 7, 1, 6, 5, 2, 3, 8, 0]
    assert seed_key("source", 0, "web") == 0x467FA48EACA3EC63


@given(mixtures, st.integers(0, 10**16))
@settings(max_examples=100, deadline=None)
def test_share_of_rows_is_exact_to_one_row_at_any_block(mixture_and_seed, block):  # pain 15
    mixture, _ = make(*mixture_and_seed)
    rows = block * mixture.block_rows
    drawn = mixture.rows_drawn(rows)
    assert sum(drawn.values()) == rows
    for name, share in zip(mixture.names, mixture.row_shares):
        assert abs(drawn[name] - share * rows) < 1


@given(mixtures, st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_token_share_is_within_one_percent_after_any_thousand_blocks(
    mixture_and_seed, first_block
):  # pain 15
    """Counted from the rows themselves, each worth the mean of its source's trained tokens per row."""
    mixture, shares = make(*mixture_and_seed)
    if mixture.block_rows > 64:
        return  # a thousand such blocks are many rows; the closed form is tested above
    first = first_block * mixture.block_rows
    source, _ = mixture.locate(np.arange(first, first + 1000 * mixture.block_rows))
    per_row = np.array([size.num_tokens / size.num_rows for size in mixture.sizes])
    tokens = np.bincount(source, minlength=len(per_row)) * per_row
    for name, share in zip(mixture.names, tokens / tokens.sum()):
        assert share == pytest.approx(float(shares[name]), rel=0.01)


@given(mixtures, st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_source_gives_its_rows_once_each_and_in_order(mixture_and_seed, block):
    mixture, _ = make(*mixture_and_seed)
    first, stop = block * mixture.block_rows, (block + 3) * mixture.block_rows
    before, after = mixture.rows_drawn(first), mixture.rows_drawn(stop)
    source, ordinal = mixture.locate(np.arange(first, stop))
    for i, name in enumerate(mixture.names):
        np.testing.assert_array_equal(ordinal[source == i], np.arange(before[name], after[name]))


@given(mixtures, st.integers(0, 10**12), st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_a_row_is_the_same_whoever_asks(mixture_and_seed, start, other):
    mixture, _ = make(*mixture_and_seed)
    rows = np.concatenate([np.arange(start, start + 40), np.arange(other, other + 40)])
    together = np.stack(mixture.lookup(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(np.stack(mixture.lookup(rows[order])), together[:, order])
    one = [np.concatenate(mixture.lookup(rows[i : i + 1])).tolist() for i in (0, 17, 79)]
    assert one == together[:, [0, 17, 79]].T.tolist()


def test_every_row_of_an_epoch_is_visited_exactly_once_in_a_new_order_each_epoch():
    sources = {"web": (0.7, SourceSize(97, 97 * 60)), "books": (0.3, SourceSize(31, 31 * 64))}
    mixture, _ = make(sources, seed=5)
    source, row = mixture.lookup(np.arange(4000))
    for i, size in enumerate(mixture.sizes):
        epochs = row[source == i][: 3 * size.num_rows].reshape(3, -1)
        for epoch in epochs:
            assert sorted(epoch) == list(range(size.num_rows))
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_the_order_of_the_config_does_not_matter_but_the_seed_does():
    sources = {
        "web": (0.6, SourceSize(50, 3000)),
        "books": (0.3, SourceSize(20, 1200)),
        "a": (0.1, SourceSize(9, 500)),
    }
    backwards = dict(reversed(sources.items()))
    rows = np.arange(1000)
    first, again = make(sources, 1)[0], make(backwards, 1)[0]
    assert first.names == again.names == ("a", "books", "web")
    np.testing.assert_array_equal(first.lookup(rows), again.lookup(rows))
    shares = dict(zip(first.names[::-1], first.row_shares[::-1]))
    assert Mixture(shares, {name: SourceSize(9, 9) for name in shares}, 1).names == first.names
    assert np.any(np.stack(first.lookup(rows)) != np.stack(make(sources, 2)[0].lookup(rows)))


def test_the_order_within_a_source_does_not_change_when_another_source_joins():
    web, books = (0.6, SourceSize(50, 3000)), (0.4, SourceSize(20, 1200))
    alone, _ = make({"web": web}, 1)
    joined, _ = make({"books": books, "web": web}, 1)

    def order(mixture):
        source, row = mixture.lookup(np.arange(2000))
        mine = source == mixture.names.index("web")
        _, ordinal = mixture.locate(np.arange(2000))
        return dict(zip(ordinal[mine].tolist(), row[mine].tolist()))

    a, b = order(alone), order(joined)
    assert len(a.keys() & b.keys()) > 1000
    assert all(a[ordinal] == b[ordinal] for ordinal in a.keys() & b.keys())


def test_rows_of_a_block_are_interleaved():
    mixture, _ = make({"a": (0.5, SourceSize(10**6, 10**6)), "b": (0.5, SourceSize(10**6, 10**6))}, 0)
    source, _ = mixture.locate(np.arange(3200))
    runs = np.diff(np.flatnonzero(np.diff(source)))
    assert runs.max() <= 2 * mixture.block_rows
    starts = source.reshape(-1, mixture.block_rows)
    assert len({tuple(block.tolist()) for block in starts}) > 150  # of 200 blocks: they are not all alike


@given(mixtures, st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_rows_drawn_counts_the_rows(mixture_and_seed, num_rows):
    mixture, _ = make(*mixture_and_seed)
    source, _ = mixture.locate(np.arange(num_rows))
    counted = collections.Counter(source.tolist())
    assert mixture.rows_drawn(num_rows) == {name: counted[i] for i, name in enumerate(mixture.names)}


@given(mixtures, st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_row_of_run_finds_a_row_of_a_source(mixture_and_seed, ordinal):
    mixture, _ = make(*mixture_and_seed)
    for i, name in enumerate(mixture.names):
        row = mixture.row_of_run(name, ordinal)
        assert np.stack(mixture.locate(np.array([row]))).ravel().tolist() == [i, ordinal]
        assert mixture.rows_drawn(row)[name] == ordinal


def test_weights_are_normalised_with_a_warning_that_names_the_factor():
    shares, warning = normalise_weights({"web": 3.0, "books": 1.0, "unused": 0.0})
    assert shares == {"books": Fraction(1, 4), "web": Fraction(3, 4)}
    assert "sum to 4, not to 1 (or 100); each was multiplied by 0.25" in warning


@pytest.mark.parametrize(
    "weights", [{"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 70, "b": 30}, {"a": 0.333333, "b": 0.666667}]
)
def test_weights_that_sum_to_one_or_a_hundred_need_no_warning(weights):
    shares, warning = normalise_weights(weights)
    assert warning is None
    assert sum(shares.values()) == 1


@pytest.mark.parametrize("weights", [{}, {"a": 0.0, "b": 0.0}, {"a": -1.0}, {"a": math.inf}, {"a": math.nan}])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(UserError, match="weight"):
        normalise_weights(weights)


@pytest.mark.parametrize(("weight", "said"), [(5e-324, "5e-324"), (1.7e308, "3.4e+308")])
def test_weights_beyond_what_a_float_can_divide_are_normalised(weight, said):
    shares, warning = normalise_weights({"a": weight, "b": weight} if weight > 1 else {"a": weight})
    assert sum(shares.values()) == 1
    assert f"sum to {said}, not to 1" in warning


def test_a_share_too_small_to_keep_is_refused_by_name():
    with pytest.raises(UserError, match=r"data.sources.rare.weight_tokens.*Raise it, or set it to 0"):
        make({"web": (1.0, SourceSize(10, 100)), "rare": (1e-8, SourceSize(10, 100))}, 0)


# Plans: 100 rows of 50 tokens, batches of 8.


def plan(num_steps, web=None, books=None):
    web, books = web or {}, books or {}
    return make_plan(
        {
            "web": SourceConfig(path="x", **{"weight_tokens": 0.75, "on_exhausted": "repeat"} | web),
            "books": SourceConfig(path="x", **{"weight_tokens": 0.25, "on_exhausted": "repeat"} | books),
        },
        {"web": SourceSize(10_000, 500_000), "books": SourceSize(100, 5_000)},
        global_batch_size=8,
        num_steps=num_steps,
        seed=0,
    )


def test_plan_says_tokens_and_epochs_of_each_source():
    planned = plan(100)
    by_name = {source.name: source for source in planned.sources}
    assert [by_name[n].planned_rows for n in ("books", "web")] == [200, 600]
    assert by_name["books"].planned_tokens == 200 * 50
    assert by_name["books"].planned_epochs == pytest.approx(2.0)
    assert planned.tokens_at(50) == {"books": 100 * 50, "web": 300 * 50}
    assert planned.epochs_at(50) == {"books": 1.0, "web": 0.03}
    assert planned.metrics_at(100)["data/books/epochs"] == 2.0
    assert planned.metrics_at(100)["data/web/tokens"] == 30_000
    assert planned.notes == ()
    assert "books" in planned.table()


def test_a_second_epoch_must_be_asked_for():  # pain 16
    plan(50, books={"on_exhausted": None})
    with pytest.raises(
        UserError, match=r"data.sources.books.*52 steps.*1\.040 times.*repeat .*stop .*error "
    ):
        plan(52, books={"on_exhausted": None})


def test_error_refuses_a_second_epoch_before_the_run():
    plan(50, books={"on_exhausted": "error"})
    with pytest.raises(UserError, match=r"data.sources.books.*on_exhausted=error"):
        plan(52, books={"on_exhausted": "error"})


@pytest.mark.parametrize("limit", [1.0, 2.5, 0.5])
def test_max_epochs_is_kept_and_the_message_offers_what_fits(limit):
    steps = 2 * math.floor(25 * limit)  # whole blocks of 16 rows
    plan(steps, books={"max_epochs": limit})
    with pytest.raises(UserError, match=rf"data.sources.books.*max_epochs={limit:g}") as error:
        plan(2 * steps, books={"max_epochs": limit})
    offers = re.search(r"num_steps to at most (\d+) or .*tokens to at most ([\d.e-]+)\.", str(error.value))
    num_steps, weight = offers.groups()
    assert int(num_steps) == pytest.approx(steps, abs=2)
    plan(int(num_steps), books={"max_epochs": limit})
    with pytest.raises(UserError):
        plan(int(num_steps) + 1, books={"max_epochs": limit})
    fits = plan(2 * steps, books={"max_epochs": limit, "weight_tokens": float(weight)})
    books = next(source for source in fits.sources if source.name == "books")
    assert books.planned_epochs == pytest.approx(limit, rel=0.05), "the largest weight, not just a small one"


@given(mixtures, st.integers(1, 400), st.integers(1, 30), st.floats(0.05, 3.0))
@settings(max_examples=150, deadline=None)
def test_the_plan_an_error_offers_is_accepted(mixture_and_seed, num_steps, batch_size, limit):
    """Whatever the rounding of shares to rows does."""
    sources, seed = mixture_and_seed
    sizes = {name: size for name, (_, size) in sources.items()}
    limited = sorted(sources)[0]

    def attempt(num_steps, weight):
        configs = {
            name: SourceConfig(path="x", weight_tokens=w, on_exhausted="repeat")
            for name, (w, _) in sources.items()
        }
        configs[limited] = SourceConfig(
            path="x", weight_tokens=weight, on_exhausted="repeat", max_epochs=limit
        )
        return make_plan(configs, sizes, global_batch_size=batch_size, num_steps=num_steps, seed=seed)

    try:
        attempt(num_steps, sources[limited][0])
        return
    except UserError as error:
        message = str(error)
    num_fit = re.search(r"num_steps to at most (\d+)", message)
    weight = re.search(r"weight_tokens to at most ([\d.e-]+)\.$", message)
    assert num_fit or weight or "lower data.global_batch_size" in message
    if num_fit:
        assert attempt(int(num_fit[1]), sources[limited][0]).num_steps > 0
    if weight:
        attempt(num_steps, float(weight[1]))


def test_stop_ends_the_run_before_any_row_comes_twice_and_says_so():
    planned = plan(1000, books={"on_exhausted": "stop"})
    assert planned.num_steps == pytest.approx(50, abs=2)
    assert f"ends after step {planned.num_steps} of 1,000" in planned.notes[0]
    assert "data.sources.books" in planned.notes[0]
    source, row = planned.mixture.lookup(np.arange(planned.num_steps * 8))
    books = row[source == 0]
    assert len(books) == len(set(books.tolist())) > 90
    source, ordinal = planned.mixture.locate(np.arange(planned.num_steps * 8, (planned.num_steps + 1) * 8))
    assert np.any(ordinal[source == 0] >= 100), "one step more would have read a row again"


def test_a_stop_beyond_the_run_changes_nothing():
    assert plan(20, books={"on_exhausted": "stop"}).num_steps == 20


def test_stop_within_the_first_batch_is_refused():
    with pytest.raises(UserError, match=r"data.sources.a.on_exhausted=stop"):
        make_plan(
            {"a": SourceConfig(path="x", on_exhausted="stop")},
            {"a": SourceSize(4, 40)},
            global_batch_size=8,
            num_steps=5,
            seed=0,
        )


def test_a_source_alone_is_offered_steps_but_no_weight():
    with pytest.raises(UserError, match=r"num_steps to at most 12\.$"):
        make_plan(
            {"a": SourceConfig(path="x", on_exhausted="error")},
            {"a": SourceSize(100, 900)},
            global_batch_size=8,
            num_steps=50,
            seed=0,
        )


def test_a_source_of_weight_zero_is_planned_as_unused():
    planned = plan(10, books={"weight_tokens": 0.0, "on_exhausted": None})
    unused = planned.sources[-1]
    assert (unused.name, unused.planned_rows, unused.share) == ("books", 0, 0.0)
    assert planned.mixture.names == ("web",)
    assert "not used" in planned.table()
