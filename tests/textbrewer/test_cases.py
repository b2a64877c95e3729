"""What scripts do beyond `train`: each case with either package, or what ours does with it."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybrew.matches.presets import resolve_matches
from tests.textbrewer.script import OURS, PUBLISHED, SHUFFLES, Losses, seed_all

BOTH = (PUBLISHED, OURS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Net(nn.Module):
    """Two layers on embeddings; it computes its own loss."""

    def __init__(self, seed: int = 0, size: int = 8):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(30, size), nn.Linear(size, 3)
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size)
        self.calls = 0

    def forward(self, ids: Any, mask: Any, labels: Any) -> Any:
        self.calls += 1
        first = self.embed(ids)
        second = torch.tanh(self.a(first))
        third = torch.tanh(self.b(second))
        logits = self.head(third.mean(1))
        return logits, [first, second, third], nn.functional.cross_entropy(logits, labels)


def batches(seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "ids": torch.randint(0, 30, (4, 5), generator=generator),
            "mask": torch.ones(4, 5).long(),
            "labels": torch.randint(0, 3, (4,), generator=generator),
        }
        for _ in range(6)
    ]


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    logits, hidden, loss = outputs
    return {
        "logits": logits,
        "hidden": hidden,
        "losses": loss,
        "inputs_mask": batch["mask"],
        "labels": batch["labels"],
    }


def made(
    package: Any,
    folder: Path,
    kind: Any = "GeneralDistiller",
    distillation: Any = None,
    teacher: Any = None,
    student: Any = None,
    **training: Any,
) -> Any:
    """Return a distiller that collects its losses."""
    distiller = (getattr(package, kind) if isinstance(kind, str) else kind)(
        package.TrainingConfig(device="cpu", output_dir=str(folder), **training),
        package.DistillationConfig(**(distillation or {})),
        teacher or Net(1),
        student or Net(2),
        adaptor,
        adaptor,
    )
    distiller.tb_writer = Losses()
    return distiller


def trained(
    distiller: Any, loader: Any = None, optimizer: Any = torch.optim.AdamW, **train: Any
) -> list[float]:
    """Train, and return the loss of each batch."""
    made_optimizer = optimizer(distiller.model_S.parameters(), lr=1e-2)
    seed_all(0)
    with distiller:
        distiller.train(
            made_optimizer, batches() if loader is None else loader, **{"num_epochs": 2, **train}
        )
    return distiller.tb_writer.total


def same(folder: Path, do: Callable[[Any, Path], Any], tolerance: float = 1e-6) -> list[Any]:
    """Do it with both packages, and compare the numbers."""
    theirs, ours = (do(package, folder / package.__name__) for package in BOTH)
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)
    return ours


# A match loss of the script's own.


def test_a_loss_of_two_layers_gets_both(tmp_path, monkeypatch):
    def pair(state_S, state_T, mask=None):
        assert (type(state_S), type(state_T), len(state_S)) == (list, list, 2)
        return sum(((s - t) ** 2).mean() for s, t in zip(state_S, state_T, strict=True))

    for package in BOTH:
        monkeypatch.setitem(package.MATCH_LOSS_MAP, "pair", pair)
    match = {"layer_T": [0, 2], "layer_S": [0, 1], "feature": "hidden", "loss": "pair", "weight": 1}
    distillation = {"intermediate_matches": [match]}
    same(tmp_path, lambda p, f: trained(made(p, f, distillation=distillation)))


# A run that was stopped, and what the next script in its folder is.


def stop(model: nn.Module, step: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("second", "loader", "changed"),
    [
        ({"teacher": 50}, 0, "teacher 0: "),
        ({"student": 60}, 0, "student: "),
        ({}, 9, "data: "),
        ({"teacher": 50, "student": 60}, 9, "student: "),
        ({"size": 12}, 0, "student: "),
    ],
    ids=["teacher", "student", "data", "all", "another size"],
)
def test_a_stopped_run_is_not_the_next_scripts(tmp_path, caplog, second, loader, changed):
    def run(folder: Path, callback: Any = None) -> list[float]:
        size = second.get("size", 8)
        models = {
            "teacher": Net(second.get("teacher", 1), size),
            "student": Net(second.get("student", 2), size),
        }
        return trained(made(OURS, folder, **models), batches(loader), callback=callback)

    with pytest.raises(KeyboardInterrupt):
        trained(made(OURS, tmp_path / "one"), callback=stop)
    assert run(tmp_path / "one") == run(tmp_path / "empty")
    assert f"another training than this, which was stopped ({changed}" in caplog.text
    assert "going on" not in caplog.text
    # The same script again, whatever its seed is by then, goes on.
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "one", stop)
    assert len(run(tmp_path / "one")) == 6
    assert "going on from step 6" in caplog.text


# Names.


def test_a_cell_that_is_run_twice_replaces_what_it_registered(tmp_path):
    match = {"layer_T": 2, "layer_S": 2, "feature": "hidden", "loss": "mine", "weight": 1}

    def losses(package: Any, folder: Path) -> list[float]:
        for factor in (1, 2):
            package.register_new(
                "match_Loss", "mine", lambda s, t, mask=None, f=factor: (s - t).abs().mean() * f
            )
        return trained(made(package, folder, distillation={"intermediate_matches": [match]}))

    try:
        same(tmp_path, losses)
    finally:
        for package in BOTH:
            del package.MATCH_LOSS_MAP["mine"]


def test_a_built_in_name_may_be_replaced(tmp_path, monkeypatch):
    match = {"layer_T": 2, "layer_S": 2, "feature": "hidden", "loss": "cos", "weight": 1}
    before = OURS.MATCH_LOSS_MAP["cos"]
    for package in BOTH:
        monkeypatch.setitem(
            package.MATCH_LOSS_MAP, "cos", lambda s, t, mask=None: (s - t).abs().mean()
        )
        monkeypatch.setitem(
            package.KD_LOSS_MAP, "mse", lambda s, t, temperature=1: (s - t).abs().mean()
        )
    distillation = {"intermediate_matches": [match], "kd_loss_type": "mse"}
    same(tmp_path, lambda p, f: trained(made(p, f, distillation=distillation)))
    OURS.MATCH_LOSS_MAP["cos"] = before
    assert not OURS.MATCH_LOSS_MAP.is_own("cos")
    states = torch.randn(2, 2, 3, 4)
    assert OURS.MATCH_LOSS_MAP["cos"](*states) == before(*states)


@pytest.mark.parametrize("given", [["power", 0.5], ["flsw", 1, 2, 1e-3], ["cwsm", 2], ["plain"]])
def test_temperature_schedules_are_built_of_their_arguments(tmp_path, monkeypatch, given):
    for package in BOTH:
        monkeypatch.setitem(
            package.TEMPERATURE_SCHEDULER.store
            if package is PUBLISHED
            else package.TEMPERATURE_SCHEDULER,
            "power",
            lambda p: lambda s, t, base: base**p,
        )
        monkeypatch.setitem(
            package.TEMPERATURE_SCHEDULER.store
            if package is PUBLISHED
            else package.TEMPERATURE_SCHEDULER,
            "plain",
            lambda: lambda s, t, base: base + 1,
        )
    distillation = {"temperature_scheduler": given}
    same(tmp_path, lambda p, f: trained(made(p, f, distillation=distillation)))


def test_what_the_maps_hold_can_be_called(tmp_path):
    states = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(2, 2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])

    def numbers(package: Any, folder: Path) -> list[float]:
        found = [float(package.KD_LOSS_MAP[name](*states[:, 0], 2)) for name in ("ce", "mse")]
        for name in PUBLISHED.MATCH_LOSS_MAP:
            loss = package.MATCH_LOSS_MAP[name]
            given = attention if name.startswith("attention") else states
            if name in ("gram", "fsp", "mmd", "nst"):
                given = [[each, each + 1] for each in states]
            found += [float(loss(*given, mask=mask)), float(loss(*given))]
        for name in ("linear_decay", "linear_growth"):
            found.append(package.WEIGHT_SCHEDULER[name](0.25))
        for key in (["flsw", 1, 2], ["cwsm", {"beta": 2}]):
            found += package.TEMPERATURE_SCHEDULER[key](*states[:, 0], 4).tolist()
        found += package.TEMPERATURE_SCHEDULER["flsw"](1, 2)(*states[:, 0], 4).tolist()
        found.append(package.TEMPERATURE_SCHEDULER["constant"](*states[:, 0], 4))
        torch.manual_seed(3)
        for name in ("linear", "relu", "tanh"):
            found += package.PROJ_MAP[name](4, 2)(states[0, 0]).flatten().tolist()
        return found

    same(tmp_path, numbers)
    for name in ("KD_LOSS_MAP", "MATCH_LOSS_MAP", "PROJ_MAP", "WEIGHT_SCHEDULER"):
        assert not set(getattr(PUBLISHED, name)) - set(getattr(OURS, name))
    assert ["flsw", 1, 2] in OURS.TEMPERATURE_SCHEDULER


# A config that changes while it trains.


@pytest.mark.parametrize(
    "change",
    [{"kd_loss_weight": 0.1}, {"temperature": 1.0}, {"hard_label_weight": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_a_callback_changes_counts_from_the_next_batch(tmp_path, change):
    def annealed(package: Any, folder: Path) -> list[float]:
        distiller = made(package, folder)

        def callback(model: nn.Module, step: int) -> None:
            vars(distiller.d_config).update(change)

        return trained(distiller, callback=callback)

    ours = same(tmp_path, annealed)
    fixed = trained(made(OURS, tmp_path / "fixed"))
    assert ours[:6] == fixed[:6]
    assert abs(ours[6] - fixed[6]) > 0.005


def test_a_changed_config_is_brought_back_with_the_training(tmp_path):
    def run(folder: Path, *, stopped: bool) -> list[float]:
        distiller = made(OURS, folder)

        def callback(model: nn.Module, step: int) -> None:
            if step == 6:
                distiller.d_config.kd_loss_weight = 0.1
            if step == 12 and stopped:
                raise KeyboardInterrupt

        return trained(distiller, callback=callback, num_epochs=3)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "one", stopped=True)
    assert run(tmp_path / "one", stopped=False) == run(tmp_path / "whole", stopped=False)[12:]


@pytest.mark.parametrize("weight", [1, 0.3])
def test_weight_schedules_take_the_weights_place_after_the_first_step(tmp_path, weight):
    distillation = {
        "kd_loss_weight": weight,
        "hard_label_weight": 0.7,
        "kd_loss_weight_scheduler": "linear_decay",
        "hard_label_weight_scheduler": "linear_growth",
    }
    same(tmp_path, lambda p, f: trained(made(p, f, distillation=distillation)))


# Caching.


class Noisy:
    """A loader that draws noise each time."""

    def __len__(self) -> int:
        return 6

    def __iter__(self):
        for batch in batches():
            yield {**batch, "ids": torch.where(torch.rand(4, 5) < 0.3, 0, batch["ids"])}


@pytest.mark.parametrize("kind", ["BasicDistiller", "MultiTeacherDistiller"])
@pytest.mark.parametrize("loader", [batches, Noisy], ids=["in order", "noise"])
def test_caching_draws_the_batches_once_and_shuffles_them(tmp_path, loader, kind):
    def kept(package: Any, folder: Path) -> list[float]:
        teachers = [Net(1), Net(3)] if kind == "MultiTeacherDistiller" else [Net(1)]
        teacher: Any = teachers if len(teachers) > 1 else teachers[0]
        distiller = made(package, folder, kind, {"is_caching_logits": True}, teacher)
        losses = trained(distiller, loader(), num_epochs=3)
        assert [each.calls for each in teachers] == [6] * len(teachers)
        return losses

    losses = same(tmp_path, kept)
    assert losses[:6] != sorted(losses[:6])


def test_the_postprocessor_of_cached_batches_runs_once(tmp_path):
    def kept(package: Any, folder: Path) -> list[float]:
        calls = []

        def postprocess(batch: Any) -> Any:
            calls.append(1)
            return {**batch, "ids": torch.where(torch.rand(4, 5) < 0.3, 0, batch["ids"])}

        distiller = made(package, folder, "BasicDistiller", {"is_caching_logits": True})
        losses = trained(distiller, num_epochs=3, batch_postprocessor=postprocess)
        assert len(calls) == 6
        return losses

    same(tmp_path, kept)


def test_augmentation_with_matches_costs_a_forward_for_each_new_batch(tmp_path):
    distiller = made(OURS, tmp_path, distillation={"is_caching_logits": True})
    trained(distiller, Noisy(), num_epochs=3)
    assert distiller.label_counts["computed"] > 2 * 6 * 4


def test_a_stopped_training_with_cached_batches_goes_on(tmp_path):
    def run(folder: Path, at: int = 0) -> list[float]:
        def callback(model: nn.Module, step: int) -> None:
            SHUFFLES.random()
            if step == at:
                raise KeyboardInterrupt

        distiller = made(
            OURS, folder, "BasicDistiller", {"is_caching_logits": True}, ckpt_frequency=3
        )
        return trained(distiller, Noisy(), num_epochs=3, callback=callback)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "one", at=8)
    assert run(tmp_path / "one") == run(tmp_path / "whole")[8:]


# Precision, and states of optimizers and schedules.


@pytest.mark.parametrize("caching", [False, True])
def test_float64_models_compute_in_float64(tmp_path, caching):
    match = {"layer_T": 2, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
    distillation = {"intermediate_matches": [match], "is_caching_logits": caching}
    torch.set_default_dtype(torch.float64)
    try:
        same(tmp_path, lambda p, f: trained(made(p, f, distillation=distillation)), 1e-13)
    finally:
        torch.set_default_dtype(torch.float32)


class NestedState(torch.optim.SGD):
    """Keeps tensors in dicts in its state."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                count = self.state[parameter].get("nested", {"a": torch.zeros(1)})["a"]
                self.state[parameter]["nested"] = {"a": count + 1}


