"""Projections: TextBrewer's maps and initial weights, and optimizer groups of their own."""

import copy
import warnings

import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.matches.presets import PRESETS
from raybrew.matches.spec import MatchSpec, Projections

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.presets import PROJ_MAP

torch.set_num_threads(1)


def spec(kind: str = "linear", loss: str = "hidden_mse", layers=(1, 1), options=None) -> MatchSpec:
    return MatchSpec.model_validate(
        {
            "layer_T": layers[0],
            "layer_S": layers[1],
            "feature": "hidden",
            "loss": loss,
            "proj": [kind, 5, 7, options or {}],
        }
    )


UNPROJECTED = MatchSpec(layer_T=0, layer_S=0, feature="hidden", loss="mmd")


@pytest.mark.parametrize("kind", ["linear", "relu", "tanh"])
def test_maps_equal_textbrewers(kind: str):
    projection = Projections([spec(kind)])["match_0"]
    judge = PROJ_MAP[kind](5, 7)
    linear = judge if kind == "linear" else judge[0]
    with torch.no_grad():
        weight, bias = projection.parameters()
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    states = torch.randn(2, 3, 5)
    torch.testing.assert_close(projection([states])[0], judge(states), rtol=0, atol=0)


def test_initial_weights_are_normal_and_biases_zero():
    big = MatchSpec(
        layer_T=0, layer_S=0, feature="hidden", loss="cos", proj=("linear", 312, 768, {})
    )
    weight, bias = Projections([big])["match_0"].parameters()
    assert weight.shape == (768, 312)
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(weight.mean().item()) < 2e-4
    assert bias.count_nonzero() == 0


def test_weights_are_a_function_of_the_seed_alone():
    matches = [spec(), UNPROJECTED, spec("tanh")]
    before = torch.get_rng_state()
    first, again = Projections(matches, seed=3), Projections(matches, seed=3)
    other = Projections(matches, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == ["match_0", "match_2"]
    for ours, same, different in zip(
        first.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(ours, same)
        assert ours.count_nonzero() == 0 or not torch.equal(ours, different)
    weights = [next(projection.parameters()) for projection in first.values()]
    assert not torch.equal(weights[0], weights[1])


def test_two_layers_of_a_match_share_one_map():
    match = spec(loss="fsp", layers=((1, 2), (0, 1)))
    projection = Projections([match])["match_0"]
    assert len(list(projection.parameters())) == 2
    first, second = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    projected = projection([first, second])
    torch.testing.assert_close(projected[1], projection([second])[0])
    doubled = projection([first, first])
    assert doubled[0] is doubled[1]


def test_layers_of_emd_have_a_map_each():
    match = spec(loss="emd", layers=((1, 2, 3), (1, 2)))
    projection = Projections([match])["match_0"]
    assert len(list(projection.parameters())) == 4
    states = torch.randn(2, 3, 5)
    first, second = projection([states, states])
    assert not torch.equal(first, second)
    with pytest.raises(ConfigError, match="2 layers got the hidden states of 3"):
        projection([states] * 3)


def test_each_projection_is_an_optimizer_group_with_its_options():
    matches = [spec(options={"lr": 0.5, "weight_decay": 0.1}), UNPROJECTED, spec("relu")]
    projections = Projections(matches)
    student = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    for group in projections.groups(torch.optim.AdamW):
        optimizer.add_param_group(group)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5, 1e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1, 0.0]
    grouped = [p for group in optimizer.param_groups[1:] for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in projections.parameters()}


def test_options_the_optimizer_doesnt_know_are_refused():
    matches = [spec(options={"learning_rate": 0.5})]
    projections = Projections(matches)
    with pytest.raises(ConfigError, match=r"'hidden_mse'.*option of AdamW 'learning_rate'"):
        projections.groups(torch.optim.AdamW)
    assert projections.groups()[0]["learning_rate"] == 0.5
    wrong = [spec(options={"params": []})]
    with pytest.raises(ConfigError, match="`params`"):
        Projections(wrong).groups()


def test_projections_move_train_and_load_like_any_module():
    projections = Projections(PRESETS["L4t_hidden_mse"])
    assert len(projections) == 5
    other = Projections(PRESETS["L4t_hidden_mse"], seed=1)
    other.load_state_dict(copy.deepcopy(projections.state_dict()))
    states = torch.randn(1, 2, 312, dtype=torch.float64)
    for key in projections:
        left, right = projections[key].double(), other[key].double()
        torch.testing.assert_close(left([states]), right([states]), rtol=0, atol=0)
