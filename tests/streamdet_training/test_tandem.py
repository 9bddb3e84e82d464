"""min t-DCF: both forms by hand, never mixed, and ASV score files."""

import pytest

from streamdet.errors import DataError, MissingError
from streamdet_training import tandem
from streamdet_training.tandem import AsvRates

# From the lowest up: spoof, spoof, bona fide, spoof, bona fide, bona fide (misses and false alarms in thirds).
BONA, FAKE = [2.0, 1.0, -1.0], [-2.0, 0.0, -3.0]
ASV = AsvRates(threshold=0.0, miss=0.02, false_alarm=0.03, spoof_false_alarm=0.5)


def test_the_legacy_form_by_hand():
    """C1 = 0.9405 * 0.98 - 0.0095 * 10 * 0.03 = 0.91884; C2 = 10 * 0.05 * 0.5 = 0.25.

    The best threshold misses none and lets a third pass: (0.25 / 3) / 0.25.
    """
    assert tandem.min_tdcf_2019(BONA, FAKE, ASV) == pytest.approx(1 / 3)
    # Of the points (0, 1), (0, 1/3), (1/3, 1/3), (1/3, 0), ... a dearer false alarm takes another.
    dear = AsvRates(0.0, 0.7, 0.03, 1.0)
    c1 = 0.9405 * 0.3 - 0.0095 * 10 * 0.03
    assert tandem.min_tdcf_2019(BONA, FAKE, dear) == pytest.approx(c1 / 3 / min(c1, 0.5))


def test_the_constrained_form_by_hand():
    """C0 = 0.9405 * 0.02 + 0.0095 * 10 * 0.03 = 0.02166; C1 = 0.9405 - C0; C2 = 0.25."""
    c0 = 0.02166
    assert tandem.min_tdcf_2021(BONA, FAKE, ASV) == pytest.approx((c0 + 0.25 / 3) / (c0 + 0.25))


def test_a_countermeasure_that_does_not_listen_costs_1_in_both_forms():
    assert tandem.min_tdcf_2019([0.0], [0.0], ASV) == 1
    assert tandem.min_tdcf_2021([0.0], [0.0], ASV) == 1


def test_the_forms_differ_and_are_asked_for_by_name():
    by_name = {form: tandem.min_tdcf(form, BONA, FAKE, ASV) for form in tandem.FORMS}
    assert by_name == {
        "2019": tandem.min_tdcf_2019(BONA, FAKE, ASV),
        "2021": tandem.min_tdcf_2021(BONA, FAKE, ASV),
    }
    assert by_name["2019"] != by_name["2021"]


def test_an_asv_is_measured_at_its_own_eer_threshold():
    """From the lowest up: non, non, target, non, target, target. After three rejections both rates are a third.

    The threshold is the last score that was rejected, 0, and a score at it counts as accepted, as in the packages.
    """
    found = tandem.asv_rates([0.0, 2.0, 3.0], [-2.0, -1.0, 1.0], [0.0, -5.0, 9.0, 1.0])
    assert (found.threshold, found.miss, found.false_alarm, found.spoof_false_alarm) == (0, 0, 1 / 3, 3 / 4)


def test_an_asv_that_no_spoof_passes_has_no_tdcf():
    hopeless = AsvRates(0.0, 0.02, 0.03, 0.0)
    for form in tandem.FORMS:
        with pytest.raises(DataError, match="t-DCF C2"):
            tandem.min_tdcf(form, BONA, FAKE, hopeless)
    with pytest.raises(DataError, match="t-DCF C1"):
        tandem.min_tdcf_2019(BONA, FAKE, AsvRates(0.0, 1.0, 0.03, 0.5))


def test_score_files_of_2019_and_pasted_ones_of_2021_are_read(tmp_path):
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("bonafide target 2\nbonafide nontarget -1.5\nA07 spoof 1\n")
    new.write_text(
        "LA_1 LA_E_1 alaw ita bonafide target notrim eval LA_1 LA_E_1 2\n"
        "LA_1 LA_E_2 alaw ita bonafide nontarget notrim eval LA_1 LA_E_2 -1.5\n\n"
        "LA_1 LA_E_3 alaw ita A07 spoof notrim eval LA_1 LA_E_3 1\n"
    )
    assert tandem.read_asv(old) == tandem.read_asv(new) == tandem.asv_rates([2], [-1.5], [1])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("bonafide impostor 3", r"asv\.txt:2: .*one of target, nontarget, spoof"),
        ("target spoof 3", r"asv\.txt:2: "),
        ("A07 spoof high", r"asv\.txt:2 score: 'high', expected a number"),
        ("A07 spoof nan", r"asv\.txt:2 score: 'nan', expected a finite number"),
        ("- target 1", r"nontarget scores: 0, expected at least one"),
    ],
)
def test_a_broken_asv_file_is_named_with_its_line(tmp_path, line, complaint):
    path = tmp_path / "asv.txt"
    with pytest.raises(MissingError, match="ASV scores"):
        tandem.read_asv(path)
    path.write_text(f"- target 2\n{line}\n")
    with pytest.raises(DataError, match=complaint):
        tandem.read_asv(path)
