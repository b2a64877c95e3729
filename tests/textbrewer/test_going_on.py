"""A training that was stopped goes on bit for bit; mixed precision; custom matches; wrappers."""

import copy
import errno
import inspect
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import get_linear_schedule_with_warmup

from raybrew.errors import CheckpointError, ConfigError
from tests.textbrewer import script
from tests.textbrewer.script import OURS, PUBLISHED, Losses
from tests.textbrewer.test_kept_labels import KEPT, run
from tests.textbrewer.test_parity import MATCHES, PROJ

PROJECTED = [{**MATCHES[0], "proj": PROJ}, MATCHES[2]]
SCHEDULE = {
    "scheduler_class": get_linear_schedule_with_warmup,
    "scheduler_args": {"num_warmup_steps": 2, "num_training_steps": 15},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Stopped(Exception):
    """As of a machine that fails."""


def stopping(at: int) -> Any:
    """Draw, as an evaluation may, and stop at a step."""
    seen: list[int] = []

    def callback(model: nn.Module, step: int) -> None:
        seen.append(step)
        torch.rand(3)
        model.eval()
        if step == at:
            raise Stopped

    return callback, seen


def once(folder: Path, kind: str, callback: Any, *, seed: int, caching: bool, **train: Any):
    tasks = ("first", "second")
    one = {"BasicDistiller": False}.get(kind, True)
    several = kind == "MultiTaskDistiller"
    student = script.model(5, layers=1, hidden=8)
    distillation = {
        **KEPT,
        "is_caching_logits": caching,
        "intermediate_matches": PROJECTED if one else [],
    }
    adaptor = dict.fromkeys(tasks, script.adaptor) if several else script.adaptor
    losses, distiller = script.distil(
        OURS,
        kind,
        folder,
        copy.deepcopy(distillation),
        {name: script.model(n) for n, name in enumerate(tasks)} if several else script.model(0),
        student,
        {name: script.loader(n) for n, name in enumerate(tasks)} if several else script.loader(),
        adaptors=(adaptor, adaptor),
        callback=callback,
        seed=seed,
        **SCHEDULE,
        **train,
    )
    return losses, distiller, student


@pytest.mark.parametrize("caching", [False, True], ids=["live", "kept"])
@pytest.mark.parametrize(
    ("kind", "training", "train", "stop"),
    [
        ("BasicDistiller", {"ckpt_frequency": 2}, {"num_epochs": 3}, 7),
        ("GeneralDistiller", {"ckpt_steps": 4}, {"num_steps": 15}, 8),
        (
            "MultiTaskDistiller",
            {"ckpt_steps": 3, "gradient_accumulation_steps": 2},
            {"num_steps": 12},
            6,
        ),
    ],
    ids=["epochs", "steps", "tasks"],
)
def test_a_stopped_training_goes_on(tmp_path, kind, training, train, stop, caching):
    def begin(folder: str, callback: Any, seed: int):
        return once(
            tmp_path / folder,
            kind,
            callback,
            seed=seed,
            caching=caching,
            training=training,
            **train,
        )

    whole, _, expected = begin("whole", stopping(0)[0], 5)
    with pytest.raises(Stopped):
        begin("stopped", stopping(stop)[0], 5)
    # Whatever the script draws at its start the second time, it goes on as if nothing had been.
    callback, seen = stopping(0)
    rest, distiller, student = begin("stopped", callback, 6)
    accumulation = training.get("gradient_accumulation_steps", 1)
    assert rest.of["total_loss"] == whole.of["total_loss"][stop * accumulation :]
    assert seen[0] == stop
    for name, value in expected.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name
    assert not (tmp_path / "stopped" / "resume").exists()
    if caching:
        assert distiller.label_counts["computed"] < distiller.label_counts["found"]
    # It has ended: the next run of the script is a run of its own.
    again, _, _ = begin("stopped", stopping(0)[0], 5)
    assert again.total == whole.total


def test_other_settings_begin_at_step_0_with_a_warning(tmp_path, caplog):
    def begin(stop: int, **train: Any) -> Losses:
        callback, _ = stopping(stop)
        return once(tmp_path, "BasicDistiller", callback, seed=5, caching=False, **train)[0]

    with pytest.raises(Stopped):
        begin(10, num_epochs=3)
    with caplog.at_level(logging.WARNING), pytest.raises(Stopped):
        begin(5, num_epochs=2, max_grad_norm=1.0)
    assert "max_grad_norm: -1.0 then, 1.0 now; timetable: 3 epochs" in caplog.text
    # The newer training continues, though the other one had come further.
    with caplog.at_level(logging.WARNING):
        assert len(begin(0, num_epochs=2, max_grad_norm=1.0).total) == 5
    assert "going on from step 5" in caplog.text


def test_resuming_can_be_left_out_and_damage_is_found(tmp_path):
    def stop():
        with pytest.raises(Stopped):
            once(tmp_path, "BasicDistiller", stopping(5)[0], seed=5, caching=False, num_epochs=2)

    stop()
    losses, _, _ = once(
        tmp_path,
        "BasicDistiller",
        None,
        seed=5,
        caching=False,
        num_epochs=2,
        training={"resume": False},
    )
    assert len(losses.total) == 10
    stop()
    (state,) = tmp_path.glob("resume/*/training.pt")
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"training\.pt differ.*Delete the folder"):
        once(tmp_path, "BasicDistiller", None, seed=5, caching=False, num_epochs=2)