class Half:
    """What a schedule keeps."""

    def __init__(self) -> None:
        self.factor = 0.5


class ObjectState:
    """A schedule with an object in its state."""

    def __init__(self, optimizer: Any):
        self.optimizer, self.half = optimizer, Half()

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= self.half.factor
        self.half.factor = min(1.0, self.half.factor + 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"half": self.half}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.half = state["half"]


class Unwritable(ObjectState):
    """A schedule whose state can't be written."""

    def state_dict(self) -> dict[str, Any]:
        return {"half": lambda: self.half}


@pytest.mark.parametrize("schedule", [ObjectState, Unwritable])
@pytest.mark.parametrize("resume", [True, False])
def test_any_state_trains_as_in_textbrewer(tmp_path, schedule, resume, caplog):
    def losses(package: Any, folder: Path) -> list[float]:
        more = {} if package is PUBLISHED else {"resume": resume}
        return trained(
            made(package, folder, **more),
            optimizer=NestedState,
            scheduler_class=schedule,
            scheduler_args={},
            callback=lambda model, step: folders.append(
                sorted(path.name for path in folder.glob("resume/*"))
            ),
        )

    folders: list[list[str]] = []
    same(tmp_path, losses)
    written = resume and schedule is ObjectState
    assert folders[2:] == (
        [["step-00000006"], ["step-00000006", "step-00000012"]] if written else [[], []]
    )
    assert ("can't be written" in caplog.text) == (resume and schedule is Unwritable)


