"""Search spaces: what may be written, and the points in them. Pure: no Ray, fast to load."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, RootModel, ValidationError, model_validator

from cluster.schema import PositiveFloat, Scalar, Schema

Point = dict[str, Any]
"""One value for each hyperparameter."""


class Range(Schema):
    """A continuous or integer dimension of a search space; exactly one field is set."""

    uniform: tuple[float, float] | None = None
    """Lower and upper bound."""

    loguniform: tuple[float, float] | None = None
    """Lower and upper bound, both above zero; uniform in the logarithm."""

    quniform: tuple[float, float, PositiveFloat] | None = None
    """Lower and upper bound, both included, and the step between values."""

    randint: tuple[int, int] | None = None
    """Smallest and largest integer, both included."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        (low, high, *_), *_ = (given for _, given in self if given is not None)
        return low, high

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        given = {name: bounds for name, bounds in self if bounds is not None}
        if len(given) != 1:
            raise ValueError("give exactly one of uniform, loguniform, quniform, randint")
        (name,), (low, high) = given, self.bounds
        if not low < high:
            raise ValueError(f"{name}: the lower bound {low} must be below the upper bound {high}")
        if name == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: the lower bound {low} must be above zero")
        return self


Dimension = Range | Annotated[list[Scalar], Field(min_length=1)] | Scalar


class Branches(RootModel[Annotated[dict[str, dict[str, Dimension]], Field(min_length=1)]]):
    """Choices that have further hyperparameters each: `{lora: {lora_rank: [4, 8]}, full: {}}`."""

    model_config = {"frozen": True}

    @model_validator(mode="before")
    @classmethod
    def _each_has_a_space(cls, data: Any) -> Any:
        for choice, space in data.items():
            if not isinstance(space, dict):
                raise ValueError(  # noqa: TRY004 -- pydantic takes nothing else
                    f"{choice}: expected one of the ranges uniform, loguniform, quniform, randint, "
                    "or for each choice the hyperparameters that go with it"
                )
        return {choice: with_ranges(space) for choice, space in data.items()}


Space = dict[str, Dimension | Branches]


def with_ranges(space: dict[str, Any]) -> dict[str, Any]:
    """Validate what is a mapping here, so that errors speak of what was meant alone."""
    return {
        name: _validated(name, value) if isinstance(value, dict) else value
        for name, value in space.items()
    }


def _validated(name: str, value: dict[str, Any]) -> Range | Branches:
    is_range = bool(value) and set(value) <= set(Range.model_fields)
    try:
        return (Range if is_range else Branches).model_validate(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{name}: {message}") from None


def dimensions(space: Space) -> Iterator[tuple[str, str, Dimension, Point]]:
    """Every dimension: its place in the file, the hyperparameter, and the choice it belongs to."""
    for name, value in space.items():
        if not isinstance(value, Branches):
            yield name, name, value, {}
            continue
        yield name, name, list(value.root), {}
        for choice, inner in value.root.items():
            for key, dimension in inner.items():
                yield f"{name}.{choice}.{key}", key, dimension, {name: choice}


def values(dimension: Dimension) -> list[Any]:
    """Values that stand for a dimension: its choices, or its bounds."""
    if isinstance(dimension, Range):
        return list(dimension.bounds)
    return dimension if isinstance(dimension, list) else [dimension]


def point(space: Space, pick: Callable[[str, Dimension], Any]) -> Point:
    """A point, with hyperparameters of the branches that were picked alone.

    Args:
        space: of the search.
        pick: a value of a dimension, which it is told by a name of its own.
    """
    found: Point = {}
    for name, value in space.items():
        if isinstance(value, Branches):
            choice = found[name] = pick(name, list(value.root))
            found |= {
                inner: pick(f"{name}.{choice}.{inner}", dimension)
                for inner, dimension in value.root[choice].items()
            }
        else:
            found[name] = pick(name, value)
    return found


def drawn(
    space: Space, number: int, seed: int, first: Sequence[Mapping[str, Any]] = ()
) -> list[Point]:
    """Random points; more of them begin with the same.

    Args:
        space: of the search.
        number: of points.
        seed: of the generator.
        first: the first points have what these have that the space can take.
    """
    generator = random.Random(seed)
    found = []
    for place in range(number):
        known = taken(space, first[place]) if place < len(first) else {}

        def pick(name: str, dimension: Dimension, known: Point = known) -> Any:
            is_open = isinstance(dimension, Range | list)
            value = at(dimension, generator.random()) if is_open else dimension
            return known.get(name, value)

        found.append(point(space, pick))
    return found


def taken(space: Space, other: Mapping[str, Any]) -> Point:
    """What a space can take of a point of another: values by the names that `point` tells."""
    found: Point = {}
    for place, name, dimension, branch in dimensions(space):
        if name in other and all(other.get(key) == choice for key, choice in branch.items()):
            value = nearest(dimension, other[name])
            if value is not None:
                found[place] = value
    return found


def nearest(dimension: Dimension, value: Any) -> Any:
    """A value as a dimension has it; None where it has none like it, or nothing to choose."""
    match dimension:
        case Range():
            low, high = dimension.bounds
            if not isinstance(value, int | float) or not low <= value <= high:
                return None
            if dimension.quniform is not None:
                step = dimension.quniform[2]
                return stepped(low, step, round((value - low) / step))
            return round(value) if dimension.randint is not None else value
        case list():
            return value if value in dimension else None
    return None


def at(dimension: Dimension, share: float) -> Any:
    """The value that far into a dimension, from 0 to below 1."""
    match dimension:
        case Range(uniform=(low, high)):
            return low + share * (high - low)
        case Range(loguniform=(low, high)):
            return float(low * (high / low) ** share)
        case Range(quniform=(low, _, step)):
            return stepped(low, step, int(share * steps(dimension)))
        case Range(randint=(low, high)):
            return low + int(share * (high - low + 1))
        case list():
            return dimension[int(share * len(dimension))]
    return dimension


def steps(dimension: Range) -> int:
    """Number of values of a range with steps."""
    assert dimension.quniform is not None
    low, high, step = dimension.quniform
    return int((high - low) / step + 1e-9) + 1


def stepped(low: float, step: float, number: int) -> float:
    """A value of a range with steps, counted from 0."""
    return float(round(low + number * step, 12))


def grid(space: Space) -> list[Point]:
    """Every combination, of branches each with its own."""
    parts = []
    for name, value in space.items():
        if isinstance(value, Branches):
            branches = value.root.items()
            parts.append(
                [{name: choice} | inner for choice, own in branches for inner in grid(dict(own))]
            )
        else:
            parts.append([{name: one} for one in values(value)])
    return [
        {name: value for part in combination for name, value in part.items()}
        for combination in itertools.product(*parts)
    ]
