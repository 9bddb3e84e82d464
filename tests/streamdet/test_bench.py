"""What every bench stands on: turns until three agree, and a report that can be read by people and programs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.bench.report import Report, said, show, write
from streamdet.bench.steady import agree, percentiles, take_turns

POSITIVE = st.floats(1e-3, 1e6)


@given(st.lists(POSITIVE, max_size=2))
def test_fewer_than_three_values_never_agree(values):
    assert not agree(values)


@given(POSITIVE, st.lists(st.floats(1.0, 1.0999), min_size=2, max_size=2), st.lists(POSITIVE, max_size=3))
def test_three_within_a_tenth_agree_whatever_else_was_measured(value, near, others):
    assert agree([*others, value, *(value * each for each in near)])


def test_values_that_differ_by_more_do_not_agree():
    assert not agree([1.0, 1.2, 1.4, 1.6])


def test_turns_are_taken_until_each_has_come_to_rest():
    asked = []
    scripts = {"ours": iter([9.0, 1.0, 2.0, 1.0, 1.0]), "theirs": iter([9.0, 5.0, 5.0, 5.0, 5.0])}

    def measure(name):
        asked.append(name)
        return next(scripts[name])

    found = take_turns({name: lambda name=name: measure(name) for name in scripts})
    assert asked == ["ours", "theirs"] * 5  # one to warm up, then four, since ours needed a fourth
    assert found["ours"].values == (1.0, 2.0, 1.0, 1.0)
    assert found["ours"].agreed
    assert found["ours"].median == 1.0


def test_what_does_not_come_to_rest_says_so():
    values = iter(2.0**number for number in range(99))
    found = take_turns({"restless": lambda: next(values)}, rounds=4)
    assert len(found["restless"].values) == 4
    assert not found["restless"].agreed


def test_what_cannot_be_measured_any_more_gets_no_turns_and_keeps_its_figures():
    values = {"able": iter([1.0, 2.0, 1.0, 1.0]), "unable": iter([5.0, None])}
    found = take_turns({name: lambda name=name: next(values[name]) for name in values}, warm_up=0)
    assert found["able"].values == (1.0, 2.0, 1.0, 1.0)
    assert found["unable"].values == (5.0,)
    assert take_turns({"never": lambda: None}, warm_up=0)["never"].values == ()


def test_percentiles_of_nothing_are_no_numbers():
    assert percentiles([1.0, 2.0, 3.0], 50) == [2.0]
    assert all(value != value for value in percentiles([], 50, 99))


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (True, "yes"), (12345, "12,345"), (0.012345, "0.0123"), (4321.5, "4,322")]
)
def test_values_are_written_for_people(value, shown):
    assert said(value) == shown


def test_a_report_is_a_table_json_lines_a_file_and_a_plot(tmp_path, capsys):
    report = Report.of("engine", {"batch": 4}, [{"batch": 4, "ratio_engine_to_bare": 0.97}])
    show(report, {"batch": "batch", "of bare": "ratio_engine_to_bare"}, as_json=False)
    shown = capsys.readouterr().out
    assert "of bare" in shown
    assert "0.97" in shown
    assert report.machine["processor"] in shown

    show(report, {}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"bench": "engine", "batch": 4, "ratio_engine_to_bare": 0.97}

    write(report, tmp_path, lambda figure: figure.subplots().plot([1, 2]))
    kept = json.loads((tmp_path / "bench-engine.json").read_text("utf-8"))
    assert kept["rows"] == report.rows
    assert {"processor", "cores", "python"} <= set(kept["machine"])
    assert (tmp_path / "bench-engine.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in tmp_path.iterdir()} == {"bench-engine.json", "bench-engine.png"}


def test_json_has_no_infinity_and_no_nan(tmp_path, capsys):
    report = Report.of("overload", {}, [{"ratio": float("inf"), "rss": [[0.0, float("nan")]], "calls": 3}])
    show(report, {}, as_json=True)
    wanted = {"bench": "overload", "ratio": None, "rss": [[0.0, None]], "calls": 3}
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == wanted
    write(report, tmp_path)
    assert "NaN" not in (tmp_path / "bench-overload.json").read_text("utf-8")
