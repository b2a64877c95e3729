"""Where a model's files are, which field of the job said so, and whether their code may run."""

from dataclasses import dataclass

from pydantic import Field
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import Teacher
from raybrew.models.pretrained import read_config, read_tokenizer

__all__ = ["LayerSource", "ModelSource", "field_of"]


class LayerSource(Teacher):
    """A model that is no teacher, whose layers the student takes."""

    field: str = Field(description="Of the job that gave it.")


def field_of(teacher: Teacher) -> str:
    """Return the job's field that gave a teacher's model."""
    if isinstance(teacher, LayerSource):
        return teacher.field
    return f"teachers[{teacher.name}].model"


@dataclass(frozen=True)
class ModelSource:
    """A folder or a hub id.

    Args:
        path: of it.
        field: of the job that gave it, for messages.
        trust: whether code that comes with it may run.
    """

    path: str
    field: str
    trust: bool

    @staticmethod
    def of_teacher(teacher: Teacher) -> "ModelSource":
        """Return that of a teacher of the job."""
        return ModelSource(teacher.model_path, field_of(teacher), teacher.trust_remote_code)

    def config(self) -> PreTrainedConfig:
        """Read the configuration; see `read_config`."""
        return read_config(self.path, self.field, trust=self.trust)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer; see `read_tokenizer`."""
        return read_tokenizer(self.path, self.field, trust=self.trust)
