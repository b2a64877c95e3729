"""Files of words and tags, by hand."""

from experiments.ner import parse_columns

CONLL = b"""-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def test_columns_become_sentences():
    assert parse_columns(CONLL) == [
        (["EU", "rejects"], ["B-ORG", "O"]),
        (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    ]


def test_tabs_and_lines_of_blanks_are_taken():
    assert parse_columns("a\tO\nZürich\tB-loc\n\t\nb\tO\n\n\n".encode()) == [
        (["a", "Zürich"], ["O", "B-loc"]),
        (["b"], ["O"]),
    ]
