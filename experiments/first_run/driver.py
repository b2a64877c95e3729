"""The demo as a driver script; run it after `make demo`, which makes its teachers."""

from ray.train import RunConfig, ScalingConfig

import raybrew as rb

CACHE = "cache"

job = rb.DistillJob(
    tasks=[
        rb.Task(
            name="trec_400",
            train=f"{CACHE}/data/trec_400/train.parquet",  # 400 questions with a label
            transfer=[f"{CACHE}/data/trec_400/transfer.parquet"],  # the others, without
            eval=f"{CACHE}/data/trec_400/test.parquet",
            max_length=24,
        )
    ],
    teachers=[
        rb.Teacher(
            name=name,
            task="trec_400",
            model=f"{CACHE}/teachers/first_run/{name}",
            resources={"CPU": 0.5},
        )
        for name in ("a", "b")
    ],
    student=rb.Student(
        config={
            "num_hidden_layers": 2,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "intermediate_size": 512,
        }
    ),
    training=rb.TrainingConfig(num_steps=400, batch_size=64, evaluate_every=100),
    labels=rb.LabelConfig(store=f"{CACHE}/labels"),
)

if __name__ == "__main__":
    result = rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="driver"),
    )
    print(f"student: {result.metrics['eval/trec_400/accuracy']:.3f}, in {result.student}")
    print(
        f"teachers: {result.teachers['a']['accuracy']:.3f}, {result.teachers['b']['accuracy']:.3f}"
    )
    print(f"labels: {result.labels}")
