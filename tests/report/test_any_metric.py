"""The report of a run that is judged by any metric: the terminal, the page and the figures name it and print it."""

import json
import re

import pytest

from qdtune.__main__ import main
from qdtune.analysis.run import load_run
from qdtune.report.figures import figures
from qdtune.report.page import page
from qdtune.report.plot_data import sheet
from qdtune.report.scales import error, metric_axis, note_clipped
from qdtune.spec.tasks import ACCURACY, F1, MAE, R2
from qdtune.store.store import Store
from tests.judged import make_spec, write_run

VALUES = {"mae": lambda skill: 0.05 * (1 - skill), "r2": lambda skill: skill - 0.75, "f1": lambda skill: skill}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for metric, value_of in VALUES.items():
        spec = make_spec("binary" if metric == "f1" else "regression", metric)
        write_run(folder / metric, spec, value_of, dead=[(3, "diverged")])
    return folder


def printed(capsys, run, *options):
    with pytest.MonkeyPatch.context() as patch:  # drawing takes seconds
        patch.setattr("qdtune.commands.report._write_files", lambda *given: ["report: nowhere"])
        assert main(["report", str(run), *options]) == 0
    return capsys.readouterr().out


def test_the_terminal_shows_a_metric_that_goes_down(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, runs / "mae", "--all")
    assert max(map(len, text.splitlines())) <= 80 + len(str(runs))
    assert "bytes  depth  bits   between     validation mae           test mae  test r2  n" in text
    assert "  364      2     8      relu  0.00544 ± 0.00063  0.00544 ± 0.00063   0.5000  4" in text
    assert "mae: mean of n seeds ± half of its 95 % interval (Student t); lower is better" in text
    said = " ".join(text.split())
    assert (
        "It has mae 0.005443 on the validation set (95 % interval 0.00481 to 0.00607, 4 seeds) and 0.005443 on"
        in said
    )
    assert "by 0.00123 to 0.00159 in mae." in said
    assert "A negative effect favours the value in the column activation over identity." in said
    assert "1 relu -0.00159 [-0.00234, -0.00084] 4 helps" in said
    assert not re.search(
        "accurac|points|%(?! interval| of bootstrap| more)", said.replace(" %", "%").replace("5%.", "")
    )


def test_the_terminal_shows_fractions_in_per_cent(runs, capsys):
    text = printed(capsys, runs / "f1")
    assert "validation f1        test f1" in text
    assert "89.11% ± 1.26" in text
    assert "by 2.5 to 3.2 points." in " ".join(text.split())
    assert "accura" not in text


@pytest.mark.parametrize("metric", list(VALUES))
def test_the_page_names_the_metric(runs, metric):
    text = page([sheet(load_run(runs / metric))]).decode()
    body = re.sub(r"<script(?! type).*?</script>", "", text, flags=re.DOTALL)
    assert f"<h3>{metric.capitalize()} against bytes</h3>" in body
    assert f'"validation {metric}' in body
    assert "accura" not in body.lower()
    unit = "percentage points" if metric == "f1" else metric
    assert f"The difference in {unit} between" in body
    assert ("percent" in body) == (metric == "f1")


def drawn_axis(figure):
    """The axis of the metric in a chart: the first one with a domain."""

    def found(part):
        if isinstance(part, dict):
            if part.get("field") == "error" and "axis" in part:
                yield part
            part = list(part.values())
        for inner in part if isinstance(part, list) else []:
            yield from found(inner)

    return next(found(figure.chart.to_dict()))


def test_a_metric_that_goes_down_is_its_own_error(runs):
    drawn = sheet(load_run(runs / "mae"))
    by_name = {figure.name: figure for figure in figures(drawn)}
    axis = drawn_axis(by_name["front"])
    assert axis["title"] == "validation mae (log scale, better is up)"
    assert axis["axis"]["labelExpr"] == "format(datum.value, '.4~g')"
    low, high = sorted(axis["scale"]["domain"])
    values = [row["val"] for row in drawn.drawable]
    assert axis["scale"]["domain"] == [high, low]  # upside down
    assert low < min(values) <= max(values) < high
    assert all(low <= tick <= high for tick in axis["axis"]["values"])
    assert "the configuration of lowest mae up to a size" in by_name["front"].caption
    assert '"reverse": true' in json.dumps(by_name["forest_activation"].chart.to_dict())
    cells = json.dumps(by_name["heatmap"].chart.to_dict())
    assert (f'"text": "{min(values):.3g}"' in cells, '"text": "diverged"' in cells) == (True, True)


