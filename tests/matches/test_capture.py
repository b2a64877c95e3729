"""Outputs of named modules by hooks, and the custom matches made of them."""

import pickle
from typing import Any

import pytest
import torch
from ray import cloudpickle
from torch import nn

from raybrew.config.section import import_path_of
from raybrew.errors import ConfigError, import_callable
from raybrew.losses.match_loss import FeatureSizes, Partial, pack, unpack
from raybrew.matches.capture import ModuleCapture, find_module
from raybrew.matches.spec import CustomMatch
from tests.matches import user_matches

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
        out = self.dense(states)
        return out, out * 2, "no tensor"


class Model(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(size), Block(size)])
        self.unused = nn.Linear(size, size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            states = layer(states)[0]
        return states


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_captures_outputs_with_their_graph_and_leaves_no_hooks():
    torch.manual_seed(0)
    model, states = Model(4), torch.randn(2, 3, 4)
    with ModuleCapture(model, [("layers.0.dense", 0), ("layers.1", 1)]) as captured:
        assert hooks_of(model) == 2
        out = model(states)
        outputs = captured.take()
    assert hooks_of(model) == 0
    torch.testing.assert_close(outputs["layers.0.dense", 0], model.layers[0](states)[0])
    torch.testing.assert_close(outputs["layers.1", 1], 2 * out)
    outputs["layers.0.dense", 0].sum().backward()
    first = find_module(model, "layers.0.dense")
    assert isinstance(first, nn.Linear)
    assert first.weight.grad is not None


def test_each_forward_gives_its_own_outputs():
    model = Model(4)
    captured = ModuleCapture(model, [("layers.1.dense", 0)])
    for _ in range(3):
        expected = model(torch.randn(2, 3, 4))
        assert torch.equal(captured.take()["layers.1.dense", 0], expected)
    with pytest.raises(ConfigError, match=r"didn't call layers\.1\.dense"):
        captured.take()
    captured.remove()
    captured.remove()
    assert hooks_of(model) == 0


def test_hooks_go_when_the_forward_fails():
    model = Model(4)
    with pytest.raises(RuntimeError), ModuleCapture(model, [("layers.0", 0)]):
        model(torch.randn(2, 3, 5))
    assert hooks_of(model) == 0


def test_a_module_the_forward_leaves_out():
    model = Model(4)
    with ModuleCapture(model, [("unused", 0)]) as captured:
        model(torch.randn(2, 3, 4))
        with pytest.raises(ConfigError, match="didn't call unused"):
            captured.take()


def test_a_name_the_model_hasnt_got_leaves_no_hook():
    model = Model(4)
    with pytest.raises(ConfigError, match=r"'layers\.2\.dense'; did you mean 'layers\."):
        ModuleCapture(model, [("layers.0", 0), ("layers.2.dense", 0)])
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    ("index", "message"), [(2, "returns a str"), (3, "returns 3 outputs; none at output_index 3")]
)
def test_an_output_that_is_no_tensor(index: int, message: str):
    model = Model(4)
    with (
        ModuleCapture(model, [("layers.0", index)]),
        pytest.raises(ConfigError, match=message),
    ):
        model(torch.randn(2, 3, 4))


def match(**changes) -> CustomMatch:
    given = {
        "module_T": "layers.1",
        "module_S": "layers.0",
        "loss": user_matches.squared_error,
        **changes,
    }
    return CustomMatch(**given)


