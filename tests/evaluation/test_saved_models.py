"""`evaluate` and `inspect` of models that a batch treats in another way than BERT."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from raybrew.models.parameters import inspect_model
from tests.models.saved_families import FAMILIES, WORDS, family_tokenizer, save_family

CLASSES = ("down", "up")
TEXTS = [" ".join(WORDS[n % 7 : n % 7 + n // 2 + 1]) for n in range(32)]


@torch.inference_mode()
def own_answers(folder: str, family: str) -> list[str]:
    """The class that the model itself gives to each text, which it reads alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = family_tokenizer(FAMILIES[family][0])
    inputs = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    logits = torch.cat([model(input_ids=ids).logits for ids in inputs])
    return [CLASSES[number] for number in logits.argmax(1).tolist()]


# One kind each: class token last, no padding token, an end that is counted, padding that is read.
@pytest.mark.parametrize("family", ["xlnet", "gpt2", "llama", "t5", "fnet"])
def test_a_model_agrees_with_itself(tmp_path, family):
    folder = save_family(tmp_path, family, AutoModelForSequenceClassification)
    labels = own_answers(folder, family)
    assert set(labels) == set(CLASSES), "both classes, or any answer is right"
    data = Dataset.from_dict({"text": TEXTS, "label": labels})
    job = rb.TrainJob(
        tasks=[rb.Task(name="x", train=data, eval=data, max_length=32, label_names=CLASSES)],
        model=rb.Student(model=folder),
        training=rb.TrainingConfig(num_steps=1),
    )
    assert rb.evaluate(job, folder)["x"]["accuracy"] == 1.0


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "xlnet"])
def test_batches_of_any_family_are_timed(tmp_path, family):
    folder = save_family(tmp_path, family, AutoModelForSequenceClassification)
    (found,) = inspect_model(folder, length=8, batch_size=3, repeats=1)
    assert found.latency_ms is not None, found.untimed