def test_a_negative_r2_is_drawn_at_zero_and_said(runs):
    drawn = sheet(load_run(runs / "r2"))
    by_name = {figure.name: figure for figure in figures(drawn)}
    assert min(row["val"] for row in drawn.drawable) < 0
    assert drawn_axis(by_name["front"])["scale"]["domain"][0] == 1.0
    for name in ("front", "bits", "curves"):
        assert by_name[name].caption.count("Marks with a negative r2 are drawn at 0.") == 1
    assert note_clipped(R2, [0.1, None]) == note_clipped(MAE, [1.0]) == note_clipped(ACCURACY, [0.1]) == ""


def test_axes_of_fractions_are_as_they_were():
    axis = metric_axis(ACCURACY, "validation", [0.9, 0.99]).to_dict()
    assert axis["title"] == "validation accuracy (%, error on a log scale)"
    assert axis["scale"]["domain"] == [pytest.approx(0.11), pytest.approx(0.01 / 1.2)]
    assert axis["axis"]["labelExpr"] == "format(100 * (1 - datum.value), '.4~g')"
    assert metric_axis(F1, "test", [0.9]).to_dict()["title"] == "test f1 (%, error on a log scale)"
    assert [error(one, 0.25) for one in (ACCURACY, R2, MAE)] == [0.75, 0.75, 0.25]
    assert [error(R2, -3.0), error(MAE, 3.0), error(MAE, 1e-15)] == [1.0, 3.0, 1e-15]


def test_runs_of_different_metrics_have_no_page_in_common(runs, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert main(["report", str(runs / "mae"), str(runs / "r2"), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: runs on one page must be judged by one metric, got {runs / 'mae'} by mae, {runs / 'r2'} by r2: "
        "report them one by one"
    )
    assert not out.exists()


def test_two_runs_of_one_metric_have_a_page(runs, tmp_path, capsys):
    write_run(tmp_path / "other", make_spec("regression", "mae", ["name=other"]), lambda skill: 0.06 * (1 - skill))
    out = tmp_path / "both.html"
    assert main(["report", str(runs / "mae"), str(tmp_path / "other"), "--out", str(out)]) == 0
    assert "The fronts on houses:data" in out.read_text()


def test_published_networks_are_beside_accuracy_only(runs, capsys):
    text = printed(capsys, runs / "mae", "--reference")
    assert "No published networks are known here for houses:data." in text


def test_a_run_is_verified(runs, capsys):
    assert main(["verify", str(runs / "mae")]) == 0
    assert "all whole" in capsys.readouterr().out
    assert Store(runs / "mae").find_damaged() == []


def test_values_close_to_the_best_one_are_told_apart_or_the_caption_says_so():
    assert error(R2, 0.9991) > error(R2, 0.99999) > error(R2, 1.0) > 0
    assert note_clipped(R2, [0.99999]) == note_clipped(F1, [0.9996]) == note_clipped(ACCURACY, [0.9994]) == ""
    assert note_clipped(ACCURACY, [0.9996]) == " Marks above 99.95 % are drawn there."
    assert note_clipped(R2, [1.0, -1.0]).endswith("drawn at 0. Marks above 0.9999995 are drawn there.")
    assert note_clipped(MAE, [0.0, 1.0]) == " Marks with mae 0 are drawn at the upper edge."


def test_an_axis_reaches_from_the_least_error_above_zero_however_small():
    axis = metric_axis(MAE, "validation", [0.0, 2e-15, 4e-14]).to_dict()
    assert axis["scale"]["domain"] == [pytest.approx(4.4e-14), pytest.approx(2e-15 / 1.2)]
    assert (axis["scale"]["clamp"], len(axis["axis"]["values"]) > 3) == (True, True)
    assert "clamp" not in metric_axis(MAE, "validation", [2e-15, 4e-14]).to_dict()["scale"]
    assert metric_axis(MAE, "validation", [0.0]).to_dict()["scale"]["domain"] == [pytest.approx(1.1), 1 / 1.2]
