"""`raybrew plan` counts what a job takes and loads no weights; `raybrew push` uploads a folder."""

import pytest
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from raybrew.runs.job_plan import plan
from raybrew.runs.student_folder import push_to_hub
from tests.made import make_job, make_model


def test_a_plan_counts_labels_and_parameters_without_weights(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("weights were loaded")

    folder = make_model(tmp_path / "a", 0)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", never)
    text = plan(make_job({"a": folder}, tmp_path / "store"))
    row = next(line for line in text.splitlines() if line.startswith("a") and "114" in line)
    assert [each.strip() for each in row.split("│")] == ["a", "114", "0", "114", "0.00"]
    assert "0.25 CPU" in text
    assert "Time: unknown" in text


class FakeHub:
    def __init__(self, fails: bool = False):
        self.calls, self._fails = [], fails

    def create_repo(self, name, **options):
        if self._fails:
            raise OSError("403 Forbidden\nmore")
        self.calls.append((name, options))
        return f"https://hub/{name}"

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], options["folder_path"]))


def test_a_student_is_uploaded_or_one_message_says_why_not(tmp_path, monkeypatch):
    folder, hub = make_model(tmp_path / "a", 0), FakeHub()
    assert push_to_hub(folder, "me/a", private=True, api=hub) == "https://hub/me/a"
    assert hub.calls == [
        ("me/a", {"private": True, "exist_ok": True}),
        ("upload", "me/a", folder),
    ]
    with pytest.raises(rb.ConfigError, match="403 Forbidden; log in"):
        push_to_hub(folder, "me/a", api=FakeHub(fails=True))
    monkeypatch.setattr("raybrew.runs.student_folder.hub_in_reach", lambda: False)
    with pytest.raises(rb.ConfigError, match="hub in reach"):
        push_to_hub(folder, "me/a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(rb.ConfigError, match="a folder with a model"):
        push_to_hub(str(tmp_path / "empty"), "me/a", api=hub)