def test_what_the_system_refuses_is_no_reason_to_begin_again(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        once(tmp_path, "BasicDistiller", stopping(5)[0], seed=5, caching=False, num_epochs=2)

    def refuse(path: Path, *args: Any, **named: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("torch.load", refuse)
    with pytest.raises(CheckpointError, match=r"Too many open files.*ulimit -n") as caught:
        once(tmp_path, "BasicDistiller", None, seed=5, caching=False, num_epochs=2)
    assert "delete" not in str(caught.value)


def gap(one: Losses, other: Losses) -> float:
    return max(abs(a - b) for a, b in zip(one.total, other.total, strict=True))


def test_mixed_precision(tmp_path, caplog):
    distillation = {"temperature": 4, "intermediate_matches": MATCHES}
    found = {}
    for name, training in {
        "full": {},
        "bf16": {"bf16": True},
        "fp16": {"fp16": True},
        "O0": {"fp16": True, "fp16_opt_level": "O0"},
    }.items():
        with caplog.at_level(logging.WARNING):
            found[name], _ = run(
                tmp_path / name,
                "GeneralDistiller",
                distillation,
                script.model(0),
                training=training,
            )
    assert 1e-6 < gap(found["bf16"], found["full"]) < 0.1
    assert found["fp16"].total == found["bf16"].total
    assert found["O0"].total == found["full"].total
    assert "fp16: no float16 on cpu, computing in bfloat16 instead" in caplog.text
    with pytest.raises(ConfigError, match="expected one precision, got both"):
        script.settings(OURS, tmp_path, fp16=True, bf16=True)


def test_labels_of_another_precision_are_others(tmp_path):
    for training, computed in (({}, script.ROWS), ({"bf16": True}, script.ROWS), ({}, 0)):
        _, distiller = run(
            tmp_path, "BasicDistiller", KEPT, script.model(0), training=training, num_epochs=1
        )
        assert distiller.label_counts["computed"] == computed


def test_custom_matches(tmp_path, caplog):
    teacher: Any = script.model(0)
    student: Any = script.model(9, layers=1, hidden=8)
    projection = nn.Linear(8, 16)
    before = projection.weight.detach().clone()

    def compare(own, other, own_mask, other_mask):
        assert own_mask is other_mask is not None
        return ((own - other) ** 2 * own_mask.unsqueeze(-1)).mean()

    match = OURS.CustomMatch(
        teacher.bert.encoder.layer[1].output,
        student.bert.encoder.layer[0].output,
        weight=0.5,
        loss=compare,
        proj_func=projection,
        proj_group={"lr": 1e-2},
    )
    losses, distiller = run(
        tmp_path,
        "GeneralDistiller",
        KEPT,
        teacher,
        student=student,
        custom_matches=[match],
    )
    custom = losses.of["unweighted_custom_0"]
    assert custom[-1] < custom[0]
    assert not torch.equal(projection.weight, before)
    parts = [losses.of["unweighted_kd_loss"][0], losses.of["unweighted_hard_label_loss"][0]]
    assert losses.total[0] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.5 * custom[0], rel=1e-6)
    assert distiller.label_counts == {"computed": 3 * script.ROWS, "found": 0}
    assert "custom matches compare" in caplog.text
    assert not teacher.bert.encoder.layer[1].output._forward_hooks
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module of the model, got str"):
        OURS.CustomMatch("layer", student, 1, compare)


def test_distributed_and_data_parallel(tmp_path):
    plain, _ = run(tmp_path / "one", "GeneralDistiller", KEPT, script.model(0))
    parallel, _ = run(
        tmp_path / "parallel",
        "GeneralDistiller",
        KEPT,
        script.model(0),
        training={"data_parallel": True},
    )
    assert parallel.total == plain.total
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        distributed, distiller = run(
            tmp_path / "distributed",
            "GeneralDistiller",
            KEPT,
            script.model(0),
            training={"local_rank": 0},
        )
        assert isinstance(distiller.model_S, nn.parallel.DistributedDataParallel)
    finally:
        dist.destroy_process_group()
    assert distributed.total == plain.total
    saved = torch.load(tmp_path / "distributed" / "gs5.pkl")
    assert saved.keys() == script.model(9, layers=1).state_dict().keys()


def test_methods_of_the_users_own(tmp_path):
    def l1(own, other, mask=None):
        return (own - other).abs().mean()

    def halves(logits_S, logits_T, temperature):
        return ((logits_S - logits_T) / temperature).pow(2).mean() / 2

    def square(progress):
        return progress**2

    OURS.MATCH_LOSS_MAP["my_l1"] = l1
    OURS.register_new("kd_loss", "half_mse", halves)
    OURS.WEIGHT_SCHEDULER["square"] = square
    try:
        distillation = {
            "temperature": 2,
            "intermediate_matches": [{**MATCHES[0], "loss": "my_l1"}],
            "hard_label_weight_scheduler": "square",
        }
        mine, _ = run(
            tmp_path / "mine",
            "GeneralDistiller",
            {**distillation, "kd_loss_type": "half_mse"},
            script.model(0),
            num_epochs=1,
        )
        same, _ = run(
            tmp_path / "same",
            "GeneralDistiller",
            {**distillation, "kd_loss_type": "mse"},
            script.model(0),
            num_epochs=1,
        )
        half = mine.of["unweighted_kd_loss"][0]
        assert half == pytest.approx(same.of["unweighted_kd_loss"][0] / 2, rel=1e-5)
        hard, l1_loss = "unweighted_hard_label_loss", "unweighted_hidden_my_l1_0_0"
        total = half + mine.of[l1_loss][0]
        assert mine.total[0] == pytest.approx(total, rel=1e-6)
        last = [mine.of[tag][4] for tag in ("unweighted_kd_loss", l1_loss, hard)]
        assert mine.total[4] == pytest.approx(last[0] + last[1] + 0.64 * last[2], rel=1e-5)
    finally:
        del OURS.MATCH_LOSS_MAP["my_l1"], OURS.KD_LOSS_MAP["half_mse"]
        del OURS.WEIGHT_SCHEDULER["square"]
    with pytest.raises(ConfigError, match=r"'ce' is built in and"):
        del OURS.KD_LOSS_MAP["ce"]


def test_configs_from_files_and_their_mistakes(tmp_path):
    (tmp_path / "c.json").write_text('{"temperature": 8, "temperature_scheduler": ["flsw", 1, 2]}')
    config = OURS.DistillationConfig.from_json_file(tmp_path / "c.json")
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    theirs = PUBLISHED.TEMPERATURE_SCHEDULER[["flsw", 1, 2]](*logits, 8)
    torch.testing.assert_close(config.temperature_scheduler(*logits, 8), theirs)
    assert "temperature : 8\n" in str(config)
    wrong = {
        "'temprature': expected one of .*; did you mean 'temperature'": {"temprature": 2},
        "Unknown match loss 'hiden_mse'": {
            "intermediate_matches": [{**MATCHES[0], "loss": "hiden_mse"}]
        },
        "expected one of constant, cwsm, flsw; did you": {"temperature_scheduler": ["fslw", 1]},
    }
    for message, values in wrong.items():
        with pytest.raises(ConfigError, match=message):
            OURS.DistillationConfig.from_dict(values)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="pass device='cpu'"):
            OURS.BasicTrainer(script.settings(OURS, tmp_path, device="cuda"), nn.Linear(1, 1), None)


