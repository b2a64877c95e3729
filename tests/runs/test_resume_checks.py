"""Which jobs may go on with a run that was stopped."""

import pytest

import raybrew as rb
from raybrew.config.job_file import dump_yaml
from raybrew.runs.folder import RunFolder, check_resumable, read_saved_job
from tests.made import make_job


def saved(job, tmp_path):
    (tmp_path / "job.yaml").write_text(dump_yaml(job))
    return read_saved_job(tmp_path / "job.yaml")


def test_the_job_itself_and_changes_of_speed_and_place_may_go_on(tmp_path):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    before = saved(job, tmp_path)
    check_resumable(before, job)
    teacher = job.teachers[0].model_copy(
        update={"replicas": 4, "resources": {"GPU": 0.5}, "on_loss": "wait", "deadline_s": 5.0}
    )
    training = job.training.model_copy(update={"checkpoint_every": 5, "num_threads": 3})
    changed = make_job(
        {"a": "x/a"},
        tmp_path / "elsewhere",
        teachers=[teacher],
        training=training,
        tracking=rb.TrackingConfig(log_every=3),
    )
    room = changed.labels.model_copy(update={"max_bytes": 10**9, "on_full": "go_on"})
    check_resumable(before, changed.model_copy(update={"labels": room}))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("training", {"learning_rate": 0.5}, r"training\.learning_rate: the run has 0\.001.*0\.5"),
        ("training", {"num_epochs": 3}, r"training\.num_epochs: the run has 2, the job 3"),
        ("distillation", {"temperature": 4.0}, r"distillation\.temperature.*2\.0.*4\.0"),
        ("labels", {"dtype": "float16"}, r"labels\.dtype"),
    ],
)
def test_another_student_may_not(tmp_path, section, change, message):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    other = getattr(job, section).model_copy(update=change)
    changed = make_job({"a": "x/a"}, tmp_path / "store", **{section: other})
    with pytest.raises(rb.ConfigError, match=message):
        check_resumable(saved(job, tmp_path), changed)


def test_other_data_and_other_teachers_may_not(tmp_path):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    before = saved(job, tmp_path)
    with pytest.raises(rb.ConfigError, match=r"teachers\.1\.name: the run has None, the job 'b'"):
        check_resumable(before, make_job({"a": "x/a", "b": "x/b"}, tmp_path / "store"))
    task = job.tasks[0]
    other = task.model_copy(update={"train": task.train.select(range(50))})
    with pytest.raises(rb.ConfigError, match=r"tasks\.0\.train"):
        check_resumable(before, make_job({"a": "x/a"}, tmp_path / "store", tasks=[other]))


def test_a_folder_is_taken_up_only_when_there_is_one(tmp_path):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    folder = RunFolder(str(tmp_path), "run")
    with pytest.raises(rb.ConfigError, match="expected a run to resume"):
        folder.create(job, resume=True)
    folder.create(job)
    # Stopped before it wrote its job: nothing is lost by beginning.
    folder.create(job, resume=True)
    (folder.path / "job.yaml").write_text(dump_yaml(job))
    folder.create(job, resume=True)
    with pytest.raises(rb.ConfigError, match=r"holds a run already.*--resume"):
        folder.create(job)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_something_else_is_left_alone(tmp_path, resume):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(rb.ConfigError, match=r"photos, which has no job\.yaml, but holds a\.jpg"):
        RunFolder(str(tmp_path), "photos").create(job, resume=resume)
    (tmp_path / "file").touch()
    with pytest.raises(rb.ConfigError, match=r"no such folder|can't be created"):
        RunFolder(str(tmp_path), "file").create(job, resume=resume)
    # A run that was stopped while it encoded its data.
    (tmp_path / "stopped" / "data" / "sum").mkdir(parents=True)
    RunFolder(str(tmp_path), "stopped").create(job, resume=resume)


def test_a_job_that_cant_be_read_is_no_run_to_resume(tmp_path):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "job.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder" / "job.yaml").mkdir(parents=True)
    for name in ("bytes", "folder"):
        with pytest.raises(rb.ConfigError, match=r"job\.yaml: expected the job of a run in UTF-8"):
            RunFolder(str(tmp_path), name).create(job, resume=True)


def test_a_run_that_was_refused_after_it_wrote_its_job_leaves_no_folder(tmp_path):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        for begun in (False, True):
            folder = RunFolder(str(tmp_path / "runs" if name == "new" else tmp_path), name)
            folder.create(job)
            folder.write("job.yaml", dump_yaml(job))
            folder.write("metrics.jsonl", "")
            if begun:
                folder.checkpoints.mkdir()
            folder.remove_unused(refused=True)
            assert folder.path.exists() == (begun or name == "empty")
            assert begun == (folder.path / "job.yaml").exists()
    assert (tmp_path / "runs").exists()


def test_a_run_that_was_refused_leaves_no_folder(tmp_path):
    job = make_job({"a": "x/a"}, tmp_path / "store")
    refused = RunFolder(str(tmp_path / "runs"), "refused")
    refused.create(job)
    (refused.path / "data").mkdir()
    refused.remove_unused()
    assert not (tmp_path / "runs").exists()
    begun = RunFolder(str(tmp_path), "begun")
    begun.create(job)
    begun.write("job.yaml", dump_yaml(job))
    begun.remove_unused()
    assert begun.path.exists()
    (tmp_path / "mine").mkdir()
    mine = RunFolder(str(tmp_path), "mine")
    mine.create(job)
    mine.remove_unused()
    assert mine.path.exists()
