"""The scaling law: recovered from points made by it and from Chinchilla's, refused where the points cannot show it."""

import numpy as np
import pytest

from jaxlm.plan.scaling import Law, doubts, extrapolation, fit_law
from jaxlm.plan.scaling_points import Points, find_csv, read_csv, why_not, without_highest
from jaxlm.plan.scaling_show import Budget, scaling_report
from jaxlm.types import UserError

TRUE = Law(E=1.7, A=400.0, B=900.0, alpha=0.35, beta=0.3)
PUBLISHED = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
"""Besiroglu et al. 2024, arXiv:2404.10102, table 1."""


def points_of(law, sizes, tokens, noise=0.0, seed=0):
    N, D = (axis.ravel() for axis in np.meshgrid(sizes, tokens))
    loss = law.loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))
    names = tuple(f"run {index}" for index in range(len(N)))
    return Points(names, tuple(N.tolist()), tuple(D.tolist()), tuple(loss.tolist()), "a grid")


@pytest.fixture(scope="module")
def chinchilla():
    path, drop = find_csv("chinchilla")
    return without_highest(read_csv(path, "chinchilla"), drop)


@pytest.fixture(scope="module")
def chinchilla_fit(chinchilla):
    return fit_law(chinchilla)


@pytest.mark.parametrize(
    "law", [TRUE, TRUE._replace(alpha=0.7, A=1e5), TRUE._replace(E=0.3, beta=0.15, B=60.0)]
)
def test_noiseless_points_give_their_law_back(law):
    fit = fit_law(points_of(law, np.geomspace(1e7, 1e10, 5), np.geomspace(1e8, 1e11, 5)), num_bootstraps=20)
    assert fit.law == pytest.approx(law, rel=1e-3)
    assert fit.scatter < 1e-6


def test_bad_runs_do_not_move_the_law():
    points = points_of(TRUE, np.geomspace(1e7, 1e10, 8), np.geomspace(1e8, 1e11, 8), noise=1e-3)
    spoiled = list(points.loss)
    spoiled[3], spoiled[40] = 9.0, 7.0  # diverged
    fit = fit_law(
        Points(points.names, points.params, points.tokens, tuple(spoiled), "spoiled"), num_bootstraps=20
    )
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((TRUE.alpha, TRUE.beta), abs=0.02)


def test_the_published_coefficients_come_back_from_the_published_points(chinchilla_fit):
    for name, published in PUBLISHED._asdict().items():
        found = chinchilla_fit.interval(lambda law, name=name: getattr(law, name))
        assert found.low < published < found.high
    found = chinchilla_fit.law
    assert (found.E, found.alpha, found.beta) == pytest.approx((1.8172, 0.3478, 0.3658), abs=0.002)
    assert (found.A, found.B) == pytest.approx((482.01, 2085.43), rel=0.03)


def test_no_law_fits_the_published_points_better(chinchilla, chinchilla_fit):
    """The minimum that Nelder-Mead of SciPy reaches from the published coefficients, to seven digits."""
    assert chinchilla_fit.objective == pytest.approx(1.0182779e-3, rel=1e-7)
    residuals = [np.log(PUBLISHED.loss(n, d) / loss) for n, d, loss in
                 zip(chinchilla.params, chinchilla.tokens, chinchilla.loss)]  # fmt: skip
    size = np.abs(residuals)
    published = np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum()
    assert chinchilla_fit.objective < published < 1.01 * chinchilla_fit.objective


def test_the_five_outliers_bend_the_data_exponent(chinchilla):
    everything = read_csv(find_csv("chinchilla")[0], "chinchilla")
    assert (len(everything.loss), len(chinchilla.loss)) == (245, 240)
    assert set(everything.loss) - set(chinchilla.loss) == {5.005582, 4.665232, 3.793872, 3.765563, 3.446995}
    # Their own notebook notes 0.4519 with the outliers.
    assert fit_law(everything, num_bootstraps=20).law.beta == pytest.approx(0.4519, abs=0.002)


def test_a_seed_gives_the_same_digits_and_another_seed_others(chinchilla, chinchilla_fit):
    first, again, other = (fit_law(chinchilla, 20, seed) for seed in (0, 0, 1))
    assert again == first
    assert other.law == first.law == chinchilla_fit.law
    assert other.replicates != first.replicates


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hits = []
    for seed in range(12):
        points = points_of(
            TRUE, np.geomspace(1e7, 1e10, 5), np.geomspace(1e8, 1e11, 5), noise=5e-3, seed=seed
        )
        found = fit_law(points, num_bootstraps=40).interval(lambda law: law.a)
        hits.append(found.low < TRUE.a < found.high)
    assert sum(hits) >= 10


