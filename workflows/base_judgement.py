"""A pretrained model compared with what it must be better than, on the same held-out documents.

What a champion lost on each is read from its version; of other documents it is asked again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from trainers import document_losses
from trainers.document_losses import DocumentLosses, Values
from workflows import significance
from workflows.judgement import Judgement
from workflows.models import ModelStore, Version
from workflows.promote_config import PromoteBaseConfig, RuleConfig
from workflows.promotion import Evaluation, Keep, Rival, decide, needed_gain

_ROUNDING = 1e-6
"""Of a document's nats: what other hardware, or a batch of another size, changes."""

Ask = Callable[[Version], DocumentLosses]
"""Has a version read the documents."""


@dataclass(frozen=True)
class Scored:
    """What a pretrained model lost on each document: what others are compared with."""

    losses: DocumentLosses
    objective: str
    rule: RuleConfig

    def evaluation(self, model: str, losses: DocumentLosses, nats: Values) -> Evaluation:
        """Of what a model of the same objective lost."""
        score = losses.mean(nats)
        return Evaluation(
            model=model,
            score=math.nan if score is None else score,
            type=_type_told(self.objective),
            labels=(),
            test=losses.documents,
            unit=losses.unit,
        )

    def rival(
        self, model: str, losses: DocumentLosses, nats: Values, *, needed: float = 0.0
    ) -> Rival:
        """What another lost of the same documents, and how much better the new model is."""
        evaluation, own = self.evaluation(model, losses, nats), self.losses
        if not math.isfinite(evaluation.score):
            return Rival(evaluation, None)
        is_equal = np.isclose(nats, own.nats, rtol=_ROUNDING, atol=0.0)
        nats = np.where(is_equal, own.nats, nats)
        gain = significance.bootstrap(
            own.score_of(own.nats),
            losses.score_of(nats),
            len(nats),
            differing=int(np.count_nonzero(own.nats != nats)),
            sign=-1.0,
            needed=needed,
            confidence=self.rule.confidence,
            resamples=self.rule.resamples,
            seed=self.rule.seed,
        )
        return Rival(evaluation, gain)


def judge(
    store: ModelStore, champion: Version | None, scored: Scored, ask: Ask | None
) -> Judgement:
    """Compare a pretrained model with all that it must be better than.

    Args:
        store: of the champion.
        champion: None where there is none.
        scored: the new model.
        ask: has the champion read documents that it was not judged on; None where nobody can.
    """
    losses = scored.losses
    challenger = scored.evaluation("the new model", losses, losses.nats)
    if not len(losses.nats):
        reason = "no document was held out to judge it by: see corpus.validation_fraction"
        return Judgement(Keep(reason), challenger, {}, measured={})
    constant = scored.rival("the tokens' own frequencies", losses, losses.constant_nats)
    rivals = {"constant": constant}
    if champion is not None:
        rivals["champion"] = _incumbent(store, champion, scored, ask)
    verdict = decide(
        challenger,
        constant=constant,
        scratch=None,
        champion=rivals.get("champion"),
        rule=scored.rule,
    )
    return Judgement(verdict, challenger, rivals, measured={})


def again(store: ModelStore, version: Version, champion: Version | None) -> Judgement:
    """Judge a version of the store as the run did that made it."""
    facts = store.facts(version)
    losses = document_losses.read(store.read(version, document_losses.FILE))
    rule = PromoteBaseConfig.model_validate(facts["promote"])
    return judge(store, champion, Scored(losses, facts["objective"], rule), None)


def _incumbent(store: ModelStore, champion: Version, scored: Scored, ask: Ask | None) -> Rival:
    """The champion on the same documents; of another objective it is not asked."""
    facts = store.facts(champion)
    other = Evaluation(str(champion), math.nan, "unknown", (), "")
    if "objective" not in facts:
        return Rival(other, None)  # a step of the user's own made it
    other = replace(other, type=_type_told(facts["objective"]))
    if facts["objective"] != scored.objective:
        return Rival(other, None)
    losses, own = document_losses.read(store.read(champion, document_losses.FILE)), scored.losses
    if losses.documents != own.documents and ask is not None:
        losses = ask(champion)
    if (losses.documents, losses.unit) != (own.documents, own.unit):
        return Rival(replace(other, test=losses.documents, unit=losses.unit), None)
    return scored.rival(str(champion), losses, losses.nats, needed=needed_gain(scored.rule))


def _type_told(objective: str) -> str:
    return f"{objective} language modelling"
