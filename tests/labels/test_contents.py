import json
import shutil

import pytest

from raybrew.errors import ConfigError
from raybrew.labels.contents import model_fingerprint


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "config.json").write_text(json.dumps({"hidden_size": 4, "transformers_version": "1"}))
    return made


def fingerprint(folder, dtype="float32", adaptor="sequence-classification") -> str:
    return model_fingerprint(folder, dtype=dtype, adaptor=adaptor)


def test_place_and_history_dont_matter(folder, tmp_path):
    first = fingerprint(folder)
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(
        json.dumps({"transformers_version": "2", "hidden_size": 4, "_name_or_path": "x"})
    )
    (copy / "vocab.txt").write_text("a")
    assert fingerprint(copy) == first


def test_whatever_changes_an_answer_changes_the_fingerprint(folder):
    seen = {
        fingerprint(folder),
        fingerprint(folder, dtype="float16"),
        fingerprint(folder, adaptor="x"),
    }
    (folder / "model.safetensors").write_bytes(b"weightz")
    seen.add(fingerprint(folder))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 5}))
    seen.add(fingerprint(folder))
    assert len(seen) == 5


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"expected weights.*got config\.json"):
        fingerprint(folder)


def test_labels_of_float32_stay_and_those_of_a_cast_module_do_not(folder):
    # Of the first version; its teachers in half precision were cast with what belongs in float32.
    assert fingerprint(folder) == "fe9e7f4592924f2b674ed5b39b7a5cf7"
    assert fingerprint(folder, dtype="float16") != "2e3863f4902c48bc2686a3a6f5ba236e"
    assert fingerprint(folder, dtype="bfloat16") != "fa2204d28caea2004244734102d45cbf"