def test_the_optimum_is_the_lowest_loss_of_its_compute():
    N, D = TRUE.optimum(1e21)
    assert 6 * N * D == pytest.approx(1e21)
    for factor in (0.9, 1.1):
        assert TRUE.loss(N * factor, D / factor) > TRUE.loss(N, D)
    more = TRUE.optimum(1e22)
    assert (more[0] / N, more[1] / D) == pytest.approx((10**TRUE.a, 10**TRUE.b))


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        (
            [1e6, 2e6, 4e6, 8e6, 8e6],
            [1e8, 3e8, 2e8, 5e8, 9e8],
            r"5 different \(N, D\) in 5 points are too few",
        ),
        ([1e6] * 4 + [2e6] * 4, [1e8, 2e8, 3e8, 4e8] * 2, "2 different N, and at least 3 are needed"),
        ([1e6, 2e6, 3e6, 4e6] * 2, [1e8] * 4 + [1.001e8, 3e8, 3e8, 3e8], "2 different D"),
        ([1e6 * 2**i for i in range(8)], [20e6 * 2**i for i in range(8)], "all points lie on one line"),
        ([1e6 * 2**i for i in range(8)], [1e10 / 2**i for i in range(8)], "all points lie on one line"),
        ([1e6, 1e6, 2e6, 2e6, 4e6, 4e6], [1e8, 3e8, 1e8, 3e8, 1e8, 9e8], None),
    ],
)
def test_points_that_cannot_show_the_law_are_refused_with_the_reason(params, tokens, reason):
    found = why_not(params, tokens)
    if reason is None:
        assert found is None
        return
    points = Points(("",) * len(params), tuple(params), tuple(tokens), (3.0,) * len(params), "mine.csv")
    with pytest.raises(UserError, match=f"mine.csv: .*{reason}"):
        fit_law(points)


def test_far_predictions_are_warned_of_and_farther_ones_refused(chinchilla):
    assert extrapolation(chinchilla, 70e9, 1.4e12) == []  # 45 times the compute
    (tokens,) = extrapolation(chinchilla, 8e9, 15e12)
    assert tokens.startswith("1.5e+13 tokens are 47 times beyond the largest run (3.18e+11)")
    assert [said.split()[1] for said in extrapolation(chinchilla, 200e9, 2e12)] == ["FLOPs", "parameters"]
    with pytest.raises(UserError, match=r"1\.2e\+26 FLOPs are 9,262 times beyond the largest run"):
        extrapolation(chinchilla, 1e12, 20e12)
    with pytest.raises(UserError, match="1e\\+04 parameters are 5,733 times below the smallest run"):
        extrapolation(chinchilla, 1e4, 1e11)


def test_an_optimum_that_the_points_do_not_determine_is_refused(chinchilla_fit):
    flat = [TRUE._replace(alpha=alpha, beta=0.01) for alpha in (0.01, 0.3, 3.0)] * 10
    fit = chinchilla_fit.__class__(chinchilla_fit.points, TRUE, 0.0, chinchilla_fit.residuals, tuple(flat))
    assert all(np.isfinite(law.loss(*law.optimum(1e22))) for law in flat)
    with pytest.raises(UserError, match="these 240 points do not determine the best model"):
        scaling_report(fit, Budget(flops=1e22), count="all", seconds=0.0)
    asked = scaling_report(fit, Budget(num_params=1e9, num_tokens=1e11), count="all", seconds=0.0)
    assert asked.data["prediction"]["loss"]["value"] == TRUE.loss(1e9, 1e11)


def test_a_floor_that_the_points_do_not_show_is_said():
    law = TRUE._replace(E=1e-6)
    fit = fit_law(points_of(law, np.geomspace(1e6, 4e6, 3), np.geomspace(1e7, 4e7, 3), noise=1e-3), 20)
    said = doubts(fit)
    assert any("9 points for five parameters" in line for line in said)
    few = fit.__class__(fit.points, law, 0.0, fit.residuals, fit.replicates)
    assert doubts(few)[0].startswith("E ended at zero")
    flat = fit.__class__(fit.points, TRUE._replace(beta=3.0), 0.0, fit.residuals, fit.replicates)
    assert doubts(flat)[0].startswith("beta ended at the edge of its range (3)")
    wide = fit.__class__(fit.points, TRUE, 0.0, fit.residuals, (TRUE, TRUE._replace(alpha=0.01)) * 10)
    assert doubts(wide)[0].startswith("the interval of alpha reaches the edge of its range (0.01 to 0.35)")


def test_every_point_and_number_of_the_tables_is_in_the_data(chinchilla_fit):
    report = scaling_report(chinchilla_fit, Budget(flops=1e24), count="all", seconds=0.0)
    assert len(report.data["points"]) == 240
    assert len(report.tables[-1].rows) == 20
    assert list(report.data["prediction"]) == ["flops", "params", "tokens", "tokens_per_param", "loss"]
    low, value, high = (report.data["prediction"]["params"][key] for key in ("low", "value", "high"))
    assert low < value < high
    assert value == chinchilla_fit.law.optimum(1e24)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bootstraps": 19}, "--bootstrap=19 must be at least 20"),
        ({"seed": -1}, "--seed=-1 must not be negative"),
    ],
)
def test_options_of_the_bootstrap_are_checked(chinchilla, options, message):
    with pytest.raises(UserError, match=message):
        fit_law(chinchilla, **options)
