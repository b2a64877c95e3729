"""The loop on one rank, without Ray: resuming, seeds, accumulation, learning."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertPreTrainedModel

import raybrew as rb
from raybrew.errors import StoreFullError
from tests.made import STUDENT_CONFIG, make_job, make_model
from tests.training.in_process import Recorder, build

STEPS = 9
NO_DROPOUT = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One store for all: what differs between two runs here is never a label's last bit.
    return tmp_path_factory.mktemp("store")


def job(models, store, *, seed=0, config=None, **training) -> rb.DistillJob:
    settings = {"num_steps": STEPS, "batch_size": 16, "learning_rate": 1e-3, "seed": seed}
    return make_job(
        models,
        store,
        student=rb.Student(config=config or STUDENT_CONFIG),
        training=rb.TrainingConfig(**{**settings, **training}),
    )


def trained(training) -> tuple[dict[str, torch.Tensor], list[float]]:
    recorder = Recorder()
    training.run(recorder)
    return dict(training.model.state_dict()), recorder.term("sum")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def new_training(models, store, folder, **changes):
    training, pool = build(job(models, store, **changes), folder)
    return training, pool


@pytest.fixture
def warm(models, store, tmp_path):
    training, pool = new_training(models, store, tmp_path / "warm")
    training.run(Recorder())
    pool.flush()


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(
    models, store, tmp_path, stop
):
    whole, losses = trained(new_training(models, store, tmp_path / "1")[0])
    first, _ = new_training(models, store, tmp_path / "2")
    first.run(_Stop(first, stop, tmp_path / "checkpoint"))
    second, _ = new_training(models, store, tmp_path / "3")
    second.resume(tmp_path / "checkpoint")
    assert second.step == stop
    again, tail = trained(second)
    assert equal(whole, again)
    assert tail == losses[stop:]


class _Stop(Recorder):
    """Saves a checkpoint after some steps, and goes on."""

    def __init__(self, training, stop: int, folder: Path):
        super().__init__()
        self._training, self._stop, self._folder = training, stop, folder

    def progress(self, step: int) -> None:
        if step == self._stop:
            self._folder.mkdir()
            self._training.save(self._folder)


@pytest.mark.usefixtures("warm")
def test_fp16_finds_its_scale_and_a_resumed_run_has_it(models, store, tmp_path, monkeypatch):
    # So large that the first steps overflow: each of them halves it.
    monkeypatch.setattr("raybrew.training.optimization.FIRST_SCALE", 2.0**30)
    training, _ = new_training(models, store, tmp_path / "1", precision="fp16")
    whole, losses = trained(training)
    scale = training.optimization.amp.scaler.get_scale()
    assert 1 < scale < 2.0**30
    first, _ = new_training(models, store, tmp_path / "2", precision="fp16")
    stop = _Stop(first, 4, tmp_path / "checkpoint")
    first.run(stop)
    # Overflows are no faults: none is reported, or counted, or stops the run.
    assert stop.events == []
    second, _ = new_training(models, store, tmp_path / "3", precision="fp16")
    second.resume(tmp_path / "checkpoint")
    assert second.optimization.amp.scaler.get_scale() < 2.0**30
    again, tail = trained(second)
    assert equal(whole, again)
    assert tail == losses[4:]
    # It learns as in fp32, but for what half precision rounds.
    monkeypatch.setattr("raybrew.training.optimization.FIRST_SCALE", 2.0**10)
    half = trained(new_training(models, store, tmp_path / "4", precision="fp16")[0])[1]
    full = trained(new_training(models, store, tmp_path / "5")[0])[1]
    assert half != full
    torch.testing.assert_close(half, full, atol=5e-3, rtol=5e-3)


@pytest.mark.usefixtures("warm")
def test_a_loss_that_is_not_a_number_is_a_fault_in_fp16_too(models, store, tmp_path):
    training, _ = new_training(models, store, tmp_path, precision="fp16", on_nan="stop")
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    with pytest.raises(rb.TrainingError, match="step 1: expected a finite gradient"):
        training.run(Recorder())


@pytest.mark.usefixtures("warm")
def test_seeds_decide_and_nothing_else_does(models, store, tmp_path):
    one, losses = trained(new_training(models, store, tmp_path / "1")[0])
    torch.manual_seed(12345)
    same, same_losses = trained(new_training(models, store, tmp_path / "2")[0])
    other, _ = trained(new_training(models, store, tmp_path / "3", seed=1)[0])
    assert equal(one, same)
    assert losses == same_losses
    assert not equal(one, other)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("passes", [2, 16])
def test_micro_batches_change_nothing_but_rounding(models, store, tmp_path, passes):
    # 90 rows in batches of 16: the last batch of an epoch has 10 rows, fewer than 16 passes.
    whole, losses = trained(new_training(models, store, tmp_path / "1", config=NO_DROPOUT)[0])
    changes = {"config": NO_DROPOUT, "gradient_accumulation_steps": passes}
    split, split_losses = trained(new_training(models, store, tmp_path / "2", **changes)[0])
    torch.testing.assert_close(split_losses, losses, atol=1e-6, rtol=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("passes", "rows"), [(1, [16]), (2, [8, 8]), (4, [4, 4, 4, 4])])
def test_a_step_is_as_many_forward_passes_as_the_job_says(models, store, tmp_path, passes, rows):
    training, _ = new_training(
        models, store, tmp_path, num_steps=2, gradient_accumulation_steps=passes, eval_batch_size=7
    )
    trained_on, evaluated = [], []

    def seen(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        (trained_on if module.training else evaluated).append(len(output))

    training.model.get_submodule("classifier").register_forward_hook(seen)
    trained(training)
    assert trained_on == 2 * rows
    # 30 rows are evaluated at the end.
    assert evaluated == [7, 7, 7, 7, 2]


@pytest.mark.usefixtures("warm")
def test_layers_computed_again_give_the_same_weights_bit_for_bit(models, store, tmp_path):
    states, forwards = [], []
    for again in (False, True):
        training, _ = new_training(
            models, store, tmp_path / f"{again}", gradient_checkpointing=again
        )
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        training.model.get_submodule("bert.encoder.layer.0.attention").register_forward_hook(
            counted
        )
        states.append(trained(training)[0])
        forwards.append(count)
    assert equal(*states)
    assert forwards[1] - forwards[0] == STEPS


def test_the_student_learns_what_its_teachers_say(models, store, tmp_path):
    training, _ = new_training(models, store, tmp_path, num_steps=60, learning_rate=3e-3)
    _, losses = trained(training)
    # The cross-entropy with soft labels can't fall below their entropy, which is most of it.
    assert sum(losses[-6:]) / 6 < sum(losses[:6]) / 6 - 0.03


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "state.json").unlink(), "can't be read back"),
        (lambda f: (f / "state.json").write_text("{"), "can't be read back"),
        (lambda f: (f / "optimizer.safetensors").write_bytes(b"xx"), "can't be read back"),
        (
            lambda f: (f / "state.json").write_text(
                json.dumps({**json.loads((f / "state.json").read_text()), "format": "old"})
            ),
            "expected format.*got old",
        ),
    ],
)
def test_a_damaged_checkpoint_is_an_error(models, store, tmp_path, damage, message):
    training, _ = new_training(models, store, tmp_path / "1", num_steps=1)
    training.run(Recorder())
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    training.save(folder)
    damage(folder)
    again, _ = new_training(models, store, tmp_path / "2")
    with pytest.raises(rb.CheckpointError, match=message):
        again.resume(folder)


@pytest.mark.usefixtures("warm")
def test_best_so_far_and_figures_outlive_a_stop(models, store, tmp_path):
    whole, _ = new_training(models, store, tmp_path / "1", evaluate_every=2)
    metrics = whole.run(Recorder())
    first, _ = new_training(models, store, tmp_path / "2", evaluate_every=2)
    first.run(_Stop(first, 5, tmp_path / "checkpoint"))
    second, _ = new_training(models, store, tmp_path / "3", evaluate_every=2)
    second.resume(tmp_path / "checkpoint")
    again = second.run(Recorder())
    timeless = [name for name in metrics if not name.startswith("time/")]
    assert "best/score" in timeless
    assert "eval/sum/accuracy" in timeless
    assert {name: again[name] for name in timeless} == {name: metrics[name] for name in timeless}


class _Keeper(Recorder):
    """Keeps the steps of the snapshots."""

    def __init__(self):
        super().__init__()
        self.steps: list[int] = []

    def checkpoint(self, snapshot) -> None:
        self.steps.append(snapshot.step)


@pytest.mark.usefixtures("warm")
def test_when_checkpoints_are_due(models, store, tmp_path):
    keeper = _Keeper()
    new_training(models, store, tmp_path / "1", evaluate_every=4)[0].run(keeper)
    assert keeper.steps == [4, 8, 9]
    keeper = _Keeper()
    training, _ = new_training(models, store, tmp_path / "2", evaluate_every=4, checkpoint_every=3)
    metrics = training.run(keeper)
    # By steps, at the best evaluation, at the end.
    assert {3, 6, 9} <= set(keeper.steps) <= {3, 6, 9, 4, 8}
    assert int(metrics["best/step"]) in keeper.steps


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, list(range(1, 10))), (1e9, [9])])
def test_checkpoints_are_due_by_the_clock(models, store, tmp_path, minutes, steps):
    keeper = _Keeper()
    training, _ = new_training(
        models, store, tmp_path, checkpoint_every_minutes=minutes, evaluate_every=STEPS
    )
    training.run(keeper)
    assert keeper.steps == steps


def nan_job(models, store, **training) -> rb.DistillJob:
    adaptor = "tests.integration.slow_adaptors:nan_at_a_word"
    return job(models, store, **training).model_copy(
        update={"student": rb.Student(config=STUDENT_CONFIG, adaptor=adaptor)}
    )


@pytest.mark.usefixtures("warm")
def test_a_gradient_that_is_not_finite_is_left_out_or_ends_the_run(models, store, tmp_path):
    training, _ = build(nan_job(models, store, on_nan="skip"), tmp_path / "1")
    recorder = Recorder()
    metrics = training.run(recorder)
    assert len(recorder.events) == metrics["train/skipped_steps"]
    assert 0 < metrics["train/skipped_steps"] < STEPS
    assert all(torch.isfinite(value).all() for value in training.model.state_dict().values())
    assert training.optimization.scheduler is not None
    assert training.optimization.scheduler.state_dict()["last_epoch"] == STEPS
    training, _ = build(nan_job(models, store), tmp_path / "2")
    with pytest.raises(rb.TrainingError, match=r"step \d+: expected a finite gradient.*loss nan"):
        training.run(Recorder())


def test_a_student_that_cannot_compute_its_layers_again_is_refused(
    models, store, tmp_path, monkeypatch
):
    monkeypatch.setattr(BertPreTrainedModel, "supports_gradient_checkpointing", False)
    with pytest.raises(rb.ConfigError, match="gradient_checkpointing: expected a student that can"):
        new_training(models, store, tmp_path, gradient_checkpointing=True)


def test_training_goes_on_without_storing_where_the_store_is_full_and_may(
    models, store, tmp_path, caplog
):
    _, expected = trained(new_training(models, store, tmp_path / "data")[0])
    full = rb.LabelConfig(store=str(tmp_path / "full"), max_bytes=1, on_full="go_on", window=3)
    training, pool = build(
        job(models, store).model_copy(update={"labels": full}), tmp_path / "again"
    )
    _, losses = trained(training)
    assert losses == expected
    pool.flush()
    unstored = sum(replica.metrics()["unstored"] for replica in pool.replicas.values())
    assert unstored > 0
    assert "going on without storing" in caplog.text
    assert not list((tmp_path / "full").rglob("*.arrow"))


def test_training_stops_where_the_store_is_full_and_may_not_go_on(models, store, tmp_path):
    full = rb.LabelConfig(store=str(tmp_path / "full"), max_bytes=1, window=3)
    training, pool = build(job(models, store).model_copy(update={"labels": full}), tmp_path / "d")

    def run() -> None:
        training.run(Recorder())
        pool.flush()

    with pytest.raises(StoreFullError, match=r"labels\.max_bytes"):
        run()


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("stop", [None, 2])
def test_training_stops_once_the_score_has_not_risen_for_long_enough(models, store, tmp_path, stop):
    settings = {"evaluate_every": 1, "early_stopping_patience": 2, "num_steps": 12}
    training, _ = new_training(models, store, tmp_path / "1", **settings)
    scores = iter([0.1, 0.4, 0.3, 0.4, 0.9, 0.9])

    def evaluate(training) -> None:
        # A score that is no better starts no new count.
        training.evaluate = lambda hooks: {"eval/score": next(scores)}

    evaluate(training)
    hooks = Recorder()
    training.begin(hooks)
    while not training.done:
        if training.step == stop:
            training.save(made_folder(tmp_path / "c"))
            training, _ = new_training(models, store, tmp_path / "2", **settings)
            training.resume(tmp_path / "c")
            evaluate(training)
            training.begin(hooks)
            stop = None
        training.advance(hooks)
    assert (training.step, training.state.best_step) == (4, 2)


def made_folder(path):
    path.mkdir()
    return path
