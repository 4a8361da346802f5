"""`jaxlm plan cost`."""

import datetime
import json

import pytest

from jaxlm.cli import _plan_cost
from jaxlm.plan.report import WIDTH

GPT3 = ("plan", "cost", "--model=gpt3-175b", "--tokens=300e9")


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """Prices age."""

    class Fixed(datetime.date):
        @classmethod
        def today(cls):
            return cls(2026, 11, 26)

    monkeypatch.setattr(_plan_cost.datetime, "date", Fixed)


def printed(jaxlm, *argv):
    code, out, err = jaxlm(*argv)
    assert (code, err) == (0, "")
    return out


TABLE = """\
What gpt3-175b costs to train
Estimates on 256 chips, in US dollars

 chip     MFU   chip-hours         days   compute only    total       MWh
 ────────────────────────────────────────────────────────────────────────
 v5p    30.0%         634K   103.2 days         $2.66M   $2.66M   unknown
 v5p    40.0%         476K    77.4 days         $2.00M   $2.00M   unknown
 v5p    50.0%         380K    61.9 days         $1.60M   $1.60M   unknown
 h100   30.0%         294K    47.9 days         $1.17M   $1.17M     205.9
 h100   40.0%         221K    35.9 days          $880K    $880K     154.4
 h100   50.0%         176K    28.7 days          $704K    $704K     123.5

An estimate: total = compute x 1 (runs factor) + $0 storage + $0 network + $0 staff
MWh: chips alone x PUE 1, of one run; unknown where a chip's power is not public.
MFU: share of the chip's dense peak in bfloat16 (V100: float16).
Prices used

 chip   $/chip-hour   provider       region        commitment   date
 ────────────────────────────────────────────────────────────────────────────────────
 v5p         $4.200   Google Cloud   us-central1   on-demand    snapshot date unknown
 h100        $3.990   RunPod         all           on-demand    2026-10-19

v5p: https://github.com/skypilot-org/skypilot-catalog/blob/006059e0/catalogs/v8/gcp/vms.csv
h100: https://github.com/skypilot-org/skypilot-catalog/blob/master/catalogs/v8/runpod/vms.csv
Of several prices of a chip for one commitment the newest is taken, of one day the cheapest; undated
ones last.

warning: prices from lists without a date, so perhaps over 12 months old: v5p ($4.20, Google Cloud).
Check, or give today's with --price=USD or --prices=FILE.
C = 6 N D = 3.143e+23 FLOP, attention not counted (arXiv:2001.08361, section 2.1); N =
174,604,259,328, all parameters that a token meets, embeddings among them; D = 300,000,000,000
tokens
"""


def test_chips_and_mfus_with_the_prices_that_are_used(jaxlm):
    out = printed(jaxlm, *GPT3, "--chip=v5p,h100", "--mfu=0.3,0.4,0.5", "--num-chips=256")
    assert [line.rstrip() for line in out.splitlines()] == TABLE.splitlines()


def test_mfus_have_a_default_that_is_shown(jaxlm):
    named = printed(jaxlm, *GPT3, "--chip=v5p", "--mfu=0.3,0.4,0.5")
    assert printed(jaxlm, *GPT3, "--chip=v5p") == named


def test_without_chips_all_that_have_a_price_and_why_others_are_left_out(jaxlm):
    data = json.loads(printed(jaxlm, *GPT3, "--mfu=0.4", "--json"))
    assert [row["chip"] for row in data["estimates"]] == [
        "v4", "v5e", "v5p", "v6e", "v100", "a100-80gb", "a100-pcie-80gb", "h100", "h100-pcie", "h800", "h200", "b200",
    ]  # fmt: skip
    assert data["left_out"] == dict.fromkeys(
        ("tpu7x", "v100-32gb", "a100-40gb", "a100-pcie-40gb"), "no public price"
    )
    assert any(note.startswith("Left out: tpu7x (no public price)") for note in data["notes"])
    spot = json.loads(printed(jaxlm, *GPT3, "--mfu=0.4", "--commitment=spot", "--json"))
    assert [(row["chip"], row["mfu"]) for row in spot["estimates"]] == [("v6e", pytest.approx(0.4))]
    assert spot["left_out"]["v5p"] == "none that matches"


