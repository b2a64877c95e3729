"""Each row of TextBrewer's tables: parsed, built, and run on stand-ins, here without Ray."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, ElectraConfig

import raybrew as rb
from experiments.textbrewer import published as rows
from experiments.textbrewer.__main__ import listing, main
from experiments.textbrewer.hotpotqa import main as make_hotpotqa
from experiments.textbrewer.published import BENCHMARKS, MODELS, ROWS, STUDENTS, Row, find
from experiments.textbrewer.smoke import NUM_ROWS, TRAINING, StandIns
from experiments.textbrewer.steps import Step, run_row, steps_of, write_jobs
from raybrew.config.job_file import JobFile, dump_yaml, load_job
from raybrew.matches.presets import PRESETS, ModelGeometry, resolve_matches
from raybrew.models.students import save_student
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import task_type_of
from raybrew.training.build import build_training
from raybrew.training.world import World
from tests.made import make_tokenizer
from tests.training.in_process import Recorder, build

# As the paper prints them; a row of mine for every cell.
ENGLISH = """
                 mnli       squad      conll2003
bert-base-cased  83.7/84.0  81.5/88.6  91.1
T3-alone         76.1/76.5  63.0/74.3  85.3
T6-alone         –          75.0/83.3  –
BiGRU-alone      –          –          81.1
BiGRU            –          –          85.3
T6               83.5/84.0  80.8/88.1  90.7
T3               81.8/82.7  76.4/84.9  87.5
T3-small         81.3/81.7  72.3/81.4  78.6
T4-tiny          82.0/82.6  75.2/84.0  89.1
T12-nano         83.2/83.9  79.0/86.6  89.6
three-teachers   84.8/85.3  83.5/90.0  –
"""
CHINESE = """
                 xnli  lcqmc  cmrc2018   drcd       msra
roberta-wwm-ext  79.9  89.4   68.8/86.4  86.5/92.5  –
T3               78.4  89.0   66.4/84.2  78.2/86.4  –
T3-small         76.0  88.1   58.0/79.3  75.8/84.8  –
T4-tiny          76.2  88.4   61.8/81.8  77.3/86.1  –
electra-base     77.8  89.8   65.6/84.7  86.9/92.3  95.14
Electra-small    77.7  89.3   66.5/84.9  85.5/91.3  93.48
"""
UNPUBLISHED = {"mnli T4-tiny-emd", "sst2 bert-base-uncased", "sst2 T3"}
# Which of TextBrewer's matches its paper names for each student, and how large that is.
PAPER_MATCHES = {
    "BiGRU": ([], 1, 768),
    "T6": (["L6_hidden_mse", "L6_hidden_smmd"], 6, 768),
    "T3": (["L3_hidden_mse", "L3_hidden_smmd"], 3, 768),
    "T3-small": (["L3n_hidden_mse", "L3_hidden_smmd"], 3, 384),
    "T4-tiny": (["L4t_hidden_mse", "L4_hidden_smmd"], 4, 312),
    "T12-nano": (["small_hidden_mse", "small_hidden_smmd"], 12, 256),
    "Electra-small": (["small_hidden_mse", "small_hidden_smmd"], 12, 256),
    "base": ([], 12, 768),
}
NUM_MATCHES = {name: sum(len(PRESETS[m]) for m in ms) for name, (ms, *_) in PAPER_MATCHES.items()}
NUM_MATCHES |= {"T4-tiny-emd": 2, "T3-two-matches": 2}


def published() -> dict[str, str]:
    cells = {}
    for table in (ENGLISH, CHINESE):
        head, *lines = table.strip().splitlines()
        for name, *scores in map(str.split, lines):
            cells |= {
                f"{benchmark} {name}": score
                for benchmark, score in zip(head.split(), scores, strict=True)
                if score != "–"
            }
    return cells


def test_the_readme_lists_the_rows():
    readme = Path(rows.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert listing() in readme, "write the output of --list into README.md"


def test_there_is_a_row_for_every_published_score():
    assert {row.title for row in ROWS} == published().keys() | UNPUBLISHED
    assert len({row.title for row in ROWS}) == len(ROWS)
    for title, score in published().items():
        found = find(*title.split())
        assert found.published == tuple(map(float, score.split("/"))), title
        assert len(found.published) == len(found.data.metrics)
    augmented = Counter(row.benchmark for row in ROWS if row.augmented)
    assert augmented == {"squad": 1, "conll2003": 2, "cmrc2018": 4, "drcd": 4}
    assert "…" not in listing()
    for row in ROWS:
        line = [each for each in listing().splitlines() if each.startswith(f"{row.title} ")]
        assert len(line) == 1
        assert published().get(row.title, "–") in line[0]


@pytest.mark.parametrize("name", PAPER_MATCHES)
def test_matches_are_those_of_the_paper(name):
    presets, layers, size = PAPER_MATCHES[name]
    teacher, student = ModelGeometry(12, 768, 12), ModelGeometry(layers, size, 12)
    given = [
        (match, 1) if isinstance(match, str) else (match["preset"], match["every"])
        for match in STUDENTS[name].matches
    ]
    found = [m for kind, e in given for m in resolve_matches(kind, teacher, student, every=e)]
    assert found == resolve_matches(presets)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_the_job_files_say_the_papers_recipe(row: Row, tmp_path):
    *teachers, (step, path) = write_jobs(row, tmp_path, tmp_path / "runs")
    assert len(teachers) == (row.teachers if row.kind == "student" else 0)
    for number, (each, file) in enumerate(teachers):
        made = load_job(rb.TrainJob, file).job
        assert made.model.model == MODELS[row.base]
        assert made.training.seed == number
        assert made.training.learning_rate in (3e-5, 5e-5)
        assert not made.tasks[0].transfer
        assert each.folder == tmp_path / "runs" / each.name
    loaded = load_job(step.kind, path)
    assert loaded.scaling["use_gpu"]
    task, training = loaded.job.tasks[0], loaded.job.training
    assert (task.train, task.eval) == (row.data.task["train"], row.data.task["eval"])
    assert task.transfer == (row.data.transfer if row.augmented else ())
    if not isinstance(loaded.job, rb.DistillJob):
        return
    assert [t.model for t in loaded.job.teachers] == [f"{s.folder}/student" for s, _ in teachers]
    assert loaded.job.distillation.temperature == (4 if row.benchmark == "sst2" else 8)
    assert loaded.job.distillation.hard_label_weight == 0
    assert not loaded.job.distillation.scale_t2
    if row.teachers == 1:
        assert training.learning_rate == 1e-4
        assert (training.num_epochs or 0) >= (20 if row.benchmark == "sst2" else 30)
    constant = row.base == "roberta-wwm-ext" and row.benchmark in ("cmrc2018", "drcd")
    assert training.lr_scheduler == ("constant_with_warmup" if constant else "linear")


class FullSize(StandIns):
    """The hub's configurations in their own sizes, without weights."""

    def _model(self, name: str) -> Path:
        folder = self._folder / "models" / name
        sizes = (256, 1024, 4, 128) if name == "electra-small" else (768, 3072, 12, 768)
        hidden, feed_forward, heads, embedding = sizes
        common: dict[str, Any] = {
            "vocab_size": 28996 if name.startswith("bert") else 21128,
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_attention_heads": heads,
        }
        electra = ElectraConfig(embedding_size=embedding, **common)
        (electra if name.startswith("electra") else BertConfig(**common)).save_pretrained(folder)
        make_tokenizer().save_pretrained(str(folder))
        return folder

    def teacher(self, row: Row, folder: Path) -> None:
        """What the run of a teacher leaves, without weights."""
        config = AutoConfig.from_pretrained(self._model(row.base))
        names = row.data.task.get("label_names", ["LABEL_0", "LABEL_1"])
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"named, never read")
        make_tokenizer().save_pretrained(str(folder))


