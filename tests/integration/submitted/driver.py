"""The demo's job on files of a folder; its teachers and its student each have nodes of their own.

ray job submit --working-dir tests/integration/submitted -- python driver.py FOLDER
"""

import sys
from pathlib import Path

from ray.train import RunConfig, ScalingConfig

import raybrew as rb

folder = Path(sys.argv[1])

job = rb.DistillJob(
    tasks=[
        rb.Task(
            name="sum",
            train=str(folder / "train.parquet"),
            eval=str(folder / "eval.parquet"),
            max_length=24,
        )
    ],
    teachers=[
        rb.Teacher(
            name=name,
            task="sum",
            model=str(folder / name),
            resources={"CPU": 0.5, "teacher_node": 0.001},
            weight=weight,
            adaptor="witness:teacher",
        )
        for name, weight in (("a", 1.0), ("b", 0.5))
    ],
    student=rb.Student(
        config={
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        adaptor="witness:student",
    ),
    distillation=rb.DistillationConfig(
        temperature=2, kd_loss="ce", kd_loss_weight=0.7, hard_label_weight=0.3
    ),
    training=rb.TrainingConfig(num_epochs=6, batch_size=16, learning_rate=2e-3, num_threads=1),
    labels=rb.LabelConfig(store=str(folder / "labels")),
)

if __name__ == "__main__":
    result = rb.distill(
        job,
        scaling_config=ScalingConfig(
            num_workers=1, resources_per_worker={"CPU": 1, "student_node": 0.001}
        ),
        run_config=RunConfig(name="submitted", storage_path=str(folder / "runs")),
    )
    print(f"student: {result.metrics['eval/sum/accuracy']:.3f}, in {result.student}")
