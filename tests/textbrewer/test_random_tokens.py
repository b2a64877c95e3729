"""The script for both packages gives the same losses with either import."""

import numpy as np

from experiments.textbrewer import random_tokens


def test_the_same_losses_with_either_import(capsys):
    found = [
        random_tokens.main(["--package", package, "--hidden", "16", "--epochs", "2"])
        for package in ("textbrewer", "raybrew.textbrewer")
    ]
    printed = capsys.readouterr().out
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert len(set(found[0])) == 8
    assert printed.count("accuracy") == 4