# One row of each student and each kind of model that teaches it: others differ in data alone.
DISTINCT = {(row.student, row.base, row.teachers): row for row in ROWS if row.kind == "student"}


@pytest.mark.parametrize("row", DISTINCT.values(), ids=lambda row: row.title)
def test_jobs_fit_the_models_of_the_hub_in_their_own_sizes(row: Row, tmp_path):
    stand_ins = FullSize(tmp_path / "hub")
    *_, (step, path) = write_jobs(row, tmp_path, tmp_path / "runs", stand_ins)
    job = load_job(rb.DistillJob, path).job
    for teacher in job.teachers:
        stand_ins.teacher(row, Path(teacher.model or ""))
    prepared = resolve_job(job, step.folder / "data")
    specs = [match.spec for match in prepared.tasks[0].matches]
    assert len(specs) == NUM_MATCHES[row.student]
    if row.student in PAPER_MATCHES:
        assert specs == resolve_matches(PAPER_MATCHES[row.student][0])
    assert len(prepared.teachers) == row.teachers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("textbrewer")
    torch.set_num_threads(threads)


class InProcess:
    """Runs steps in this process, and leaves of a run what tables are made of."""

    def __init__(self):
        self.losses: dict[str, list[dict[str, float]]] = {}

    def __call__(self, step: Step, file: JobFile) -> None:
        job, folder = file.job, step.folder
        folder.mkdir(parents=True)
        if isinstance(job, rb.TrainJob):
            plan = resolve_job(job, folder / "data")
            training = build_training(plan, World(), None)
        else:
            training, _ = build(job, folder / "data")
        recorder = Recorder()
        metrics = training.run(recorder)
        self.losses[step.name] = recorder.values
        save_student(training.model, training.tokenizer, folder / "student")
        (folder / "job.yaml").write_text(dump_yaml(job))
        figures = {"exact_match": 0.5, "f1": 0.25, "accuracy": 0.125}
        report = {"metrics": metrics, "ensembles": {job.tasks[0].name: figures}}
        (folder / "report.json").write_text(json.dumps(report))


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_each_row_runs_on_stand_ins(row: Row, place):
    runner = InProcess()
    runs = place / row.base / row.benchmark
    table = run_row(row, runs, stand_ins=StandIns(place / "stand-ins"), runner=runner)
    step = steps_of(row, runs)[-1]
    report = json.loads((step.folder / "report.json").read_text())
    main_metric = row.data.metrics[0]
    here = report["metrics"][f"eval/{row.benchmark}/{main_metric}"]
    line = next(line for line in table.splitlines() if line.startswith(f"{step.name} "))
    assert row.score in line
    assert f"{100 * here:.1f}" in line.split("│")[-1]
    assert line.split("│")[-1].count("/") == len(row.data.metrics) - 1
    assert ("their mean" in table) == (row.teachers > 1)
    model = task_type_of(row.data.task["kind"]).model_class.from_pretrained(step.folder / "student")
    assert model.config.num_labels == len(row.data.task.get("label_names", (0, 1)))
    if row.kind == "teacher":
        return  # made before by a row that it teaches, perhaps
    losses = runner.losses[step.name]
    assert len(losses) == (2 if row.augmented else 1) * NUM_ROWS // TRAINING["batch_size"]
    terms = {name.removeprefix(f"train/{row.benchmark}/") for name in losses[0]}
    matches = {term for term in terms if term.startswith("match/")}
    assert len(matches) == (NUM_MATCHES[row.student] if row.kind == "student" else 0)
    assert ("kd" in terms) == (row.kind == "student")
    assert all(math.isfinite(value) for each in losses for value in each.values())


