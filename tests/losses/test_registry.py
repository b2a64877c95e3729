"""From names, options and import paths to losses."""

import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.losses.kd import KD_LOSSES, make_kd_loss
from raybrew.losses.registry import KDLoss
from raybrew.objective.extensions import install, register, registered

torch.set_num_threads(1)

MODULE = textwrap.dedent(
    """
    def absolute(student_logits, teacher_logits, temperature, *, factor=1.0):
        return factor * ((student_logits - teacher_logits) / temperature).abs().sum(-1)

    def labelled(student_logits, teacher_logits, temperature, labels):
        return student_logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    def averaged(student_logits, teacher_logits, temperature):
        return student_logits.mean()

    NUMBER = 3
    """
)


def absolute(student_logits, teacher_logits, temperature, *, factor=1.0):
    return factor * ((student_logits - teacher_logits) / temperature).abs().sum(-1)


@pytest.fixture
def registry():
    """Leave the names as they were."""
    before = dict(KD_LOSSES)
    yield KD_LOSSES
    KD_LOSSES.clear()
    KD_LOSSES.update(before)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "brewed_losses.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("brewed_losses", None)


def test_the_names_are_those_of_the_methods():
    names = (
        "ce mse kl reverse_kl jsd skew_kl skew_reverse_kl adaptive_kl tvd dkd dist logit_std bce"
    )
    assert list(KD_LOSSES) == names.split()
    assert all(loss.name == name for name, loss in KD_LOSSES.items())
    assert [name for name, loss in KD_LOSSES.items() if loss.needs_labels] == ["dkd"]
    assert [name for name, loss in KD_LOSSES.items() if loss.needs_mask] == ["dist"]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown KD loss 'revers_kl'.*mean 'reverse_kl'"):
        make_kd_loss("revers_kl")


def test_an_unknown_option_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"option of KD loss 'jsd' 'betta'.*mean 'beta'"):
        make_kd_loss("jsd", {"betta": 0.5})
    with pytest.raises(ConfigError, match="none at all"):
        make_kd_loss("kl", {"beta": 0.5})
    with pytest.raises(ConfigError, match="option of KD loss 'dkd' 'labels'"):
        make_kd_loss("dkd", {"labels": 1})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jsd", {"beta": 0.0}),
        ("jsd", {"beta": 1.0}),
        ("jsd", {"beta": True}),
        ("jsd", {"beta": float("nan")}),
        ("skew_kl", {"skew": 1.0}),
        ("skew_reverse_kl", {"skew": -0.1}),
        ("adaptive_kl", {"mu": 1.0}),
        ("dkd", {"alpha": -1.0}),
        ("dkd", {"beta": "8"}),
        ("dist", {"gamma": float("inf")}),
        ("logit_std", {"eps": 0.0}),
        ("logit_std", {"unbiased": 1}),
    ],
)
def test_values_out_of_range_are_refused(name, options):
    with pytest.raises(ConfigError, match=f"'{name}', option '{next(iter(options))}'"):
        make_kd_loss(name, options)


def test_shapes_that_do_not_fit_are_named():
    loss, dkd, dist = make_kd_loss("kl"), make_kd_loss("dkd"), make_kd_loss("dist")
    student = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"student's logits are \(2, 3\), the teacher's \(2, 4\)"):
        loss(student, torch.zeros(2, 4), 1.0)
    with pytest.raises(ConfigError, match=r"temperature has the shape \(3,\)"):
        loss(student, student, torch.ones(3))
    with pytest.raises(ConfigError, match="temperature > 0"):
        loss(student, student, 0.0)
    with pytest.raises(ConfigError, match="'dkd' needs the true labels"):
        dkd(student, student, 1.0)
    with pytest.raises(ConfigError, match=r"labels has the shape \(3,\)"):
        dkd(student, student, 1.0, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"mask has the shape \(3,\)"):
        dist(student, student, 1.0, None, torch.ones(3, dtype=torch.bool))


