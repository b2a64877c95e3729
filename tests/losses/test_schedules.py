"""Temperature schedulers and weight schedules."""

import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.schedules import (
    TEMPERATURE_SCHEDULERS,
    WEIGHT_SCHEDULES,
    make_temperature_scheduler,
    make_weight_schedule,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer import presets

torch.set_num_threads(1)


def pair(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 2


def row_temperatures(name: str, options: dict[str, float], *inputs: Any) -> Tensor:
    rows = make_temperature_scheduler(name, options)(*inputs)
    assert isinstance(rows, Tensor)
    return rows


class TestTemperature:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("flsw", {"beta": 1.5, "gamma": 2.0}),
            ("flsw", {"beta": 1, "gamma": 0.5}),
            ("cwsm", {"beta": 0.7}),
        ],
    )
    def test_equals_textbrewer_on_ragged_rows(self, name, options):
        student, teacher = pair(3, 6, 5)
        mask = torch.arange(6) < torch.tensor([[6], [2], [1]])
        ours = row_temperatures(name, options, student, teacher, 4.0, mask)
        theirs = presets.TEMPERATURE_SCHEDULER[[name, *options.values()]]
        expected = theirs(student[mask], teacher[mask], 4.0)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours[mask], expected, rtol=0, atol=1e-10)
        assert (ours[~mask] == 4.0).all()

    def test_constant(self):
        student, teacher = pair(2, 3)
        assert make_temperature_scheduler("constant")(student, teacher, 8) == 8

    def test_flsw_by_hand(self):
        # Orthogonal: w = 1; parallel: w = 0 up to ε. The mean is ½.
        student = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
        options = {"beta": 2.0, "gamma": 1.0, "eps": 1e-12}
        rows = row_temperatures("flsw", options, student, teacher, 4.0)
        assert rows.tolist() == pytest.approx([3.0, 5.0])

    def test_cwsm_by_hand(self):
        student = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
        weights = [1 / 0.751, 1 / 0.501]
        mean = sum(weights) / 2
        rows = row_temperatures("cwsm", {"beta": 3.0}, student, student, 4.0)
        assert rows.tolist() == pytest.approx([4 + 3 * (mean - weight) for weight in weights])

    def test_no_gradient_flows(self):
        student, teacher = pair(2, 3)
        rows = row_temperatures("cwsm", {"beta": 1.0}, student.requires_grad_(), teacher, 4.0)
        assert not rows.requires_grad

    @pytest.mark.parametrize("name", ["flsw", "cwsm"])
    def test_the_mean_over_ranks_makes_shards_equal_the_batch(self, name):
        options = {"beta": 1.0, "gamma": 2.0} if name == "flsw" else {"beta": 1.0}
        student, teacher = pair(5, 4)
        parts = [(student[:2], teacher[:2]), (student[2:], teacher[2:])]
        whole = row_temperatures(name, options, student, teacher, 4.0)
        sums: list[Tensor] = []
        for part in parts:
            row_temperatures(name, options, *part, 4.0, None, lambda s: sums.append(s) or s)
        assert [total[1].item() for total in sums] == [2, 3]
        both = sums[0] + sums[1]
        shards = [
            row_temperatures(name, options, *part, 4.0, None, lambda _: both) for part in parts
        ]
        torch.testing.assert_close(torch.cat(shards), whole, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("options", [{"beta": 1.0, "gamma": 0.5}, {"beta": 1e6, "gamma": 1.0}])
    def test_extremes_give_a_usable_temperature(self, dtype, options):
        student = torch.tensor([[1e4, -1e4, -math.inf], [1e4, -1e4, -math.inf], [1.0, 2.0, 3.0]])
        teacher = torch.tensor([[1e4, -1e4, -math.inf], [-1e4, 1e4, -math.inf], [1.0, 2.0, 3.0]])
        for name in ("flsw", "cwsm"):
            given = options if name == "flsw" else {"beta": options["beta"]}
            rows = row_temperatures(name, given, student.to(dtype), teacher.to(dtype), 4.0)
            assert rows.isfinite().all()
            assert rows.min() >= 1e-2 - 1e-9
            assert rows.dtype == torch.float32

    def test_no_valid_row_gives_the_base(self):
        student, teacher = pair(2, 3)
        none = torch.zeros(2, dtype=torch.bool)
        rows = row_temperatures("cwsm", {"beta": 1.0}, student, teacher, 4.0, none)
        assert rows.tolist() == [4.0, 4.0]

    @pytest.mark.parametrize(
        ("name", "options"), [("flsw", {"beta": 3.0, "gamma": 1.0}), ("cwsm", {"beta": 3.0})]
    )
    def test_a_row_alone_is_its_own_mean_and_has_the_base(self, name, options):
        student, teacher = pair(3, 4)
        alone = row_temperatures(name, options, student[:1], teacher[:1], 4.0)
        assert alone.item() == pytest.approx(4.0)
        mask = torch.tensor([False, True, False])
        rows = row_temperatures(name, options, student, teacher, 4.0, mask)
        assert rows.tolist() == pytest.approx([4.0] * 3)

    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_permuting_permutes_and_the_mean_is_the_base(self, seed):
        student, teacher = pair(6, 4, seed=seed)
        options = {"beta": 0.5, "gamma": 1.0}
        rows = row_temperatures("flsw", options, student, teacher, 8.0)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        moved = row_temperatures("flsw", options, student[order], teacher[order], 8.0)
        torch.testing.assert_close(moved, rows[order])
        assert rows.mean().item() == pytest.approx(8.0)

    def test_mistakes(self):
        assert list(TEMPERATURE_SCHEDULERS) == ["constant", "flsw", "cwsm"]
        with pytest.raises(ConfigError, match="mean 'flsw'"):
            make_temperature_scheduler("flws")
        with pytest.raises(ConfigError, match="needs the option 'gamma'"):
            make_temperature_scheduler("flsw", {"beta": 1.0})
        with pytest.raises(ConfigError, match="'gamma': expected a number"):
            make_temperature_scheduler("flsw", {"beta": 1.0, "gamma": -1.0})
        with pytest.raises(ConfigError, match="option of Temperature scheduler 'cwsm' 'gamma'"):
            make_temperature_scheduler("cwsm", {"beta": 1.0, "gamma": 1.0})


class TestWeight:
    @pytest.mark.parametrize("name", ["linear_decay", "linear_growth"])
    @given(progress=st.floats(0, 1))
    @settings(deadline=None, max_examples=25)
    def test_equals_textbrewer(self, name, progress):
        expected = presets.WEIGHT_SCHEDULER[name](progress)
        assert make_weight_schedule(name)(progress) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(
        ("name", "options", "values"),  # at 0, ¼, ½, 1
        [
            ("constant", {}, [1, 1, 1, 1]),
            ("linear_decay", {}, [1, 0.75, 0.5, 0]),
            ("linear_growth", {}, [0, 0.25, 0.5, 1]),
            ("cosine", {}, [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]),
            ("cosine", {"start": 0.2, "end": 1.0}, [0.2, 1 - 0.4 * (1 + math.sqrt(0.5)), 0.6, 1]),
            ("annealed", {}, [1, 0.75, 0.5, 0]),
            ("annealed", {"start": 0, "end": 1}, [0, 0.25, 0.5, 1]),
            ("annealed", {"begin": 0.25, "until": 0.75}, [1, 1, 0.5, 0]),
            ("annealed", {"begin": 0.5, "until": 0.5}, [1, 1, 0, 0]),
        ],
    )
    def test_by_hand_from_the_first_step_on(self, name, options, values):
        schedule = make_weight_schedule(name, options)
        assert [schedule(x) for x in (0, 0.25, 0.5, 1)] == pytest.approx(values, abs=1e-12)

    def test_pickling(self):
        schedule = make_weight_schedule("cosine", {"end": 0.5})
        assert pickle.loads(pickle.dumps(schedule))(1.0) == 0.5

    def test_mistakes(self):
        names = ["constant", "linear_decay", "linear_growth", "cosine", "annealed"]
        assert list(WEIGHT_SCHEDULES) == names
        with pytest.raises(ConfigError, match="mean 'linear_decay'"):
            make_weight_schedule("linear_decline")
        with pytest.raises(ConfigError, match=r"'until': expected a number in \[0.0, 1.0\], got 2"):
            make_weight_schedule("annealed", {"until": 2})
        for progress in (-0.1, 1.1, math.nan):
            with pytest.raises(ConfigError, match="expected progress"):
                make_weight_schedule("constant")(progress)
