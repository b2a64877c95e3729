"""Mistakes of matches and objectives: errors at the start, without weights, that name the match."""

import json
from pathlib import Path

import pytest

import raybrew as rb
from raybrew.config.job_file import validate
from raybrew.runs.resolve import resolve_job
from tests.losses import user_losses
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model
from tests.training import user_adaptors

HIDDEN = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "teacher": "a"}
MODULES = {
    "module_T": "bert.encoder.layer.1.output",
    "module_S": "bert.encoder.layer.0.output",
    "loss": "tests.matches.user_matches:squared_error",
    "proj_func": ["linear", 16, 32],
    "teacher": "a",
}
PROJ = {"proj": ["linear", 16, 32]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    made = {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}
    # Nothing of this may look at weights: there are none that could be read.
    for name in made:
        (folder / name / "model.safetensors").write_bytes(b"no weights")
    return made


def prepared(models, tmp_path, matches=(), *, labels=None, changes=None, **distillation):
    job = make_job(
        models,
        tmp_path / "store",
        distillation=rb.DistillationConfig(matches=matches, **distillation),
        labels=rb.LabelConfig(store=str(tmp_path / "store"), **(labels or {})),
        **(changes or {}),
    )
    return resolve_job(job, tmp_path / "data")


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({**HIDDEN, **PROJ, "layer_T": 5}, r"'hidden_mse'.*teacher 'a' layer 5.*0 to 2"),
        ({**HIDDEN, **PROJ, "layer_S": 2}, r"'hidden_mse'.*student layer 2.*0 to 1"),
        (HIDDEN, r"'hidden_mse'.*16 and the teacher's 32.*\"proj\": \[\"linear\", 16, 32\]"),
        ({**HIDDEN, "loss": "hiden_mse"}, r"match loss 'hiden_mse'.*; did you mean 'hidden_mse"),
        ({**HIDDEN, **PROJ, "teacher": "c"}, r"'hidden_mse'.*this job \(a, b\), got 'c'"),
        ({**HIDDEN, **PROJ, "teacher": None}, r"'hidden_mse'.*several \(a, b\), got none"),
        ("hidden_mse", r"hidden_mse.*several \(a, b\), got none; write \{preset"),
        (
            {"preset": "L3_hiden_mse", "teacher": "a"},
            r"'L3_hiden_mse'.*; did you mean 'L3_hidden_mse",
        ),
        (
            {**HIDDEN, "proj": ["linear", 16, 32, {"lrr": 1}]},
            r"'hidden_mse'.*'lrr'.*; did you mean 'lr'",
        ),
        (
            {"module_T": "x", "module_S": "y", "loss": "nowhere:x", "teacher": "a"},
            r"custom match.*'nowhere:x' can't be imported",
        ),
        (
            {**MODULES, "module_T": "bert.encoder.layer.9.output"},
            r"custom match.*teacher: .*no module 'bert.encoder.layer.9.output'; did you mean 'bert",
        ),
        (
            {**MODULES, "module_S": "bert.encoder.layer.1.output"},
            r"custom match.*student: .*no module 'bert.encoder.layer.1.output'; did you mean 'bert",
        ),
    ],
)
def test_matches(models, tmp_path, match, message):
    with pytest.raises(rb.ConfigError, match=message):
        prepared(models, tmp_path, match)


def test_kinds_are_generated_for_the_sizes_of_the_models(models, tmp_path):
    resolved = prepared(
        models,
        tmp_path,
        [{"preset": "hidden_mse", "teacher": "a", "weight": 0.5}, {**HIDDEN, **PROJ}],
    )
    matches = resolved.tasks[0].matches
    assert [match.term for match in matches] == [
        "match/hidden_hidden_mse_0_0_a",
        "match/hidden_hidden_mse_1_2_a",
        "match/hidden_hidden_mse_1_2_a_2",
    ]
    assert {match.teacher for match in matches} == {"a"}
    assert matches[1].spec.weight == 0.5


def test_a_teacher_is_asked_for_each_statistic_once(models, tmp_path):
    cos = {**HIDDEN, **PROJ, "loss": "cos"}
    a, b = prepared(models, tmp_path, [{**HIDDEN, **PROJ}, cos]).teachers
    assert [signal.name for signal in a.signals] == ["logits-float32", "hidden.states-L2-float32"]
    assert [signal.name for signal in b.signals] == ["logits-float32"]
    assert not a.attention