def test_a_registered_loss_is_used_by_name(registry):
    register("kd_loss", "absolute", absolute)
    rows = make_kd_loss("absolute", {"factor": 2.0})(torch.ones(2, 3), torch.zeros(2, 3), 3.0)
    assert rows.tolist() == pytest.approx([2.0, 2.0])
    assert list(registered()["kd_loss"]) == ["absolute"]
    register("kd_loss", "absolute", absolute)
    with pytest.raises(ConfigError, match="'absolute' exists already"):
        register("kd_loss", "absolute", lambda *_: torch.zeros(1))
    with pytest.raises(ConfigError, match="'built_in' has no signature to read"):
        register("kd_loss", "built_in", torch.dist)
    with pytest.raises(ConfigError, match="'kl' exists already"):
        register("kd_loss", "kl", absolute)
    with pytest.raises(ConfigError, match="looks like an import path"):
        register("kd_loss", "a:b", absolute)


def test_what_is_registered_travels(registry):
    register("kd_loss", "absolute", absolute)
    sent = pickle.dumps(registered())
    del registry["absolute"]
    install(pickle.loads(sent))
    rows = make_kd_loss("absolute")(torch.ones(1, 3), torch.zeros(1, 3), 1.0)
    assert rows.tolist() == [3.0]


@pytest.mark.parametrize("name", sorted(KD_LOSSES))
def test_a_bound_loss_survives_pickling(name):
    loss = make_kd_loss(name, scale_t2=True)
    copy = pickle.loads(pickle.dumps(loss))
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(copy(student, teacher, 2.0, labels), loss(student, teacher, 2.0, labels))


class TestImportPath:
    def test_a_function(self, module):
        loss = make_kd_loss("brewed_losses:absolute", {"factor": 2.0}, scale_t2=True)
        assert loss(torch.ones(1, 3), torch.zeros(1, 3), 3.0).tolist() == pytest.approx([18.0])

    def test_labels_are_passed_where_they_are_asked_for(self, module):
        loss = make_kd_loss("brewed_losses:labelled")
        student = torch.tensor([[1.0, 2.0, 3.0]])
        assert loss.needs_labels
        assert not loss.needs_mask
        assert loss(student, student, 1.0, torch.tensor([2])).tolist() == [3.0]
        with pytest.raises(ConfigError, match="needs the true labels"):
            loss(student, student, 1.0)

    def test_under_a_name(self, module, registry):
        register("kd_loss", "mine", "brewed_losses:absolute")
        assert isinstance(registry["mine"], KDLoss)
        assert make_kd_loss("mine")(torch.ones(1, 3), torch.zeros(1, 3), 1.0).tolist() == [3.0]

    def test_a_loss_that_takes_a_mean_is_refused(self, module):
        with pytest.raises(ConfigError, match=r"returned the shape \(\), expected.*\(2,\)"):
            make_kd_loss("brewed_losses:averaged")(torch.ones(2, 3), torch.ones(2, 3), 1.0)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("no_such_module:loss", "can't be imported"),
            ("brewed_losses:absolut", "mean 'absolute'"),
            ("brewed_losses:NUMBER", "expected a function or a KDLoss, got int"),
            ("brewed_losses:", "Give it as"),
            (":absolute", "Give it as"),
        ],
    )
    def test_a_path_that_leads_nowhere(self, module, path, message):
        with pytest.raises(ConfigError, match=message):
            make_kd_loss(path)

    def test_another_process_resolves_it_by_itself(self, module):
        code = (
            "import sys, torch; from raybrew.losses.kd import make_kd_loss;"
            "assert 'brewed_losses' not in sys.modules;"
            "loss = make_kd_loss('brewed_losses:absolute');"
            "print(loss(torch.ones(1, 3), torch.zeros(1, 3), 1.0).item())"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path[:0] = {[str(module), *sys.path]}; {code}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == "3.0", done.stderr
