"""The section `pretrain:` of the pipeline file: how the base is trained, when it is promoted."""

from trainers.pretrain_config import PretrainConfig
from workflows.promote_config import PromoteBaseConfig


class PipelinePretrain(PretrainConfig):
    """Self-supervised training of the base model, and its promotion."""

    promote: PromoteBaseConfig | None = PromoteBaseConfig()
    """The rule of promotion; null adds no version to the store."""

    @property
    def training(self) -> PretrainConfig:
        """The training alone."""
        return PretrainConfig(**{name: getattr(self, name) for name in PretrainConfig.model_fields})