def test_a_match_by_token_needs_the_same_tokens(models, tmp_path):
    own = [
        rb.Teacher(name=name, task="sum", model=model, inputs="own")
        for name, model in models.items()
    ]
    with pytest.raises(rb.ConfigError, match=r"'hidden_mse'.*'a' reads tokens of its own"):
        prepared(models, tmp_path, {**HIDDEN, **PROJ}, changes={"teachers": own})
    pkd = {**HIDDEN, **PROJ, "loss": "pkd"}
    assert prepared(models, tmp_path, pkd, changes={"teachers": own}).tasks[0].matches


def test_labels_missing_for_probability_shift(models, tmp_path):
    rows = make_data(20).remove_columns("label").add_column("label", [-1] * 20)
    task = rb.Task(name="sum", train=rows, label_names=("down", "level", "up"), max_length=32)
    with pytest.raises(rb.ConfigError, match="probability_shift needs labels"):
        prepared(models, tmp_path, probability_shift=True, changes={"tasks": [task]})


def test_a_route_names_its_column_and_each_row_a_teacher(models, tmp_path):
    with pytest.raises(rb.ConfigError, match=r"tasks\[sum\]\.teacher_column"):
        prepared(models, tmp_path, mixture="route")
    rows = make_data(20)
    good = rows.add_column("who", ["a", "b"] * 10)
    task = rb.Task(name="sum", train=good, teacher_column="who", max_length=32)
    preparation = prepared(models, tmp_path, mixture="route", changes={"tasks": [task]})
    routes = preparation.tasks[0].train.routes
    assert routes is not None
    assert routes.tolist() == [0, 1] * 10
    bad = rows.add_column("who", ["a"] * 19 + ["c"])
    task = rb.Task(name="sum", train=bad, teacher_column="who", max_length=32)
    with pytest.raises(rb.DataError, match=r"row 19: expected a teacher.*\(a, b\).*got 'c'"):
        prepared(models, tmp_path / "2", mixture="route", changes={"tasks": [task]})


def test_top_k_is_never_more_than_the_classes(models, tmp_path):
    preparation = prepared(models, tmp_path, mixture="sum_losses", labels={"top_k": 9})
    assert preparation.teachers[0].signals[0].name == "logits-top3-T2-float32"


def test_an_adaptor_that_leads_nowhere(models, tmp_path):
    student = rb.Student(config=STUDENT_CONFIG, adaptor="nowhere:adaptor")
    with pytest.raises(rb.ConfigError, match=r"adaptor 'nowhere:adaptor' can't be imported"):
        prepared(models, tmp_path, changes={"student": student})


ATTENTION = {
    "layer_T": 1,
    "layer_S": 0,
    "feature": "attention",
    "loss": "attention_mse",
    "teacher": "a",
}


@pytest.mark.parametrize(
    ("whose", "adaptor", "match", "message"),
    [
        (
            "teacher",
            "no_attention",
            ATTENTION,
            r"'attention_mse'.*teacher's attention kernel.*eager",
        ),
        (
            "student",
            "no_attention",
            ATTENTION,
            r"'attention_mse'.*student's attention kernel.*eager",
        ),
        (
            "teacher",
            "no_attention",
            {**HIDDEN, **PROJ},
            "'hidden_mse'.*teacher's adaptor gives",
        ),
        ("student", "no_attention", {**HIDDEN, **PROJ}, r"'hidden_mse'.*student's.*gives none"),
        ("teacher", "without_mask", {**HIDDEN, **PROJ}, r"'hidden_mse'.*no `inputs_mask`"),
    ],
)
def test_what_a_users_adaptor_does_not_give_is_said_at_start(
    models, tmp_path, whose, adaptor, match, message
):
    path = f"tests.training.user_adaptors:{adaptor}"
    teachers = [
        rb.Teacher(name=name, task="sum", model=model, adaptor=path if whose == "teacher" else None)
        for name, model in models.items()
    ]
    student = rb.Student(config=STUDENT_CONFIG, adaptor=path if whose == "student" else None)
    with pytest.raises(rb.ConfigError, match=rf"distillation\.matches: .*{message}"):
        prepared(models, tmp_path, match, changes={"teachers": teachers, "student": student})


def looks_at_values(batch, outputs):
    assert outputs.logits.abs().sum() > 0, "zeros mean nothing"
    return user_adaptors.last_layer_first(batch, outputs)


