"""The harness of the benchmarks: records, turns, processes, the file that is written."""

import json
import sys
from importlib import import_module

import pytest

from experiments.benchmarks import __main__ as harness
from experiments.benchmarks.measuring import Record, interleaved, ratio


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [
        ("≤", 1.0, True),
        ("≤", 1.1, False),
        ("≥", 1.0, True),
        ("≥", 0.9, False),
        ("=", 1.0, True),
        ("=", 1.1, False),
    ],
)
def test_a_target_is_met_on_its_good_side_alone(bound, value, met):
    record = Record("figure", value, "×", 1.0, bound)
    assert record.met is met
    assert record.to_plain()["met"] is met


def test_a_ratio_is_the_median_of_the_pairs_not_the_pair_of_medians():
    # Of the medians it would be 3 / 3; the pairs are 1/3, 3/1, 9/9.
    record = ratio("figure", [1, 3, 9], [3, 1, 9], to_reach=("≤", 1.0))
    assert record.value == 1.0
    assert record.spread == pytest.approx((2 / 3, 2.0))
    assert record.repetitions == 3


@pytest.mark.long
def test_contenders_take_turns_in_every_round():
    calls: list[str] = []

    def contender(name: str, value: float) -> float:
        calls.append(name)
        return value

    values = interleaved(
        {"a": lambda: contender("a", 1.0), "b": lambda: contender("b", 2.0)}, 8, what="turns"
    )
    assert values == {"a": [1.0] * 8, "b": [2.0] * 8}
    rounds = [calls[i : i + 2] for i in range(0, 16, 2)]
    assert all(sorted(each) == ["a", "b"] for each in rounds)
    assert len({tuple(each) for each in rounds}) == 2, "the order of a round is drawn"


def test_chosen_benchmarks_run_in_their_own_process_and_are_written(tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    function = "tests.experiments.made_benchmark:records"
    assert harness.main(["made", "--json", str(out)], {"made": function}) == 0
    (record,) = json.loads(out.read_text())
    assert {"name", "value", "unit", "target", "met", "spread", "repetitions"} <= record.keys()
    assert record["name"] == "a process of its own"
    assert record["met"]
    assert function.partition(":")[0] not in sys.modules
    printed = capsys.readouterr().out
    assert "a process of its own" in printed
    assert "what else has to be known" in printed


def test_one_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys):
    out = tmp_path / "bench.json"
    modules = {
        "broken": "tests.nothing_here:records",
        "made": "tests.experiments.made_benchmark:records",
    }
    assert harness.main(["--json", str(out)], modules) == 1
    assert len(json.loads(out.read_text())) == 1
    assert "broken failed" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_those_that_are_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        harness.main(["warm"], {"made": "tests.experiments.made_benchmark:records"})
    assert "expected some of made, got warm" in capsys.readouterr().err


def test_every_benchmark_of_the_list_has_records():
    for path in harness.BENCHMARKS.values():
        module, _, name = path.partition(":")
        assert callable(getattr(import_module(module), name)), path