def test_any_state_that_was_written_is_read_back(tmp_path):
    def run(folder: Path, callback: Any = None) -> list[float]:
        return trained(
            made(OURS, folder),
            optimizer=NestedState,
            scheduler_class=ObjectState,
            callback=callback,
        )

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "one", stop)
    assert run(tmp_path / "one") == run(tmp_path / "whole")[6:]


# Subclasses.


def with_own_loss(package: Any) -> Any:
    """As a script has it that was written from TextBrewer's `compute_loss`."""
    utils = importlib.import_module(f"{package.__name__}.distiller_utils")

    class Own(package.BasicDistiller):
        def __init__(self, *args: Any):
            super().__init__(*args)
            self.projs = [package.PROJ_MAP["linear"](8, 8).to(self.t_config.device)]
            self.projs_group = [{"lr": 0.1}]

        def train_on_batch(self, batch: Any, args: Any) -> Any:
            (batch_T, results_T), (batch_S, results_S) = utils.get_outputs_from_batch(
                batch, self.t_config.device, self.model_T, self.model_S, args
            )
            results_T = utils.post_adaptor(self.adaptor_T(batch_T, results_T))
            results_S = utils.post_adaptor(self.adaptor_S(batch_S, results_S))
            return self.compute_loss(results_S, results_T)

        def compute_loss(self, results_S: Any, results_T: Any) -> Any:
            total, parts = super().compute_loss(results_S, results_T)
            loss = package.MATCH_LOSS_MAP["hidden_mse"]
            projected = self.projs[0](results_S["hidden"][-1])
            value = loss(projected, results_T["hidden"][-1], mask=results_S.get("inputs_mask"))
            parts["unweighted_own"] = value
            return total + value, parts

    return Own