def test_tools(tmp_path):
    tokens = list(range(10))
    assert OURS.data_utils.masking(tokens, p=1.0, mask=-1) == [-1] * 10
    assert sorted(OURS.data_utils.short_disorder(tokens)) == tokens
    assert set(OURS.Distillers) == {"Basic", "General", "MultiTeacher", "MultiTask", "Train"}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "__init__") for name in OURS.__all__ if isinstance(getattr(OURS, name), type)),
        *(
            (f"{kind}Distiller", method)
            for kind in ("Basic", "General", "MultiTeacher", "MultiTask")
            for method in ("train", "write_loss", "save_and_callback")
        ),
        ("BasicTrainer", "train"),
    ],
)
def test_the_published_signatures(name, method):
    source: Any = PUBLISHED if hasattr(PUBLISHED, name) else PUBLISHED.distiller_utils
    published, ours = (
        list(inspect.signature(getattr(getattr(package, name), method)).parameters.values())
        for package in (source, OURS)
    )
    keywords = [each for each in ours if each.kind is each.VAR_KEYWORD]
    assert len(keywords) == sum(each.kind is each.VAR_KEYWORD for each in published)
    for theirs, own in zip(
        [each for each in published if each.kind is not each.VAR_KEYWORD], ours, strict=False
    ):
        assert own.name == theirs.name
        if theirs.default is not theirs.empty:
            assert own.default == theirs.default, own.name