def test_json_has_the_numbers_in_full(jaxlm):
    data = json.loads(
        printed(
            jaxlm, "plan", "cost", "--params=175e9", "--tokens=300e9", "--chip=v6e", "--mfu=0.4", "--json"
        )
    )
    [row] = data["estimates"]
    assert row["chip_hours"] == pytest.approx(3.15e23 / (918e12 * 0.4) / 3600, rel=1e-12)
    assert row["compute_usd"] == row["total_usd"] == pytest.approx(2.70 * row["chip_hours"], rel=1e-12)
    assert (row["days"], row["energy_mwh"]) == (None, None)
    assert data["prices"][0]["date"] == "unknown"
    assert data["training"]["flops"] == 3.15e23


def test_a_measured_speed_takes_the_place_of_mfu(jaxlm):
    out = printed(jaxlm, "plan", "cost", "--params=175e9", "--tokens=300e9", "--chip=v6e",
                  "--measured-tokens-per-s-per-chip=357.58", "--num-chips=256")  # fmt: skip
    assert "v6e          40.9%         233K   37.9 days          $629K   $629K   unknown" in out
    assert "Measured: 357.58 tokens/s per chip" in out


def test_a_speed_beyond_the_peak_is_questioned(jaxlm):
    argv = (*GPT3, "--chip=v6e", "--json")
    fast = json.loads(printed(jaxlm, *argv, "--measured-tokens-per-s-per-chip=900"))
    assert fast["warnings"][-1].startswith("900 tokens/s per chip is more than the peak in bfloat16 allows")
    slow = json.loads(printed(jaxlm, *argv, "--measured-tokens-per-s-per-chip=800"))
    assert not any("peak" in warning for warning in slow["warnings"])


def test_extras_are_labelled_and_only_touch_the_total(jaxlm):
    out = printed(
        jaxlm, *GPT3, "--chip=h100", "--mfu=0.4", "--runs-factor=2", "--storage-usd=1e5", "--pue=1.1"
    )
    assert "h100   40.0%         221K          $880K   $1.86M   169.9" in out
    assert "An estimate: total = compute x 2 (runs factor) + $100,000 storage + $0 network + $0 staff" in out


def test_a_price_that_is_given_needs_no_source_and_has_no_age(jaxlm):
    out = printed(jaxlm, *GPT3, "--chip=tpu7x", "--mfu=0.4", "--price=12")
    assert "tpu7x       $12.000   given      -        given" in out
    assert "warning" not in out