def test_adaptors_that_give_what_matches_need_and_those_that_no_made_batch_tells_of(
    models, tmp_path, caplog
):
    # One that gives nothing without matches is right; one that refuses zeros may be.
    for number, (adaptor, match) in enumerate(
        [
            (user_adaptors.last_layer_first, {**HIDDEN, **PROJ}),
            (user_adaptors.no_attention, ()),
            (looks_at_values, {**HIDDEN, **PROJ}),
        ]
    ):
        caplog.clear()
        student = rb.Student(config=STUDENT_CONFIG, adaptor=adaptor)
        with caplog.at_level("INFO", logger="raybrew"):
            prepared(models, tmp_path / str(number), match, changes={"student": student})
        assert ("can't be tried" in caplog.text) == (adaptor is looks_at_values)


def test_matches_survive_a_saved_config():
    given = rb.DistillationConfig(
        matches=[
            "L3_hidden_mse",
            {"preset": "hidden_mse", "teacher": "a", "weight": 2.0},
            {**HIDDEN, "layer_T": [2, 2], "layer_S": [1, 1], "loss": "mmd"},
            {**HIDDEN, "proj": ["tanh", 16, 32, {"lr": 0.1}]},
        ]
    )
    plain = json.loads(json.dumps(given.model_dump(mode="json")))
    assert rb.DistillationConfig(**plain) == given
    live = rb.DistillationConfig(
        matches={"module_T": "x", "module_S": "y", "loss": user_losses.mean_absolute_error}
    )
    (saved,) = live.model_dump(mode="json")["matches"]
    assert saved["loss"] == "tests.losses.user_losses:mean_absolute_error"


TEXTBREWER = {
    "temperature": 8,
    "temperature_scheduler": ["flsw", 1, 2],
    "hard_label_weight": 0.5,
    "hard_label_weight_scheduler": "linear_decay",
    "kd_loss_type": "mse",
    "kd_loss_weight": 0.7,
    "kd_loss_weight_scheduler": "none",
    "probability_shift": True,
    "intermediate_matches": [
        {
            "layer_T": 2,
            "layer_S": 1,
            "feature": "hidden",
            "loss": "hidden_mse",
            "weight": 1,
            "proj": ["linear", 16, 32],
        }
    ],
    "is_caching_logits": True,
}


def job_with(distillation) -> rb.DistillJob:
    return validate(
        rb.DistillJob,
        {
            "tasks": [{"name": "t", "train": "rows.csv"}],
            "teachers": [{"name": "a", "task": "t", "model": "m"}],
            "student": {"model": "m"},
            "training": {"num_steps": 1},
            "distillation": distillation,
        },
    )


def test_textbrewers_configs_are_taken_as_they_are(tmp_path: Path):
    file = tmp_path / "textbrewer.json"
    file.write_text(json.dumps(TEXTBREWER))
    from_dict, from_file = job_with(TEXTBREWER).distillation, job_with(str(file)).distillation
    assert from_dict == from_file
    assert from_dict == rb.DistillationConfig(
        temperature=8,
        scale_t2=False,
        temperature_scheduler="flsw",
        temperature_scheduler_options={"beta": 1, "gamma": 2},
        # TextBrewer puts the schedule's value in the weight's place.
        hard_label_weight=1.0,
        hard_label_weight_scheduler="linear_decay",
        kd_loss="mse",
        kd_loss_weight=0.7,
        probability_shift=True,
        matches=TEXTBREWER["intermediate_matches"],
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kd_loss_type": "ce", "temprature": 2}, r"'temprature'.*did you mean 'temperature'"),
        ({"kd_loss_type": "ce", "mixture": "route"}, r"'mixture'.*TextBrewer's"),
        ({"temperature_scheduler": ["flsw", 1]}, r"flsw takes beta, gamma, got \[1\]"),
        ({"temperature_scheduler": ["flws", 1, 2]}, r"one of constant, flsw, cwsm, got 'flws'"),
        (
            {"kd_loss_weight_scheduler": "cosine", "is_caching_logits": False},
            r"one of linear_decay, linear_growth, got 'cosine'",
        ),
        ({"temperature_scheduler": [[1]]}, r"one of constant, flsw, cwsm, got \[\[1\]\]"),
        ({"temperature_scheduler": []}, r"one of constant, flsw, cwsm, got \[\]"),
        ({"intermediate_matches": 5}, r"intermediate_matches: expected a list of matches, got 5"),
        ({"intermediate_matches": True}, r"expected a list of matches, got True"),
        ("nowhere.json", r"JSON file.*'nowhere.json'"),
    ],
)
def test_what_textbrewer_does_not_know_is_refused(given, message):
    with pytest.raises(rb.ConfigError, match=rf"distillation.*{message}"):
        job_with(given)