def test_a_subclass_with_its_own_loss_and_projections(tmp_path):
    def losses(package: Any, folder: Path) -> list[float]:
        torch.manual_seed(7)
        distiller = made(package, folder, with_own_loss(package))
        before = distiller.projs[0].weight.detach().clone()
        found = trained(distiller)
        assert not torch.equal(before, distiller.projs[0].weight)
        return [*found, *distiller.tb_writer.of["unweighted_own"]]

    same(tmp_path, losses)


@pytest.mark.parametrize("kind", ["BasicDistiller", "GeneralDistiller"])
def test_compute_loss_alone_may_be_overridden(tmp_path, kind):
    def losses(package: Any, folder: Path) -> list[float]:
        class Own(getattr(package, kind)):
            def compute_loss(self, results_S: Any, results_T: Any) -> Any:
                total, parts = super().compute_loss(results_S, results_T)
                gap = results_S["hidden"][0] - results_T["hidden"][2]
                return total + gap.abs().mean(), {**parts, "kept": len(results_T["logits"])}

        def write_loss(total: Any, step: int, parts: Any = None) -> None:
            found.append(float(total.detach()))

        found: list[float] = []
        distiller = made(package, folder, Own)
        distiller.write_loss = write_loss
        seed_all(0)
        with distiller:
            distiller.train(
                torch.optim.AdamW(distiller.model_S.parameters(), lr=1e-2), batches(), num_epochs=2
            )
        return found

    same(tmp_path, losses)