def test_a_custom_match_trains_the_student():
    """From two models to a gradient, with TextBrewer's fields: the way that fails there."""
    torch.manual_seed(0)
    teacher, student = Model(6).requires_grad_(False), Model(4)
    spec = match(proj_func=["linear", 4, 6], proj_group={"lr": 0.1}, weight=2.0)
    projection = spec.build_projection()
    assert projection is not None
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    optimizer.add_param_group({"params": projection.parameters(), **spec.projection_options()})
    assert optimizer.param_groups[1]["lr"] == 0.1
    wide, narrow = torch.randn(2, 3, 6), torch.randn(2, 3, 4)
    values = []
    with (
        ModuleCapture(teacher, [(spec.module_T, 0)]) as captured_T,
        ModuleCapture(student, [(spec.module_S, 0)]) as captured_S,
    ):
        for _ in range(20):
            teacher(wide)
            student(narrow)
            output_T = captured_T.take()[spec.module_T, 0]
            output_S = projection(captured_S.take()[spec.module_S, 0])
            partial = spec.compute(output_S, output_T)
            value = partial.numerator.sum() / partial.denominator.sum()
            torch.testing.assert_close(value, ((output_S - output_T) ** 2).mean())
            optimizer.zero_grad()
            (spec.weight * value).backward()
            optimizer.step()
            values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_a_loss_that_gives_a_partial_keeps_it():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    student, teacher = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    partial = match(loss=user_matches.masked_squared_error).compute(student, teacher, mask, mask)
    assert partial.numerator.tolist() == [8.0, 4.0]
    assert partial.denominator.tolist() == [8.0, 4.0]


def test_one_number_is_spread_over_examples_that_have_a_token():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    student = torch.zeros(2, 3, 4, requires_grad=True)
    spec = match()
    partial = spec.compute(student, torch.ones(2, 3, 4), mask, mask)
    assert partial.numerator.tolist() == [1.0, 0.0]
    assert partial.denominator.tolist() == [1.0, 0.0]
    nothing = spec.compute(student, torch.ones(2, 3, 4), mask * 0, mask * 0)
    assert nothing.numerator.tolist() == [0.0, 0.0]
    nothing.numerator.sum().backward()
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


def test_a_loss_that_gives_neither_is_refused():
    with pytest.raises(ConfigError, match=r"the loss returned \[2, 3, 4\]; expected one number"):
        match(loss=user_matches.not_a_loss).compute(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    "loss", [user_matches.squared_error, "tests.matches.user_matches:squared_error"]
)
def test_a_spec_reaches_other_processes(loss):
    spec = match(loss=loss, proj_func="tests.matches.user_matches:own_projection", teacher="a")
    assert import_path_of(spec.loss) == "tests.matches.user_matches:squared_error"
    restored = pickle.loads(pickle.dumps(spec))
    assert restored == spec
    partial = restored.compute(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    assert isinstance(partial, Partial)
    assert isinstance(restored.build_projection(), nn.Sequential)


def test_a_lambda_reaches_workers_as_ray_ships_it():
    dumps: Any = cloudpickle.dumps  # pyright: ignore[reportPrivateImportUsage]
    spec = pickle.loads(dumps(match(loss=lambda s, t, ms, mt: (s - t).sum())))
    assert spec.compute(torch.ones(1, 2, 3), torch.zeros(1, 2, 3)).numerator.item() == 6


def test_the_projection_is_a_function_of_the_seed():
    spec = match(proj_func=["tanh", 4, 6, {"lr": 0.3}])
    states = torch.randn(2, 3, 4)
    projections = [spec.build_projection(seed) for seed in (0, 0, 1)]
    values = [projection(states) for projection in projections if projection is not None]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert values[0].abs().max() < 1
    assert spec.projection_options() == {"lr": 0.3}
    assert match().build_projection() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "tests.matches.user_matches:missing"}, "loss .*can't be imported"),
        ({"loss": "nothing"}, "loss .*can't be imported"),
        ({"loss": "tests.matches.user_matches:Partial.x"}, "loss .*can't be imported"),
        ({"loss": "tests.models:__name__"}, "which can't be called"),
    ],
)
def test_a_loss_that_leads_nowhere(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        match(**changes).compute(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_a_projection_that_is_no_module():
    with pytest.raises(ConfigError, match=r"built a int; expected a torch\.nn\.Module"):
        match(proj_func=user_matches.builds_no_module).build_projection()


def test_import_callable_leaves_callables_alone():
    assert import_callable(user_matches.squared_error, "loss") is user_matches.squared_error


def test_the_teachers_output_is_packed_by_its_axes():
    spec = match()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    output = torch.randn(2, 3, 4)
    ragged = pack(output, mask, spec.axes)
    assert ragged.offsets.tolist() == [0, 8, 12]
    restored = unpack(ragged, mask, spec.axes, FeatureSizes(4))
    assert torch.equal(restored, output * mask.unsqueeze(-1))
