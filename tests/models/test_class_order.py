"""A head that comes along with weights is in the order of the task's classes, whatever its own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.class_order import class_order, names_differ
from raybrew.models.students import Head, build_student
from raybrew.tasks import TASK_TYPES, task_type_of
from tests.models.checkpoints import (
    bert,
    distilbert,
    electra,
    gpt2,
    modernbert,
    one_head,
    roberta,
    save_tokenizer,
)
from tests.own_models import BagConfig, OneHeadBag

OWN = ("O", "PER", "LOC")
TASK = ("LOC", "O", "PER")
ORDER = [2, 0, 1]
IDS = torch.tensor([[2, 4, 6, 3]])


def save(folder: Path, config: Any, names: tuple[str, ...] | None, kind: str) -> Teacher:
    config.num_labels = 3
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = TASK_TYPES[kind].model_class.from_config(config)
        for name, tensor in model.named_parameters():
            if not name.startswith(model.base_model_prefix):
                torch.nn.init.normal_(tensor)  # biases are zero otherwise, and swaps unseen
    model.save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return Teacher(name="m", task="t", model=str(folder))


def build(student: Student, teacher: Teacher, kind: str, names: tuple[str, ...] = TASK) -> Any:
    return build_student(student, one_head(names, kind), {"m": teacher}, seed=0)[0]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def loaded(teacher: Teacher, kind: str) -> Any:
    return TASK_TYPES[kind].model_class.from_pretrained(teacher.model_path)


@pytest.mark.parametrize("origin", ["layers_from", "model"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (bert, "sequence-classification"),
        (bert, "token-classification"),
        (distilbert, "multi-label"),
        (roberta, "sequence-classification"),
        (electra, "token-classification"),
        (gpt2, "sequence-classification"),
        (modernbert, "sequence-classification"),
    ],
)
def test_a_head_comes_in_the_order_of_the_tasks_classes(origin, make, kind, tmp_path):
    teacher = save(tmp_path / "m", make(), OWN, kind)
    from_layers = Student(layers_from=("m", (0, 1, 2, 3)))
    student = from_layers if origin == "layers_from" else Student(model=teacher.model_path)
    model = build(student, teacher, kind)
    assert model.config.id2label == dict(enumerate(TASK))
    torch.testing.assert_close(logits(model), logits(loaded(teacher, kind))[..., ORDER])


def test_the_head_of_layers_goes_by_their_teachers_names_not_by_the_models(tmp_path):
    kind = "sequence-classification"
    teacher = save(tmp_path / "m", bert(), OWN, kind)
    own = save(tmp_path / "own", bert(num_hidden_layers=2), TASK, kind)
    model = build(Student(model=own.model_path, layers_from=("m", (0, 2))), teacher, kind)
    expected = loaded(teacher, kind).classifier.weight[ORDER]
    assert torch.equal(model.classifier.weight, expected)


@pytest.mark.parametrize("names", [None, ("0", "1", "2")])
def test_a_head_without_names_stays_as_it_is(names, tmp_path):
    kind = "sequence-classification"
    teacher = save(tmp_path / "m", roberta(), names, kind)
    model = build(Student(model=teacher.model_path), teacher, kind)
    torch.testing.assert_close(logits(model), logits(loaded(teacher, kind)))


def test_a_head_of_other_classes_is_newly_initialised_and_a_message_says_so(tmp_path, caplog):
    kind = "token-classification"
    teacher = save(tmp_path / "m", roberta(), ("low", "middle", "high"), kind)
    model, again = (build(Student(model=teacher.model_path), teacher, kind) for _ in range(2))
    given = loaded(teacher, kind)
    assert not torch.equal(model.classifier.weight, given.classifier.weight)
    assert torch.equal(model.classifier.bias, torch.zeros(3))
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert torch.equal(
        model.roberta.embeddings.word_embeddings.weight,
        given.roberta.embeddings.word_embeddings.weight,
    )
    assert (
        "student: the classes of the head (low, middle, high) aren't the task's (LOC, O, PER): it "
        "is newly initialised" in caplog.text
    )


def test_each_head_of_several_tasks_is_in_its_own_order(tmp_path):
    kind = "sequence-classification"
    teacher = save(tmp_path / "m", bert(), OWN, kind)
    tasks = {"t": TASK, "same": OWN, "other": ("a", "b", "c")}
    heads = [Head(name, TASK_TYPES[kind], names) for name, names in tasks.items()]
    student: Any = build_student(Student(model=teacher.model_path), heads, {}, seed=0)[0]
    given: Any = loaded(teacher, kind)
    models: dict[str, Any] = {name: student.model_of(n) for n, name in enumerate(tasks)}
    rows = {name: model.classifier.weight for name, model in models.items()}
    assert torch.equal(rows["t"], given.classifier.weight[ORDER])
    assert torch.equal(rows["same"], given.classifier.weight)
    assert not torch.isin(rows["other"], given.classifier.weight).any()


def test_a_class_of_ones_own_that_takes_no_number_of_classes_says_what_to_do(tmp_path):
    names = {"id2label": dict(enumerate(OWN)), "label2id": {n: i for i, n in enumerate(OWN)}}
    OneHeadBag(BagConfig(**names)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    kind = task_type_of("sequence-classification", OneHeadBag)
    student = Student(model=str(tmp_path), architecture=OneHeadBag)
    with pytest.raises(ConfigError, match=r"student: expected a OneHeadBag.*label_names.*'PER'"):
        build_student(student, [Head("t", kind, TASK)], {}, seed=0)


def test_names_are_the_same_in_upper_and_lower_case():
    assert class_order(("O", "PER"), ("per", "o")) == (1, 0)
    assert class_order(("b", "B"), ("B", "b")) == (1, 0)
    assert class_order(("O", "PER"), ("O", "LOC")) is None
    assert names_differ(("O", "PER"), ("O", "LOC"))
    assert not names_differ(("LABEL_0", "LABEL_1"), ("O", "LOC"))
    assert not names_differ(("O", "PER"), ("0", "1"))
