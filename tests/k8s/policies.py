"""All rules, and what they find."""

import policies_kueue
import policies_pods
import policies_ray
import policies_references
from world import Rule, World

RULES: tuple[Rule, ...] = (
    *policies_ray.RULES,
    *policies_kueue.RULES,
    *policies_pods.RULES,
    *policies_references.RULES,
)


def findings(world: World) -> dict[str, list[str]]:
    """What each rule finds, of those that find anything, by its name."""
    found = {rule.__name__: list(rule(world)) for rule in RULES}
    return {name: sentences for name, sentences in found.items() if sentences}
