"""Methods of a user's own under a name: registered once, found in every process, or by path."""

import pickle

import pytest
import torch

import raybrew as rb
from raybrew.errors import ConfigError
from raybrew.losses.kd import make_kd_loss
from raybrew.losses.mixture import make_mixture, teacher_weights
from raybrew.losses.schedules import make_temperature_scheduler, make_weight_schedule
from raybrew.matches.capture import signal_of
from raybrew.matches.match_losses import match_loss
from raybrew.matches.spec import MatchSpec, Projections
from raybrew.objective.extensions import KINDS, install, register, registered
from tests import user_extensions
from tests.losses import user_losses

torch.set_num_threads(1)

OWN = {
    "kd_loss": lambda s, t, temperature, *, power=2: (s - t).abs().pow(power).sum(-1),
    "match_loss": user_losses.mean_absolute_error,
    "projection": user_extensions.deep,
    "temperature_scheduler": user_extensions.halved,
    "weight_schedule": user_extensions.by_half,
    "teacher_weighting": user_extensions.second_teacher,
}


@pytest.fixture(autouse=True)
def names():
    """Leave the names as they were."""
    before = {kind: dict(known.names) for kind, known in KINDS.items()}
    yield
    for kind, known in KINDS.items():
        known.names.clear()
        known.names.update(before[kind])


@pytest.fixture
def own():
    for kind, value in OWN.items():
        register(kind, "own", value)


def spec(loss: str = "own", proj=None) -> MatchSpec:
    return MatchSpec(layer_T=1, layer_S=1, feature="hidden", loss=loss, proj=proj)


def test_every_kind_can_be_extended():
    assert set(OWN) == set(KINDS)
    assert rb.register is register


@pytest.mark.usefixtures("own")
def test_what_is_registered_is_used_by_name():
    student, teacher = torch.ones(2, 3), torch.zeros(2, 3)
    assert make_kd_loss("own", {"power": 3})(2 * student, teacher, 1.0).tolist() == [24.0, 24.0]
    assert make_temperature_scheduler("own")(student, teacher, 6.0) == 3.0
    assert make_weight_schedule("own", {"low": 0.25})(0.75) == 0.25
    mixture = make_mixture("mean_logits", {"weighting": "own"})
    assert teacher_weights(mixture, torch.zeros(2, 4, 3), (1, 1)).tolist() == [[0.0] * 4, [1.0] * 4]
    loss = spec().build_loss()
    states = torch.zeros(1, 2, 4)
    partial = loss.loss([states + 3], None, loss.teacher_statistic([states], None))
    assert partial.numerator.item() == 3
    projection = Projections([spec("cos", ["own", 4, 8, {"lr": 0.1}])])["match_0"]
    assert projection([states])[0].shape == (1, 2, 8)
    assert [p.shape for p in projection.parameters()] == [(3, 4), (3,), (8, 3), (8,)]


@pytest.mark.usefixtures("own")
def test_a_projection_of_the_users_is_a_function_of_the_seed():
    before = torch.get_rng_state()
    first, again, other = (
        list(Projections([spec("cos", ["own", 4, 8])], seed).parameters()) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.usefixtures("own")
def test_it_reaches_another_process_and_the_drivers_word_wins():
    values = registered()
    assert {kind: set(found) for kind, found in values.items()} == {k: {"own"} for k in KINDS}
    sent = {
        kind: {n: v for n, v in found.items() if kind != "kd_loss"}
        for kind, found in values.items()
    }
    pickled = pickle.dumps(sent)
    KINDS["weight_schedule"].names["own"] = lambda progress: 7.0
    del KINDS["match_loss"].names["own"]
    install(pickle.loads(pickled))
    assert make_weight_schedule("own")(1.0) == 0.5
    assert match_loss("own").name == "own"


@pytest.mark.usefixtures("own")
def test_the_statistic_of_a_registered_loss_is_filed_under_its_code():
    assert (
        signal_of(spec(), "float32").statistic
        == signal_of(spec("tests.losses.user_losses:mean_absolute_error"), "float32").statistic
    )


def test_import_paths_need_no_registration():
    path = "tests.user_extensions"
    student = torch.ones(2, 3)
    assert make_temperature_scheduler(f"{path}:halved")(student, student, 6.0) == 3.0
    schedule = make_weight_schedule(f"{path}:by_half", {"low": 0.1})
    assert pickle.loads(pickle.dumps(schedule))(0.6) == 0.1
    mixture = make_mixture("sum_losses", {"weighting": f"{path}:second_teacher"})
    assert teacher_weights(mixture, torch.zeros(2, 1, 3), (1, 1)).tolist() == [[0.0], [1.0]]
    projection = Projections([spec("cos", [f"{path}:deep", 4, 8])])["match_0"]
    assert len(list(projection.parameters())) == 4
    with pytest.raises(ConfigError, match=r"weight schedule 'nowhere:x' can't be imported"):
        make_weight_schedule("nowhere:x")


def test_a_name_is_taken_once_and_built_in_names_never():
    register("weight_schedule", "own", user_extensions.by_half)
    register("weight_schedule", "own", user_extensions.by_half)
    with pytest.raises(ConfigError, match="weight_schedule 'own' exists already"):
        register("weight_schedule", "own", lambda progress: 1.0)
    for kind, name in (("match_loss", "pkd"), ("projection", "tanh"), ("kd_loss", "ce")):
        with pytest.raises(ConfigError, match=f"{kind} '{name}' exists already"):
            register(kind, name, OWN[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_none_of_its_kind_is_refused(kind):
    with pytest.raises(ConfigError, match="int"):
        register(kind, "three", 3)


def test_mistakes():
    with pytest.raises(ConfigError, match=r"kind of extension 'match_los'.*mean 'match_loss'"):
        register("match_los", "own", OWN["match_loss"])
    with pytest.raises(ConfigError, match="looks like an import path"):
        register("weight_schedule", "a:b", OWN["weight_schedule"])
    with pytest.raises(ConfigError, match=r"parameters among teacher_logits.*, got moon"):
        register("teacher_weighting", "own", user_extensions.asks_for_the_moon)
    mixture = make_mixture("mean_probs", {"weighting": "tests.user_extensions:of_a_wrong_shape"})
    with pytest.raises(ConfigError, match=r"of_a_wrong_shape.*\(2, 4\).*got \(2,\)"):
        teacher_weights(mixture, torch.zeros(2, 4, 3), (1, 1))
