"""A row of TextBrewer's tables on a real Ray, by its command: its teacher, then the student."""

import json
import re
from pathlib import Path

import pytest

from experiments.textbrewer.__main__ import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.beside,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.long,
]


def test_a_row_by_its_command(tmp_path, capsys):
    assert main(["cmrc2018", "Electra-small", "--smoke", "--runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert re.search(
        r"^cmrc2018-Electra-small +│ +66\.5/84\.9 │ +[\d.]+/[\d.]+$", table, re.MULTILINE
    )
    (folder,) = Path(tmp_path).glob("smoke-*/cmrc2018-Electra-small")
    report = json.loads((folder / "report.json").read_text())
    # Training rows, transfer rows and evaluation rows: each once.
    assert report["labels"]["forwards"] == report["labels"]["needed"] > 0
    assert report["teachers"]["teacher-1"]["examples"] > 0
