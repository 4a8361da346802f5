"""Prices: each says whose, where, when and on what terms; old ones are said to be old, and nonsense is refused."""

import datetime
from pathlib import Path

import pytest

from jaxlm.plan import prices
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.prices import COMMITMENTS, MAX_USD, Price
from jaxlm.types import UserError

TODAY = datetime.date(2026, 11, 26)
ROW = {
    "chip": "v5p",
    "usd": 2.94,
    "provider": "Cloud",
    "region": "north",
    "commitment": "on-demand",
    "date": "2026-11-01",
    "url": "https://a.b/c",
}


def price(**changes) -> Price:
    return Price(**(ROW | changes))


def written(tmp_path: Path, *rows: dict) -> Path:
    import yaml

    file = tmp_path / "prices.yaml"
    file.write_text(yaml.safe_dump({"prices": [ROW | row for row in rows]}))
    return file


def test_the_package_has_the_prices_that_its_sources_do():
    """(chip, usd, provider, commitment, date) as they were read."""
    assert {(p.chip, p.usd, p.provider, p.commitment, p.date) for p in prices.load()} == {
        ("v4", 3.22, "Google Cloud", "on-demand", "unknown"),
        ("v5e", 1.20, "Google Cloud", "on-demand", "unknown"),
        ("v5p", 4.20, "Google Cloud", "on-demand", "unknown"),
        ("v6e", 2.70, "Google Cloud", "on-demand", "unknown"),
        ("v6e", 1.35, "Google Cloud", "flex-start", "unknown"),
        ("v6e", 0.54, "Google Cloud", "spot", "unknown"),
        ("v6e", 1.215, "Google Cloud", "spot", "unknown"),
        ("v6e", 1.35, "Google Cloud", "spot", "unknown"),
        ("v100", 2.48, "Google Cloud", "on-demand", "unknown"),
        ("v100", 0.79, "Lambda", "on-demand", "unknown"),
        ("v100", 1.48, "unnamed", "reserved-3y", "2020-06-03"),
        ("a100-pcie-80gb", 1.39, "RunPod", "on-demand", "2026-10-19"),
        ("a100-80gb", 1.79, "RunPod", "on-demand", "2026-10-19"),
        ("a100-80gb", 1.59, "RunPod", "on-demand", "unknown"),
        ("h100-pcie", 2.69, "RunPod", "on-demand", "2026-10-19"),
        ("h100-pcie", 2.89, "RunPod", "on-demand", "unknown"),
        ("h100", 3.99, "RunPod", "on-demand", "2026-10-19"),
        ("h100", 3.29, "RunPod", "on-demand", "unknown"),
        ("h100", 3.99, "Lambda", "on-demand", "unknown"),
        ("h100", 10.8, "Google Cloud", "on-demand", "2025-02"),
        ("h200", 4.54, "Spheron", "on-demand", "2026-03"),
        ("b200", 6.99, "Lambda", "on-demand", "unknown"),
        ("b200", 6.03, "Spheron", "on-demand", "2026-03"),
        ("h800", 2.00, "unnamed", "on-demand", "2024-12"),
    }


def test_of_several_prices_the_newest_is_taken_then_the_cheapest_and_undated_ones_last():
    old, new, dear = price(date="2026-10", usd=1.0), price(usd=2.0), price(usd=3.0)
    undated = price(date="unknown", usd=0.5)
    assert prices.matching([undated, dear, old, new], "v5p") == [new, dear, old, undated]
    assert prices.choose([undated, dear, old, new], "v5p") is new
    assert prices.choose([undated], "v5p") is undated


def test_commitment_and_provider_choose_others():
    known = prices.load()
    assert prices.choose(known, "v6e", commitment="spot").usd == 0.54
    assert prices.choose(known, "v6e", commitment="flex-start").usd == 1.35
    assert prices.choose(known, "h100", provider="Google Cloud").usd == 10.8
    assert prices.choose(known, "h100").provider == "RunPod"


def test_a_users_price_goes_before_the_packages_of_that_chip_and_of_no_other(tmp_path):
    known = prices.load(written(tmp_path, {"usd": 9.0, "date": "2019-01-01"}))
    assert prices.choose(known, "v5p").usd == 9.0
    assert prices.choose(known, "v6e").usd == 2.70
    with pytest.raises(UserError, match=r"no spot price of v5p \(known: on-demand from Cloud\)"):
        prices.choose(known, "v5p", commitment="spot")