def test_a_users_prices_go_first(jaxlm, tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(
        "prices: [{chip: v5p, usd: 2, provider: us, region: here, commitment: negotiated, date: 2026-11-01, url: https://a.b}]"
    )
    argv = (*GPT3, "--chip=v5p", "--mfu=0.4", f"--prices={file}")
    assert "v5p         $2.000   us         here     negotiated" in printed(
        jaxlm, *argv, "--commitment=negotiated"
    )
    code, _, err = jaxlm(*argv)
    assert code == 2
    assert "known: negotiated from us" in err


def test_a_number_of_chips_that_is_no_slice_is_said(jaxlm):
    data = json.loads(printed(jaxlm, *GPT3, "--chip=v5e,h100", "--mfu=0.4", "--num-chips=300", "--json"))
    assert data["warnings"][-1] == (
        "There is no slice of 300 chips of v5e (256), h100 (296 or 304); days are of that number all the same."
    )
    data = json.loads(printed(jaxlm, *GPT3, "--chip=v5e,h100", "--mfu=0.4", "--num-chips=512", "--json"))
    assert not any("slice" in warning for warning in data["warnings"])  # two slices of v5e


SCENARIOS = """\
 1    high end: Lambda      v100        28 TFLOP/s      $1.480        3.12M         $4.61M   $4.61M
 2    low end: at peak *    a100-80gb   100% MFU        $1.790         280K          $502K    $502K
 3    low end: at peak *    a100-80gb   100% MFU        $2.000         280K          $561K    $561K
 4    A100 as it is used    a100-80gb   50% MFU         $2.000         561K         $1.12M   $1.12M
 5    A100 as it is used    a100-80gb   40% MFU         $2.000         701K         $1.40M   $1.40M
 6    A100 as it is used    a100-80gb   30% MFU         $2.000         935K         $1.87M   $1.87M
 7    OneFlow's article     a100-80gb   40% MFU         $2.000         701K         $1.40M   $1.40M
 8    MosaicML: 30B model   -           -                    -            -          $450K    $450K
 9    v6e measured, bf16    v6e         357.6 tok/s     $2.700         233K          $629K    $629K
 10   v6e measured, bf16    v6e         357.6 tok/s     $1.215         233K          $283K    $283K
 11   v6e measured, bf16    v6e         357.6 tok/s     $1.350         233K          $315K    $315K
 12   v6e measured, fp8     v6e         431.3 tok/s     $2.700         193K          $522K    $522K
 13   v5p measured, int8    v5p         369.1 tok/s     $4.200         226K          $948K    $948K
 14   v5e by formula        v5e         40% MFU         $1.200        1.11M         $1.33M   $1.33M
 15   v5e by formula        v5e         50% MFU         $1.200         888K         $1.07M   $1.07M
 16   v5p by formula        v5p         40% MFU         $4.200         477K         $2.00M   $2.00M
 17   v5p by formula        v5p         50% MFU         $4.200         381K         $1.60M   $1.60M
 18   v6e by formula        v6e         40% MFU         $2.700         238K          $643K    $643K
 19   v6e by formula        v6e         50% MFU         $2.700         191K          $515K    $515K
 20   v4 by formula         v4          40% MFU         $3.220         795K         $2.56M   $2.56M
 21   v4 by formula         v4          50% MFU         $3.220         636K         $2.05M   $2.05M
 22   H100 by formula       h100        40% MFU         $3.990         221K          $882K    $882K
 23   H100 by formula       h100        40% MFU        $10.800         221K         $2.39M   $2.39M
 24   B200 by formula       b200        40% MFU         $6.990       97,222          $680K    $680K
 25   B200 by formula       b200        50% MFU         $6.990       77,778          $544K    $544K
"""


def test_gpt3s_scenarios_are_a_table_with_both_ends(jaxlm):
    lines = [line.rstrip() for line in printed(jaxlm, "plan", "cost", "--scenarios=gpt3").splitlines()]
    assert lines[5 : 5 + 25] == SCENARIOS.splitlines()


PUBLISHED = """\
 training         chip        MFU given     predicted   published   pub./pred.   MFU implied
 ───────────────────────────────────────────────────────────────────────────────────────────
 Llama 2 7B       a100-80gb        none             -        184K            -         39.1%
 Llama 2 70B      a100-80gb        none             -       1.72M            -         42.8%
 Llama 3.1 8B     h100             none             -       1.46M            -         13.9%
 Llama 3.1 70B    h100             none             -       7.00M            -         25.5%
 Llama 3.1 405B   h100          38%-43%   24.8M-28.1M       30.8M    1.10-1.24         34.6%
 DeepSeek-V3      h800             none             -       2.79M            -         33.1%
"""


def test_published_trainings_stand_beside_predictions(jaxlm):
    lines = [line.rstrip() for line in printed(jaxlm, "plan", "cost", "--published").splitlines()]
    assert lines[3 : 3 + 8] == PUBLISHED.splitlines()


@pytest.mark.parametrize(
    "argv",
    [
        (*GPT3, "--num-chips=250"),
        (*GPT3, "--num-chips=1", "--staff-usd=123456789", "--runs-factor=123.45"),
        (*GPT3, "--chip=a100-pcie-80gb", "--measured-tokens-per-s-per-chip=0.01", "--num-chips=3"),
        ("plan", "cost", "--flops=1e26", "--num-chips=1"),
        ("plan", "cost", "--scenarios=gpt3", "--staff-usd=123456789"),
        ("plan", "cost", "--published"),
    ],
)
def test_tables_fit_a_terminal(jaxlm, argv):
    lines = printed(jaxlm, *argv).splitlines()
    assert max(map(len, lines)) <= WIDTH
    # A row that does not fit is folded: its next line starts with blanks.
    rows = [line for line in lines if line.startswith(" ")]
    assert all(line.rstrip() == "" or line[:5].strip() for line in rows)


def test_html_holds_the_same_tables(jaxlm, tmp_path):
    file = tmp_path / "cost.html"
    printed(jaxlm, "plan", "cost", "--scenarios=gpt3", f"--html={file}")
    page = file.read_text()
    assert page.count("<tr>") == 26
    assert "low end: at peak *" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Say what is trained by one of --model, --params, --flops"),
        (("--model=gpt3-175b", "--params=1e9", "--tokens=1e9"), "not --model and --params together"),
        (("--model=gpt3-175c", "--tokens=1e9"), "did you mean 'gpt3-175b'"),
        (("--model=gpt3-175b",), "--tokens is needed with --model"),
        (("--params=many", "--tokens=1e9"), "--params=many has to be a number"),
        (("--params=1e9", "--tokens=0"), "--tokens=0 has to be a finite number above 0"),
        (("--params=1e9", "--tokens=nan"), "--tokens=nan has to be"),
        ((*GPT3[2:], "--chip=v5x"), "chip='v5x' is not one of"),
        ((*GPT3[2:], "--chip="), "chip='' is not one of"),
        ((*GPT3[2:], "--chip=tpu7x"), "no on-demand price of tpu7x (no public price of tpu7x was found)"),
        ((*GPT3[2:], "--chip=tpu7x", "--commitment=spto"), "did you mean 'spot'"),
        ((*GPT3[2:], "--commitment=spto"), "did you mean 'spot'"),
        ((*GPT3[2:], "--provider=Lambada"), "did you mean 'Lambda'"),
        ((*GPT3[2:], "--provider=Lambda", "--commitment=spot"), "No chip has a spot price from Lambda"),
        ((*GPT3[2:], "--chip=v5p", "--mfu=1.2"), "--mfu=1.2 has to be above 0 and at most 1"),
        ((*GPT3[2:], "--chip=v5p", "--mfu=40"), "That is 0.4"),
        ((*GPT3[2:], "--chip=v5p", "--mfu=0"), "--mfu=0 has to be"),
        ((*GPT3[2:], "--chip=v5p", "--mfu=high"), "--mfu=high has to be numbers such as"),
        ((*GPT3[2:], "--chip=v5p", "--num-chips=0"), "--num-chips=0 has to be a whole number of chips"),
        ((*GPT3[2:], "--chip=v5p", "--price=0"), "--price=0.0 has to be a finite number above 0"),
        ((*GPT3[2:], "--chip=v5p", "--price=700"), "--price=700 is above 30"),
        ((*GPT3[2:], "--price=2"), "--price=2 is the price of one chip: name it with --chip"),
        ((*GPT3[2:], "--chip=v5p,v5e", "--price=2"), "--price=2 is the price of one chip"),
        ((*GPT3[2:], "--chip=v5p", "--price=2", "--commitment=spot"), "leave --commitment out"),
        ((*GPT3[2:], "--prices=none.yaml"), "none.yaml does not exist"),
        ((*GPT3[2:], "--runs-factor=0.1"), "--runs-factor=0.1 has to be a finite number, 1 or more"),
        (
            (*GPT3[2:], "--chip=v5p", "--measured-tokens-per-s-per-chip=0"),
            "per-chip=0 has to be a finite number",
        ),
        ((*GPT3[2:], "--measured-tokens-per-s-per-chip=9"), "is the speed of one chip"),
        (
            (*GPT3[2:], "--chip=v5p", "--measured-tokens-per-s-per-chip=9", "--mfu=0.4"),
            "are two speeds: give one",
        ),
        (("--flops=1e20", "--chip=v5p", "--measured-tokens-per-s-per-chip=9"), "needs --tokens"),
        (("--scenarios=gpt2",), "'gpt2' is not one of gpt3"),
        (("--scenarios=none.yaml",), "none.yaml does not exist"),
        (("--scenarios=gpt3", "--chip=v5p"), "leave --chip out"),
        (("--scenarios=gpt3", "--published"), "ask for one"),
        (("--published", "--mfu=0.4"), "leave --mfu out"),
        (("--published", "--runs-factor=2"), "leave --runs-factor out"),
        ((*GPT3[2:], "--mfu="), "--mfu= has to be numbers such as"),
        ((*GPT3[2:], "--mfu=5e-324"), "a sum too large to count"),
        ((*GPT3[2:], "--commitment="), "--commitment='' is not one of"),
        (("--scenarios=gpt3", "--staff-usd=1e308", "--storage-usd=1e308"), "a sum too large to count"),
        (("--config=quickstart",), "takes --model, --params or --flops"),
        (("--modle=gpt3-175b",), "did you mean --model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(jaxlm, argv, message):
    code, out, err = jaxlm("plan", "cost", *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
