"""What a script's files become: checkpoints that jobs load, and the examples of the page on it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.textbrewer.convert import convert_checkpoint, main
from tests.made import make_model
from tests.textbrewer import script
from tests.textbrewer.script import OURS

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


@pytest.fixture
def script_folder(tmp_path) -> tuple[str, Path, Any]:
    """A model's folder, and the checkpoint of a script that trained its first layer."""
    folder = make_model(tmp_path / "model", 0)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_hidden_layers=1, num_labels=script.CLASSES, ignore_mismatched_sizes=True
    )
    trainer = OURS.BasicTrainer(script.settings(OURS, tmp_path), model, script.adaptor)
    with trainer:
        trainer.train(
            torch.optim.AdamW(model.parameters(), lr=1e-3),
            script.loader(),
            num_epochs=1,
            batch_postprocessor=lambda batch: {
                **batch,
                "input_ids": batch["input_ids"] % model.config.vocab_size,
            },
            output_hidden_states=True,
            output_attentions=False,
        )
    return folder, tmp_path / "gs5.pkl", model


def test_a_checkpoint_becomes_a_folder_that_jobs_load(script_folder, tmp_path, capsys):
    folder, checkpoint, trained = script_folder
    out = tmp_path / "student"
    given = [str(checkpoint), "--model", folder, "--out", str(out), "--set", "num_hidden_layers=1"]
    assert main(given) == 0
    assert str(out) in capsys.readouterr().out
    loaded = AutoModelForSequenceClassification.from_pretrained(out)
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert AutoTokenizer.from_pretrained(out)("a b")["input_ids"]
    # A folder that is there is not written into.
    assert main(given) == 2
    assert "exists" in capsys.readouterr().err


def test_weights_of_another_model_are_named(script_folder, tmp_path):
    folder, checkpoint, _ = script_folder
    with pytest.raises(rb.CheckpointError, match=r"layer\.1\..*: None in the file, \[32.*others"):
        convert_checkpoint(checkpoint, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for content in ({"a": 1}, [torch.ones(1)]):
        torch.save(content, tmp_path / "other.pkl")
        with pytest.raises(rb.CheckpointError, match="expected weights by name"):
            convert_checkpoint(tmp_path / "other.pkl", folder, tmp_path / "out")


def test_the_examples_of_the_page_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    training, tasks = map(yaml.safe_load, blocks)
    groups = rb.TrainingConfig(num_epochs=1, **training["training"]).parameter_groups
    assert [group.learning_rate for group in groups] == [None, 2e-5]
    assert rb.Task(**tasks["tasks"][0]).train == "train.txt"


@pytest.mark.parametrize(
    "name", ["label_names", "callbacks", "batch_postprocessors", "gs{N}.pkl", "is_caching_logits"]
)
def test_the_page_names_what_scripts_ask_for(name):
    assert name in PAGE.read_text(encoding="utf-8")
