"""Caching by content: it changes no loss, and a teacher answers each example once."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from raybrew.errors import ConfigError, DataError, TeacherError
from raybrew.textbrewer.label_cache import content_keys
from tests.made import make_tokenizer
from tests.textbrewer import script
from tests.textbrewer.script import OURS, ROWS, Losses
from tests.textbrewer.test_parity import MATCHES, two_outputs

KEPT = {"temperature": 4, "hard_label_weight": 0.5, "is_caching_logits": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(
    folder: Path, kind: str, distillation: Any, teachers: Any, **more: Any
) -> tuple[Losses, Any]:
    student = more.pop("student", None) or script.model(9, layers=1)
    loaders = more.pop("loaders", None) or script.loader()
    more.setdefault("num_epochs", 3)
    return script.distil(
        OURS, kind, folder, copy.deepcopy(distillation), teachers, student, loaders, **more
    )


def same_losses(kept: Losses, live: Losses) -> None:
    assert kept.of.keys() == live.of.keys()
    for tag, values in live.of.items():
        np.testing.assert_allclose(kept.of[tag], values, atol=1e-5, rtol=1e-5, err_msg=tag)


@pytest.mark.parametrize(
    ("kind", "matches", "more"),
    [
        ("BasicDistiller", [], {}),
        ("GeneralDistiller", [*MATCHES, {**MATCHES[2], "loss": "fsp"}], {}),
        ("GeneralDistiller", MATCHES, {"num_steps": 15, "training": {"ckpt_steps": 6}}),
    ],
    ids=["logits", "matches", "steps"],
)
def test_each_example_is_computed_once(tmp_path, kind, matches, more):
    distillation = {**KEPT, "intermediate_matches": matches}
    teacher = script.model(0)
    live, _ = run(
        tmp_path / "live",
        kind,
        {**distillation, "is_caching_logits": False},
        teacher,
        loaders=script.KeptOrder(script.loader()) if kind == "BasicDistiller" else None,
        **more,
    )
    kept, distiller = run(tmp_path / "kept", kind, distillation, teacher, **more)
    same_losses(kept, live)
    assert distiller.label_counts == {"computed": ROWS, "found": 2 * ROWS}
    # Another run of the script, with a student and a temperature of its own.
    distillation["temperature"] = 2
    _, again = run(
        tmp_path / "kept", kind, distillation, teacher, student=script.model(4, layers=1), **more
    )
    assert again.label_counts == {"computed": 0, "found": 3 * ROWS}
    # Other weights are another teacher.
    with torch.no_grad():
        next(teacher.parameters()).add_(1e-3)
    _, other = run(tmp_path / "kept", kind, distillation, teacher, **more)
    assert other.label_counts["computed"] == ROWS


def test_several_teachers_and_the_layers_of_each(tmp_path):
    teachers = [script.model(0), script.model(1, hidden=8), script.model(2)]
    matches = [
        {**MATCHES[0], "teacher": 0},
        {**MATCHES[1], "teacher": 1, "proj": ["linear", 16, 8]},
        {**MATCHES[2], "teacher": 1},
        {**MATCHES[3], "teacher": 2},
    ]
    distillation = {**KEPT, "intermediate_matches": matches}
    still: dict[str, Any] = {"loaders": script.KeptOrder(script.loader(shuffle=False))}
    live, _ = run(
        tmp_path / "live",
        "MultiTeacherDistiller",
        {**distillation, "is_caching_logits": False},
        teachers,
        student=script.model(9, layers=1, dropout=0),
        **still,
    )
    kept, distiller = run(
        tmp_path / "kept",
        "MultiTeacherDistiller",
        distillation,
        teachers,
        student=script.model(9, layers=1, dropout=0),
        loaders=script.loader(shuffle=False),
    )
    same_losses(kept, live)
    assert "unweighted_hidden_nst_0-1_0-2_1" in kept.of
    assert distiller.label_counts == {"computed": 3 * ROWS, "found": 6 * ROWS}
    # Each teacher's features are its own: alone they give the same terms.
    alone, _ = run(
        tmp_path / "alone",
        "GeneralDistiller",
        {"kd_loss_weight": 0, "intermediate_matches": [MATCHES[3]]},
        teachers[2],
        num_steps=1,
        student=script.model(9, layers=1, dropout=0),
        **still,
    )
    first = kept.of["unweighted_attention_attention_mse_0_1_2"][0]
    assert alone.of["unweighted_attention_attention_mse_0_1"][0] == pytest.approx(first, abs=1e-6)


def test_several_tasks(tmp_path):
    tasks = ("first", "second")
    _, distiller = script.distil(
        OURS,
        "MultiTaskDistiller",
        tmp_path,
        {**KEPT, "intermediate_matches": MATCHES[:2]},
        {name: script.model(seed) for seed, name in enumerate(tasks)},
        script.model(9, layers=1),
        {name: script.loader(seed) for seed, name in enumerate(tasks)},
        adaptors=(dict.fromkeys(tasks, script.adaptor), dict.fromkeys(tasks, script.adaptor)),
        num_steps=40,
    )
    assert distiller.label_counts["computed"] == 2 * ROWS
    assert sum(distiller.label_counts.values()) == 40 * 8


def padded_to_the_longest(**changes: Any) -> Any:
    collator = DataCollatorWithPadding(make_tokenizer())
    cut = [
        {
            key: value[: int(row["attention_mask"].sum())]
            for key, value in row.items()
            if value.dim()
        }
        | {"labels": row["labels"]}
        for row in script.rows()
    ]

    def collate(rows: Any) -> dict[str, torch.Tensor]:
        return dict(collator(rows))

    data: Any = cut
    return torch.utils.data.DataLoader(
        data, batch_size=4, shuffle=True, collate_fn=collate, **changes
    )


@pytest.mark.parametrize(
    ("matches", "once"),
    # TextBrewer divides what nst compares by the padded length: there an example has a label for
    # each length that it is padded to.
    [([*MATCHES[:2], MATCHES[3]], True), (MATCHES[2:3], False)],
    ids=["not looked at", "looked at"],
)
def test_padding_is_no_part_of_an_example(tmp_path, matches, once):
    distillation = {**KEPT, "intermediate_matches": matches}
    more = {"loaders": padded_to_the_longest(), "num_epochs": 3}
    teacher = script.model(0)
    live, _ = run(
        tmp_path / "live",
        "GeneralDistiller",
        {**distillation, "is_caching_logits": False},
        teacher,
        **more,
    )
    kept, distiller = run(tmp_path / "kept", "GeneralDistiller", distillation, teacher, **more)
    same_losses(kept, live)
    assert (distiller.label_counts["computed"] == ROWS) is once
    assert sum(distiller.label_counts.values()) == 3 * ROWS


@pytest.mark.parametrize("reads", [script.token_adaptor, two_outputs], ids=["tokens", "scores"])
def test_logits_of_tokens(tmp_path, reads):
    distillation = {**KEPT, "hard_label_weight": 0.5}
    more: dict[str, Any] = {"adaptors": (reads, reads)}
    teacher = script.model(0, per_token=True)
    found = []
    for caching in (False, True):
        student = script.model(9, layers=1, per_token=True)
        loader = script.loader(per_token=True)
        found.append(
            run(
                tmp_path / str(caching),
                "BasicDistiller",
                {**distillation, "is_caching_logits": caching},
                teacher,
                student=student,
                loaders=loader if caching else script.KeptOrder(loader),
                **more,
            )
        )
    (live, _), (kept, distiller) = found
    same_losses(kept, live)
    assert distiller.label_counts == {"computed": ROWS, "found": 2 * ROWS}


def test_nothing_is_computed_that_nobody_learns_from(tmp_path, caplog):
    distillation = {**KEPT, "kd_loss_weight": 0, "hard_label_weight": 1}
    losses, distiller = run(tmp_path, "BasicDistiller", distillation, script.model(0))
    assert losses.total == losses.of["unweighted_hard_label_loss"]
    assert distiller.label_counts == {"computed": 0, "found": 0}
    assert "gives no losses" not in caplog.text
    reads = (script.adaptor, lambda batch, outputs: {"logits": outputs.logits})
    losses, _ = run(tmp_path, "BasicDistiller", KEPT, script.model(0), adaptors=reads)
    assert losses.total == losses.of["unweighted_kd_loss"]
    assert caplog.text.count("the student's adaptor gives no losses") == 1


def test_the_same_example_twice_in_a_batch(tmp_path):
    rows: Any = script.rows()[:3] * 4
    _, distiller = run(
        tmp_path,
        "BasicDistiller",
        KEPT,
        script.model(0),
        loaders=torch.utils.data.DataLoader(rows, batch_size=12),
        num_epochs=1,
    )
    assert distiller.label_counts == {"computed": 3, "found": 0}


def test_keys_follow_the_content():
    batch = {"a": torch.arange(6).view(3, 2), "b": torch.tensor([1.0, 2.0, 3.0])}
    keys = content_keys(batch, 3)
    order = torch.tensor([2, 0, 1])
    shuffled = content_keys({name: value[order] for name, value in batch.items()}, 3)
    np.testing.assert_array_equal(shuffled, keys[order.numpy()])
    assert len(np.unique(keys, axis=0)) == 3
    for changed in ({**batch, "c": 1}, {"a": batch["a"].int(), "b": batch["b"]}):
        assert not (content_keys(changed, 3) == keys).all(axis=1).any()
    with pytest.raises(DataError, match=r"got a object at 'texts'.*is_caching_logits to False"):
        content_keys({**batch, "texts": object()}, 3)


def test_a_cache_that_the_script_brings_along(tmp_path):
    teacher = script.model(0)
    teacher.eval()

    def with_cache(batch: Any) -> dict[str, Any]:
        with torch.no_grad():
            outputs = teacher(**batch, **script.ARGUMENTS)
        return {"teacher": batch, "student": batch, "teacher_cache": outputs}

    live, _ = run(tmp_path / "live", "BasicDistiller", {"temperature": 4}, teacher)
    found, distiller = run(
        tmp_path / "kept",
        "BasicDistiller",
        {"temperature": 4},
        teacher,
        batch_postprocessor=with_cache,
        adaptors=(lambda batch, outputs: {"logits": outputs["logits"]}, script.adaptor),
    )
    np.testing.assert_allclose(found.of["unweighted_kd_loss"], live.of["unweighted_kd_loss"], 1e-5)
    assert distiller.label_counts == {"computed": 0, "found": 0}


def test_adaptors_that_differ_by_what_they_close_over_share_no_label(tmp_path):
    def scaled(factor: float):
        def reads(batch, outputs):
            found = script.adaptor(batch, outputs)
            return {**found, "logits": found["logits"] * factor}

        return reads

    for factor in (1.0, 2.0):
        _, distiller = run(
            tmp_path,
            "BasicDistiller",
            KEPT,
            script.model(0),
            adaptors=(scaled(factor), script.adaptor),
            num_epochs=1,
        )
        assert distiller.label_counts == {"computed": ROWS, "found": 0}


def test_mistakes_are_named(tmp_path):
    teachers = [script.model(0), script.model(1)]
    with pytest.raises(ConfigError, match=r"expected \"teacher\", the number of one of 2 teachers"):
        run(tmp_path, "MultiTeacherDistiller", {"intermediate_matches": MATCHES[:1]}, teachers)
    with pytest.raises(ConfigError, match=r"expected a teacher of 0, 1, got '2'"):
        run(
            tmp_path,
            "MultiTeacherDistiller",
            {"intermediate_matches": [{**MATCHES[0], "teacher": 2}]},
            teachers,
        )
    with pytest.raises(ConfigError, match=r"match 'hidden_mse' on hidden .*need a projection"):
        run(
            tmp_path,
            "GeneralDistiller",
            {"intermediate_matches": MATCHES[:1]},
            teachers[0],
            student=script.model(9, layers=1, hidden=8),
        )
    for caching in (False, True):
        with pytest.raises(ConfigError, match=r"no hidden of layer 7: it gives 0 to 2"):
            run(
                tmp_path,
                "GeneralDistiller",
                {
                    "intermediate_matches": [{**MATCHES[0], "layer_T": 7}],
                    "is_caching_logits": caching,
                },
                teachers[0],
            )

    def two_classes(batch, outputs):
        return {"logits": outputs.logits[:, :2]}

    def one_output(batch, outputs):
        return {"logits": outputs.logits, "logits_mask": batch["attention_mask"]}

    def two_outputs_of_rows(batch, outputs):
        return {"logits": [outputs.logits] * 2, "logits_mask": [batch["attention_mask"]] * 2}

    with pytest.raises(TeacherError, match=r"teacher 0: expected 2 logits.*got 1"):
        run(
            tmp_path,
            "BasicDistiller",
            {},
            teachers[0],
            adaptors=(one_output, two_outputs_of_rows),
        )
    for caching in (False, True):
        with pytest.raises(TeacherError, match=r"teacher 0: expected logits"):
            run(
                tmp_path,
                "BasicDistiller",
                {"is_caching_logits": caching},
                teachers[0],
                adaptors=(two_classes, script.adaptor),
            )
