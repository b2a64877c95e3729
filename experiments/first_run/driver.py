"""The demo as a driver script; run it after `make demo`, which makes its teachers."""

from ray.train import RunConfig, ScalingConfig

import raybrew as rb

CACHE = "cache"

job = rb.DistillJob(
    tasks=[
        rb.Task(
            name="trec",
            train=f"{CACHE}/data/trec/train.parquet",
            eval=f"{CACHE}/data/trec/test.parquet",
            max_length=24,
        )
    ],
    teachers=[
        rb.Teacher(
            name="a", task="trec", model=f"{CACHE}/teachers/first_run/a", resources={"CPU": 0.5}
        ),
        rb.Teacher(
            name="b",
            task="trec",
            model=f"{CACHE}/teachers/first_run/b",
            resources={"CPU": 0.5},
            weight=0.5,
        ),
    ],
    student=rb.Student(
        config={
            "num_hidden_layers": 2,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "intermediate_size": 512,
        }
    ),
    distillation=rb.DistillationConfig(
        temperature=2, kd_loss="ce", kd_loss_weight=0.7, hard_label_weight=0.3
    ),
    training=rb.TrainingConfig(num_epochs=6, batch_size=64, learning_rate=2e-3),
    labels=rb.LabelConfig(store=f"{CACHE}/labels"),
)

if __name__ == "__main__":
    result = rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="driver"),
    )
    print(f"student: {result.metrics['eval/trec/accuracy']:.3f}, in {result.student}")
    print(
        f"teachers: {result.teachers['a']['accuracy']:.3f}, {result.teachers['b']['accuracy']:.3f}"
    )
    print(f"labels: {result.labels}")
