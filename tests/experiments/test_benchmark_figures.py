"""The benchmarks of the student on made data: they run, and count what they say they count."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from experiments.benchmarks import against_textbrewer, epochs, student
from experiments.benchmarks.student import SMALLEST, Setting, bare_loop, label, sizes_of
from raybrew.errors import ConfigError
from tests.made import make_data, make_model
from tests.training.in_process import Recorder

STUDENT = {
    **sizes_of(1, 16, 2, 32),
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def setting(tmp_path) -> Setting:
    tokenizer = make_model(tmp_path / "tokenizer", 0)
    return Setting(tmp_path, make_data(70), tokenizer, SMALLEST, STUDENT)


def test_the_bare_loop_takes_the_same_steps_as_ours(setting):
    job = setting.job("store", num_epochs=2)
    preparation = setting.prepared(job)
    ours, pool = setting.training(job, preparation)
    logits = label(preparation, pool)
    bare, _ = setting.training(job, preparation)
    bare_loop(bare, preparation.tasks[0].split("train"), logits)
    ours.run(Recorder())
    state = ours.model.state_dict()
    for name, value in bare.model.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=1e-5, rtol=1e-4)


def test_textbrewer_takes_the_same_steps_as_ours(setting):
    job = setting.job("store", num_epochs=2, **against_textbrewer.SAME_STEPS)
    preparation = setting.prepared(job)
    ours, _ = setting.training(job, preparation)
    ours.run(Recorder())
    theirs = against_textbrewer.Theirs(setting, preparation, num_epochs=2)
    trained = theirs.train(caching=False)[1]
    state = ours.model.state_dict()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_each_figure_comes_with_its_target(setting):
    found = [
        *epochs.measure_warm_epoch(setting, rounds=1),
        epochs.measure_first_epoch(setting, rounds=1),
        *against_textbrewer.measured(setting, num_epochs=1, rounds=1),
        student.measure_student_memory(setting, num_epochs=2),
    ]
    assert all(np.isfinite(record.value) and record.value > 0 for record in found)
    targets = {record.name: f"{record.bound} {record.target}" for record in found}
    assert len(targets) == len(found)
    assert targets == {
        "warm epoch against a bare loop": "≤ 1.03",
        "student's wait for labels, warm": "≤ 0.01",
        "first epoch, labels on the way, against teachers + bare loop": "≤ 1.1",
        "faster than textbrewer, its caching off, same batches": "≥ 4.5",
        "faster than textbrewer, its caching off, sorted batches": "≥ 4.5",
        "faster than textbrewer, its caching on, same batches": "≥ 1.25",
        "faster than textbrewer, its caching on, sorted batches": "≥ 1.25",
        "student's memory, most of epochs 2 to 2 over the first": "≤ 1.02",
    }


# Seconds of each contender in a round that is made up.
SECONDS = {
    "ours": 2.1,
    "bare": 2.0,
    "on the way": 3.0,
    "apart": 2.0,
    "same batches": 2.0,
    "sorted batches": 4.0,
    "off": 12.0,
    "on": 3.0,
}


def test_a_figure_is_ours_over_theirs_or_how_many_times_faster_ours_is(setting, monkeypatch):
    def made_up(contenders, rounds, what):
        # Each runs once, for what it notes of its run besides the time.
        return {name: [SECONDS[name]] * rounds for name, run in contenders.items() if run()}

    for module in (epochs, against_textbrewer):
        monkeypatch.setattr(module, "interleaved", made_up)
    found = [
        *epochs.measure_warm_epoch(setting, rounds=1)[:1],
        epochs.measure_first_epoch(setting, rounds=1),
        *against_textbrewer.measured(setting, num_epochs=1, rounds=1),
    ]
    assert [(record.value, record.met) for record in found] == [
        (pytest.approx(2.1 / 2.0), False),  # at most 1.03
        (pytest.approx(3.0 / 2.0), False),  # at most 1.1
        (pytest.approx(3.0 / 2.0), True),  # caching on: at least 1.25
        (pytest.approx(3.0 / 4.0), False),
        (pytest.approx(12.0 / 2.0), True),  # caching off: at least 4.5
        (pytest.approx(12.0 / 4.0), False),
    ]


def test_the_figures_of_a_gpu_are_made_and_refuse_a_machine_without(setting, monkeypatch):
    shares = student.measure_gpu(setting, torch.device("cpu"), rounds=1, num_epochs=1)
    assert all(np.isfinite(record.value) and record.value > 0 for record in shares)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="expected a CUDA device, got none"):
        student.gpu()


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = BertConfig(**sizes_of(3, 32, 2, 64))
    model = BertForSequenceClassification._from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(5, 100, (4, 11))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.bert.encoder(model.bert.embeddings(ids))
    assert student.forward_flops(np.full(4, 11), config) == counter.get_total_flops()