def test_a_batch_may_be_trained_on_before_train_is_called(tmp_path):
    def numbers(package: Any, folder: Path) -> list[float]:
        distiller = made(package, folder)
        with distiller:
            loss, parts = distiller.train_on_batch(batches()[0], {})
        found = [float(each.detach()) for each in (loss, *parts.values())]
        return [*found, *trained(distiller)]

    same(tmp_path, numbers)


def test_a_trainer_whose_batches_give_a_number(tmp_path):
    def losses(package: Any, folder: Path) -> list[float]:
        class Own(package.BasicTrainer):
            def train_on_batch(self, batch: Any, args: Any) -> Any:
                return super().train_on_batch(batch, args) * 2

        config = package.TrainingConfig(device="cpu", output_dir=str(folder))
        trainer = Own(config, Net(2), adaptor)
        trainer.tb_writer = Losses()
        with trainer:
            assert trainer.train_on_batch(batches()[0], {}).dim() == 0
            optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-2)
            trainer.train(optimizer, batches(), num_epochs=1)
        return trainer.tb_writer.total

    same(tmp_path, losses)


# TextBrewer's modules.


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "losses",
            "kd_ce_loss kd_mse_loss att_mse_loss att_mse_sum_loss att_ce_loss "
            "att_ce_mean_loss hid_mse_loss cos_loss pkd_loss fsp_loss mmd_loss",
        ),
        ("utils", "display_parameters LayerNode cycle initializer_builder"),
        ("data_utils", "masking deleting n_gram_sampling short_disorder long_disorder"),
        ("configurations", "Config TrainingConfig DistillationConfig IntermediateMatch"),
        (
            "presets",
            "FEATURES ADAPTOR_KEYS KD_LOSS_MAP MATCH_LOSS_MAP PROJ_MAP WEIGHT_SCHEDULER "
            "TEMPERATURE_SCHEDULER MAPS register_new",
        ),
        (
            "distiller_utils",
            "CustomMatch select_logits_with_mask post_adaptor probability_shift_ "
            "move_to_device get_outputs_from_batch auto_forward no_op logger np "
            "torch nn random os json Optional Dict Union OrderedDict "
            "KD_LOSS_MAP MATCH_LOSS_MAP PROJ_MAP FEATURES TrainingConfig",
        ),
        (
            "distillers",
            "BasicDistiller GeneralDistiller MultiTaskDistiller MultiTeacherDistiller BasicTrainer",
        ),
        ("distiller_basic", "BasicDistiller"),
        ("distiller_general", "GeneralDistiller"),
        ("distiller_multitask", "MultiTaskDistiller"),
        ("distiller_multiteacher", "MultiTeacherDistiller"),
        ("distiller_train", "BasicTrainer"),
        ("projections", "linear_projection projection_with_activation"),
        (
            "schedulers",
            "linear_growth_weight_scheduler linear_decay_weight_scheduler "
            "constant_temperature_scheduler flsw_temperature_scheduler_builder "
            "cwsm_temperature_scheduler_builder",
        ),
    ],
)
def test_modules_are_imported_with_what_scripts_use_of_them(module, names):
    for package in BOTH:
        found: dict[str, Any] = {}
        exec(f"from {package.__name__}.{module} import *", found)
        assert not set(names.split()) - found.keys(), package.__name__