def test_all_that_a_price_is_the_price_of_is_in_its_line():
    assert str(price()) == "v5p: $2.94 per chip-hour, Cloud, north, on-demand, 2026-11-01, https://a.b/c"
    assert "snapshot date unknown" in str(price(date="unknown"))
    assert str(prices.given("tpu7x", 12)) == "tpu7x: $12.00 per chip-hour, given by --price"


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("2026-11-26", None),
        ("2025-11-26", None),  # 365 days
        ("2025-11-25", r"prices over 12 months old: v5p \(\$2.94, Cloud\) of 2025-11-25"),
        ("2025-11", "over 12 months old"),  # as old as the month's first day
        ("2025-12", None),
        ("unknown", "from lists without a date, so perhaps over 12 months old"),
        ("2026-11-27", "dates still to come"),
    ],
)
def test_an_old_price_is_said_to_be_old(date, said):
    found = prices.warning(price(date=date), TODAY)
    assert found is None if said is None else found is not None
    if said:
        with pytest.raises(UserError, match=said):
            raise UserError(found)


def test_a_price_that_was_given_has_no_age_and_kinds_share_a_line():
    assert prices.warnings([prices.given("v5p", 4)], TODAY) == []
    assert len(prices.warnings([price(date="unknown"), price(date="unknown", usd=1), price()], TODAY)) == 1


def test_a_missing_price_names_the_chip_and_the_way_out():
    with pytest.raises(UserError, match=r"no on-demand price of tpu7x \(no public price .*--price=USD"):
        prices.choose(prices.load(), "tpu7x")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chip": "v5q"}, r"chip='v5q' is not one of .*did you mean 'v5"),
        ({"chip": "v5p", "commitment": "spto"}, "--commitment='spto' is not one of .*did you mean 'spot'"),
        (
            {"chip": "v5p", "provider": "Lambada"},
            "--provider='Lambada' is not one of .*did you mean 'Lambda'",
        ),
        (
            {"chip": "v5p", "provider": "Lambda"},
            "no on-demand price of v5p from Lambda .known: on-demand from Google",
        ),
    ],
)
def test_what_is_not_known_names_what_is(kwargs, message):
    with pytest.raises(UserError, match=message):
        prices.choose(prices.load(), **kwargs)


@pytest.mark.parametrize("usd", [0, -1.0, float("nan"), float("inf"), 700.0, MAX_USD + 0.01])
def test_nonsense_is_refused_with_row_and_reason(tmp_path, usd):
    with pytest.raises(UserError, match=r"prices.yaml: prices\[1\] \(v5p\).usd=.*(above|placeholder)"):
        prices.load(written(tmp_path, {}, {"usd": usd}))
    with pytest.raises(UserError, match="--price=.*(above|placeholder)"):
        prices.given("v5p", usd)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chip": "h1000"}, r"prices\[0\].chip='h1000' is not one of .*did you mean 'h100'"),
        ({"chip": ["h100"]}, r"prices\[0\].chip=\['h100'\] is not one of"),
        ({"usd": "many"}, r"prices\[0\] \(v5p\).usd='many' has to be a number"),
        ({"usd": True}, "usd=True has to be a number"),
        ({"usd": None}, "usd is missing"),
        ({"commitment": "forever"}, "commitment='forever' is not one of on-demand"),
        ({"date": "last week"}, "date='last week' has to be a day such as"),
        ({"url": "a friend"}, "url='a friend' has to be a URL"),
        ({"provider": 3}, "provider has to be text, but is 3"),
        ({"prize": 3}, r"prices\[0\]: key='prize' is not one of"),
    ],
)
def test_a_broken_row_names_file_row_and_key(tmp_path, row, message):
    file = written(tmp_path, row)
    with pytest.raises(UserError, match=message) as caught:
        prices.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices: [", r"line 1.* is not YAML"),
        ("a: b: c", "line 1 is not YAML"),
        ("- 3", r"needs the keys prices, but is \[3\]"),
        ("", "needs the keys prices, but is None"),
        ("prices: []", r"has to be a list of rows, but is \[\]"),
        ("prices: 3", "has to be a list of rows, but is 3"),
        ("prices: [3]", r"prices\[0\]: needs the keys chip, .*but is 3"),
        ("prices: [{date: 2026-13-45}]", "is not YAML"),
        ("price: 3", "key='price' is not one of prices; did you mean 'prices'"),
        ("prices: !!python/object/apply:os.system [true]", "is not YAML"),
    ],
)
def test_a_file_that_is_no_table_of_prices_says_why(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        prices.load(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(UserError, match="none.yaml does not exist: give a table in YAML"):
        prices.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder: give"):
        prices.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        prices.load(tmp_path / "binary.yaml")


def test_numbers_as_people_write_them_are_numbers(tmp_path):
    """YAML 1.1 takes 3e0 for text."""
    file = written(tmp_path, {})
    file.write_text(file.read_text().replace("2.94", "3e0"))
    assert prices.choose(prices.load(file), "v5p").usd == 3.0


@pytest.mark.parametrize("known", prices.load(), ids=lambda p: f"{p.chip}-{p.usd}")
def test_every_row_of_the_package_is_whole(known):
    assert known.chip in CHIPS
    assert known.commitment in COMMITMENTS
    assert 0 < known.usd <= 10.8
    assert known.url.startswith("https://")