def test_what_an_earlier_run_made_is_kept_if_it_is_of_the_same_job(place, capfd):
    row, stand_ins = find("sst2", "T3"), StandIns(place / "stand-ins")
    runs = place / "other"
    table = run_row(row, runs, stand_ins=stand_ins, runner=InProcess())
    again = InProcess()
    assert run_row(row, runs, stand_ins=stand_ins, runner=again) == table
    assert not again.losses
    assert capfd.readouterr().out.count("kept from an earlier run") == 2
    with pytest.raises(rb.ConfigError, match=r"expected a run of this job.*delete it(.|\n)*seed"):
        run_row(
            row,
            runs,
            stand_ins=stand_ins,
            overrides=["training.seed=7"],
            runner=InProcess(),
        )


def test_every_name_of_the_hub_has_a_stand_in(tmp_path):
    stand_ins = StandIns(tmp_path)
    for hub_id in MODELS.values():
        assert Path(stand_ins.of(hub_id) or "", "config.json").is_file()
    for each in BENCHMARKS.values():
        for source in (
            each.task["train"],
            each.task["eval"],
            *each.further.values(),
            *each.transfer,
        ):
            assert Path(stand_ins.of(source) or "-").is_file(), source
    assert stand_ins.of("mnli") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a benchmark and a row, or --list"),
        (["mnli", "T5"], "expected a row of mnli (bert-base-cased, "),
        (["glue", "T3"], "expected a benchmark of mnli, squad, "),
        (["mnli", "T3", "--set", "trainig.seed=1"], "did you mean 'training' or"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(arguments, message, tmp_path, capsys):
    runs = ["--runs", str(tmp_path)]
    assert main([*arguments, *runs]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_job_files_are_written_with_the_commands_that_run_them(tmp_path, capsys):
    assert main(["squad", "three-teachers", "--write", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    verbs = [line.split()[:2] for line in lines]
    assert verbs == [["raybrew", "train-teacher"]] * 3 + [["raybrew", "distill"]]
    job = load_job(rb.DistillJob, lines[-1].split()[2]).job
    assert job.student.model == "google-bert/bert-base-cased"
    assert len({teacher.model for teacher in job.teachers}) == 3


def test_a_row_that_needs_hotpotqa_says_how_it_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.textbrewer.steps.HOTPOTQA", Path("none/train.parquet"))
    conll = replace(BENCHMARKS["conll2003"], transfer=("none/train.parquet",))
    data = {**BENCHMARKS, "conll2003": conll}
    monkeypatch.setattr("experiments.textbrewer.published.BENCHMARKS", data)
    assert main(["conll2003", "T12-nano", "--runs", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "make it first: python -m experiments.textbrewer.hotpotqa" in err
    assert out == ""


def test_hotpotqas_sentences_become_rows_of_words(tmp_path, capsys):
    rows = [
        {"context": {"title": ["A"], "sentences": [["The U.S. won't go.", " Ann left. "]]}},
        {"context": {"title": ["B", "C"], "sentences": [["Ann left."], ["Bob came.", ""]]}},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "words" / "train.parquet"
    arguments = ["--source", str(tmp_path / "rows.jsonl"), "--out", str(out), "--limit", "3"]
    assert make_hotpotqa(arguments) == 0
    assert "3 sentences" in capsys.readouterr().out
    words = [["The", "U.S", ".", "won't", "go", "."], ["Ann", "left", "."], ["Bob", "came", "."]]
    task = rb.Task(
        name="t", kind="token-classification", train=str(out), text="tokens", label="tokens"
    )
    assert Path(task.train).is_file()
    import pyarrow.parquet as pq

    assert pq.read_table(out).column("tokens").to_pylist() == words
    assert make_hotpotqa(["--source", str(tmp_path / "none.jsonl"), "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