@pytest.mark.parametrize("max_level", [None, 0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_displayed_as_theirs(max_level, tied):
    model: Any = nn.ModuleDict({"a": Net(1), "only": nn.ModuleList([nn.Linear(8, 30)])})
    model.register_buffer("places", torch.arange(5))
    if tied:
        model["only"][0].weight = model["a"].embed.weight
    for given in (model, model.state_dict()):
        (theirs, their_tree), (ours, tree) = (
            package.utils.display_parameters(given, max_level) for package in BOTH
        )
        assert ours == theirs
        assert tree.value == pytest.approx(their_tree.value)
        leaf, their_leaf = (root["a"]["embed"]["weight"] for root in (tree, their_tree))
        assert (leaf.name, leaf.fullname) == (their_leaf.name, their_leaf.fullname)
        assert leaf.value == pytest.approx(their_leaf.value)
        assert leaf.parent is tree["a"]["embed"]
    with pytest.raises(TypeError):
        OURS.utils.display_parameters([model])


def test_probability_shift_and_masks_as_theirs():
    theirs, ours = (importlib.import_module(f"{p.__name__}.distiller_utils") for p in BOTH)
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 3), (2, 4, 3)):
        logits = torch.randn(*shape, generator=generator)
        labels = torch.randint(0, 3, shape[:-1], generator=generator)
        if len(shape) == 3:
            labels[0, 1] = -100
        found = [each.probability_shift_(logits.clone(), labels) for each in (theirs, ours)]
        torch.testing.assert_close(*found)
    logits, mask = torch.randn(2, 4, 3, generator=generator), torch.tensor([[1, 0, 1, 1]] * 2)
    found = [each.select_logits_with_mask([logits] * 2, [mask] * 2) for each in (theirs, ours)]
    torch.testing.assert_close(*found)


# The published recipes, as jobs have them.


@pytest.mark.parametrize(("real", "padded"), [(40, 40), (40, 128), (128, 128)])
def test_smmd_of_the_recipes_weighs_as_theirs_whatever_the_padding(real, padded):
    """TextBrewer's recipes give no mask, so their mmd divides by the hidden size."""
    spec = resolve_matches("L4_hidden_smmd")[1]
    generator = torch.Generator().manual_seed(0)
    states = [
        nn.functional.layer_norm(torch.randn(4, padded, size, generator=generator), (size,))
        for size in (312, 768)
    ]
    mask = (torch.arange(padded) < real).long().expand(4, -1)
    own, other = ([each, each] for each in states)
    loss = spec.build_loss()
    partial = loss.loss(own, mask, loss.teacher_statistic(other, mask))
    ours = float(partial.numerator.sum() / partial.denominator.sum())
    theirs = PUBLISHED.MATCH_LOSS_MAP["mmd"](
        *([each[:, :real] for each in side] for side in (own, other))
    )
    assert ours == pytest.approx(float(theirs), rel=1e-5)
