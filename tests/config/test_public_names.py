"""What a script or a notebook sees of the package: names, version, documentation, start-up."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from raybrew import cli
from raybrew.config.job import set_path
from raybrew.config.job_file import validate
from raybrew.config.mistakes import OTHER_NAMES, section_of
from raybrew.errors import did_you_mean


def test_completion_offers_the_public_names_and_no_others():
    public = [name for name in dir(rb) if not name.startswith("_")]
    assert public == sorted(rb.__all__)
    assert all(getattr(rb, name) is not None for name in public)


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert rb.__version__ == version("raybrew")


def test_importing_the_package_loads_none_of_what_it_is_built_on():
    code = (
        "import sys, raybrew; print({'torch', 'ray', 'transformers', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# documentation where `help`, IPython and editors look for it


def test_a_signature_has_real_types_and_defaults():
    signature = str(inspect.signature(rb.Teacher))
    assert "name: str, task: str, model: str | None = None" in signature
    assert "placement: Literal['pool', 'worker'] = 'pool'" in signature
    assert "train: str | Path | datasets.Dataset" in str(inspect.signature(rb.Task))
    assert "tasks: Sequence[Task]" in str(inspect.signature(rb.DistillJob))
    assert "mixing: MixingConfig = MixingConfig()" in str(inspect.signature(rb.DistillJob))


def test_help_has_each_field_with_its_type_range_and_description():
    text = inspect.getdoc(rb.Teacher) or ""
    assert "weight: float = 1.0, ≥ 0\n" in text
    assert "Share in the mixture of its task's teachers." in text
    for name in rb.Teacher.model_fields:
        assert f"    {name}: " in text, name


def test_the_schema_describes_a_section_once():
    schema = rb.DistillJob.model_json_schema()
    assert schema["description"] == "Distillation of teachers into one student."
    assert schema["$defs"]["Task"]["description"].count("\n") == 0


def test_what_is_shown_of_a_section_is_what_was_written():
    assert repr(rb.Teacher(name="a", task="t", model="m")) == (
        "Teacher(name='a', task='t', model='m')"
    )


# mistakes in arguments


def refusal(section, **arguments) -> str:
    with pytest.raises(rb.ConfigError) as caught:
        section(**arguments)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_a_misspelt_argument_is_one_line_with_the_nearest_name():
    message = refusal(rb.Teacher, name="a", task="x", model="m", wieght=0.5)
    assert message.startswith("Teacher: wieght: unknown key, expected one of adaptor, ")
    assert message.endswith("; did you mean 'weight'?")
    assert "\n" not in message


def test_all_mistakes_of_an_object_are_named_at_once_with_their_places():
    message = refusal(
        rb.DistillJob,
        tasks=[{"name": "t", "train": "x", "txt": "sentence"}],
        teachers=[rb.Teacher(name="a", task="t", model="m"), {"name": "b", "task": "t"}],
        student={"model": "m"},
        training={"num_epochs": 1, "batch_size": 0},
    )
    first, *lines = message.splitlines()
    assert first == "DistillJob: 3 mistakes"
    assert lines[0].startswith("  tasks[0].txt: unknown key, expected one of ")
    assert lines[1:] == [
        "  training.batch_size: expected a number greater than or equal to 1, got 0",
        "  teachers[1]: expected one of `model` and `logits`, got neither",
    ]


def test_matches_are_sections_too():
    message = refusal(rb.MatchSpec, layer_T=1, layer_S=1, feature="hiden", loss="hidden_mse")
    assert message.startswith("MatchSpec: feature: expected one of hidden, attention")


def test_a_section_that_is_changed_says_how_to_make_another():
    teacher = rb.Teacher(name="a", task="t", model="m")
    with pytest.raises(rb.ConfigError, match=r"make another: Teacher\(\*\*{\*\*dict\(old\)"):
        teacher.weight = 0.5  # type: ignore[misc]
    assert rb.Teacher(**{**dict(teacher), "weight": 0.5}).weight == 0.5
    with pytest.raises(rb.ConfigError):
        rb.Teacher(**{**dict(teacher), "weight": -1})


def test_sections_are_pickled_and_copied_as_values():
    job = rb.DistillJob(
        tasks=[rb.Task(name="t", train="x")],
        teachers=[rb.Teacher(name="a", task="t", model="m")],
        student=rb.Student(model="m"),
        training=rb.TrainingConfig(num_epochs=1),
    )
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.model_copy(deep=True) == job
    assert rb.DistillJob.model_validate(job.to_plain()) == job


# names


@pytest.mark.parametrize(
    ("name", "known", "nearest"),
    [
        ("adamw", ["Adam", "AdamW", "NAdam", "RAdam"], "'AdamW'"),
        ("ADAM-W", ["adam", "adam_w"], "'adam_w'"),
        (
            "per_device_train_batch_size",
            ["eval_batch_size", "batch_size"],
            "'batch_size' or 'eval_batch_size'",
        ),
        ("temprature", ["temperature", "mixture"], "'temperature'"),
    ],
)
def test_the_nearest_name_is_the_one_that_is_meant(name, known, nearest):
    assert did_you_mean(name, known) == f"; did you mean {nearest}?"


def test_names_of_other_packages_are_named_in_a_jobs_words(tmp_path):
    words = "`per_device_train_batch_size` is Hugging Face's name: here it is training.batch_size"
    message = refusal(rb.TrainingConfig, num_epochs=1, per_device_train_batch_size=8)
    assert message.startswith(f"TrainingConfig: per_device_train_batch_size: unknown key: {words}")
    assert "TextBrewer's name: here it is training.callbacks" in refusal(
        rb.TrainingConfig, num_epochs=1, callback=print
    )
    with pytest.raises(rb.ConfigError, match=words):
        set_path({"training": {}}, "training.per_device_train_batch_size", 8, rb.DistillJob)


def test_a_key_of_another_section_is_named_there():
    with pytest.raises(rb.ConfigError, match="unknown key here; it is a key of distillation"):
        validate(rb.DistillJob, {"scale_t2": True})


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_the_place_that_another_name_leads_to_is_there_and_the_name_is_not(name):
    here = OTHER_NAMES[name].here
    if here.startswith("- "):
        return
    section, _, field = re.split(r"[ ,;]", here)[0].partition(".")
    if section in ("run", "scaling"):
        kind = RunConfig if section == "run" else ScalingConfig
        assert field in inspect.signature(kind).parameters
        return
    model = section_of(rb.DistillJob.model_fields[section].annotation)
    assert model is not None
    assert not field or field in model.model_fields
    assert name not in model.model_fields


def test_the_reference_has_each_command():
    page = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert re.findall(r"^## `raybrew (\S+)`", page, re.MULTILINE) == list(commands)
    for name, command in commands.items():
        section = page.partition(f"## `raybrew {name}`")[2].partition("\n## ")[0]
        for option in command.params:
            assert option.opts[-1] in section, f"{name} {option.opts}: run make docs-cli"
