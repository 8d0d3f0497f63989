"""Needles: facts planted in a long prompt at chosen depths, asked for in the same request that is timed.

Three kinds. ``single``: one fact, one question. ``multi``: several facts, one question that asks for all. ``multi_hop``: a
chain of facts; the answer stands in the last one and is reached only through the others. The scheme follows the field's
needle-in-a-haystack and RULER tests (multi-key, multi-value and variable-tracking tasks), with numbers as answers because a
number cannot be guessed and can be judged without a second model.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import UserError
from ..results import AskedNeedle, NeedleAnswer, NeedleCell

NeedleKind = Literal["single", "multi", "multi_hop"]
KINDS: tuple[NeedleKind, ...] = get_args(NeedleKind)
SHOWN_CHARS = 600  # of an answer, in the result and its report
DEFAULT_DEPTHS: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)

_TOWNS = (
    "Arvena Belcorin Casmir Dorvale Elbrin Farholt Gaspera Hollmark Istrane Jorvel Kelmora Lanvik Merrow Norvane Ostrell "
    "Pelmont Quarrin Ravelle Sorrento Tolvane Ulvers Vastrel Wendale Yorrick Zelmar Ambrel Brantis Corvell Draymor Eskelund"
)
_PEOPLE = "Anna Boris Clara David Elena Frank Greta Hugo Irene Jonas Karla Leon Maria Nils Olga Peter Rosa Simon Tanya Victor"


@dataclass(frozen=True)
class PlantedFact:
    """One sentence and where it stands: ``depth`` 0 is the start of the text, 1 its end (just before the question)."""

    text: str
    depth: float


@dataclass(frozen=True)
class Needle:
    """One answer to be found. ``depth`` is that of the fact which holds it; ``expected`` a number as plain digits.

    ``decoys``: numbers that also stand in the text and are wrong; an answer that gives one of them first is wrong.
    """

    kind: NeedleKind
    depth: float
    subject: str
    expected: str
    decoys: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeedlePlan:
    """What to plant and what to ask. ``facts`` by rising depth; ``cue``: how the answer begins (given to the model)."""

    kind: NeedleKind
    facts: tuple[PlantedFact, ...]
    needles: tuple[Needle, ...]
    question: str
    cue: str


def plan_needles(kind: NeedleKind, depths: Sequence[float], *, seed: int, key: str) -> NeedlePlan:
    """Plan facts, question and expected answers, all decided by (``seed``, ``key``).

    ``single`` takes one depth, ``multi`` any number, ``multi_hop`` at least two: the first facts of the chain stand at the
    first depths, the answer at the last one given (the order of ``depths`` is the order of the chain).
    Raises UserError for a depth outside 0..1 or the wrong number of depths.
    """
    if kind not in KINDS:
        raise UserError(f"needle kind {kind!r}", "one of " + ", ".join(KINDS), "correct the kind")
    if not depths or any(not 0.0 <= d <= 1.0 for d in depths):
        raise UserError(f"needle depths {list(depths)}", "at least one number from 0 to 1", "correct the depths")
    if kind == "single" and len(depths) != 1:
        fix = "use kind multi, or one prompt per depth"
        raise UserError(f"{len(depths)} depths for a single needle", "one depth per prompt", fix)
    if kind == "multi_hop" and len(depths) < 2:
        raise UserError("one depth for a chain of facts", "at least two depths", "give multi_hop two or more depths")
    towns_known = _TOWNS.split()
    if len(depths) >= len(towns_known):
        raise UserError(f"{len(depths)} needles in one prompt", f"at most {len(towns_known) - 1}", "use fewer depths")
    draw = _Draw(f"{seed}/{key}/needles")
    towns = draw.sample(towns_known, len(depths) + 1)
    codes = draw.codes(len(depths) + 1)
    if kind == "multi_hop":
        return _chain(depths, towns, codes, draw.sample(_PEOPLE.split(), 2))
    towns, codes = towns[:-1], codes[:-1]
    facts = tuple(
        PlantedFact(f"The secret code of {town} is {code}. Remember it: {code} is the secret code of {town}.", depth)
        for town, code, depth in zip(towns, codes, depths, strict=True)
    )
    needles = tuple(Needle(kind, d, t, c) for d, t, c in zip(depths, towns, codes, strict=True))
    if kind == "single":
        question = f"What is the secret code of {towns[0]}? Answer with the number."
        cue = f"The secret code of {towns[0]} is"
    else:
        names = ", ".join(towns)
        question = f"The text gives the secret codes of {names}. List each of these names with its secret code."
        cue = f"The secret codes are:\n{towns[0]}:"
    return NeedlePlan(kind, _by_depth(facts), needles, question, cue)


def _chain(depths: Sequence[float], towns: Sequence[str], codes: Sequence[str], people: Sequence[str]) -> NeedlePlan:
    """Plan a chain that ends in a code, and a shorter chain that ends in another: finding a code is not enough."""
    person, other = people
    *path, last, decoy = towns
    chain = [*path[: len(depths) - 2], last]
    facts = [PlantedFact(f"{person} lives in {chain[0]}.", depths[0]), PlantedFact(f"{other} lives in {decoy}.", depths[0])]
    facts += [
        PlantedFact(f"The people of {here} all moved to {there}.", depth)
        for here, there, depth in zip(chain[:-1], chain[1:], depths[1:-1], strict=True)
    ]
    facts.append(PlantedFact(f"The secret code of everyone in {chain[-1]} is {codes[0]}.", depths[-1]))
    facts.append(PlantedFact(f"The secret code of everyone in {decoy} is {codes[1]}.", 1.0 - depths[-1]))
    moved = " after the move" if len(depths) > 2 else ""
    needle = Needle("multi_hop", depths[-1], person, codes[0], (codes[1],))
    question = f"What is the secret code of {person}{moved}? Find where {person} lives, then the code of that place."
    return NeedlePlan("multi_hop", _by_depth(facts), (needle,), question, f"The secret code of {person} is")


def _by_depth(facts: Iterable[PlantedFact]) -> tuple[PlantedFact, ...]:
    return tuple(sorted(facts, key=lambda f: f.depth))


class _Draw:
    """Draws choices that depend on the key alone. hashlib, because Python does not promise that random's stream stays the same."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._count = 0

    def below(self, limit: int) -> int:
        self._count += 1
        digest = hashlib.sha256(f"{self._key}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "little") % limit

    def sample(self, names: Sequence[str], count: int) -> list[str]:
        left = list(names)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def codes(self, count: int) -> list[str]:
        made: dict[str, None] = {}
        while len(made) < count:
            made.setdefault(str(10_000 + self.below(90_000)))
        return list(made)


def judge(answer: str, needle: Needle) -> bool:
    """Whether the answer holds the expected number as a number of its own (not as part of a longer one), and no decoy before it.

    Digits may be grouped (``48,213``, ``48 213``, ``48_213``); a decimal part (``48213.5``) makes it another number.
    """
    found = _position(answer, needle.expected)
    if found is None:
        return False
    wrong = [at for decoy in needle.decoys if (at := _position(answer, decoy)) is not None]
    return all(found < at for at in wrong)


def _position(answer: str, digits: str) -> int | None:
    """Where this number first stands on its own."""
    gap = r"[,\u00a0\u202f _]?"
    spelled = "".join((gap if i and (len(digits) - i) % 3 == 0 else "") + digit for i, digit in enumerate(digits))
    match = re.search(rf"(?<!\d)(?<!\d[.,]){spelled}(?!\d)(?![.,]\d)", answer)
    return None if match is None else match.start()


def answers(plan: NeedlePlan, answer: str) -> tuple[NeedleAnswer, ...]:
    """Judge each needle. The raw answer is kept in each result."""
    return tuple(
        NeedleAnswer(n.kind, n.depth, n.expected, judge(answer, n), answer, plan.question, n.subject) for n in plan.needles
    )


def shown(point_id: str, input_tokens: int, told: NeedleAnswer) -> AskedNeedle:
    """Return a needle for the report, with its answer cut to ``SHOWN_CHARS`` characters."""
    cut = told.answer if len(told.answer) <= SHOWN_CHARS else told.answer[:SHOWN_CHARS] + "\N{HORIZONTAL ELLIPSIS}"
    return AskedNeedle(point_id, input_tokens, replace(told, answer=cut))


def aggregate(answered: Iterable[tuple[int, Iterable[NeedleAnswer]]]) -> tuple[NeedleCell, ...]:
    """Count pairs of (input tokens, answers of one request) for each (kind, length, depth), sorted."""
    asked: Counter[tuple[str, int, float]] = Counter()
    found: Counter[tuple[str, int, float]] = Counter()
    for length, group in answered:
        for item in group:
            cell = (item.kind, length, item.depth)
            asked[cell] += 1
            found[cell] += item.found
    return tuple(NeedleCell(k, n, d, asked[k, n, d], found[k, n, d]) for k, n, d in sorted(asked))


def recall(cells: Iterable[NeedleCell]) -> float | None:
    """Share found of those asked; ``None`` when nothing was asked, so that nothing asked never passes."""
    listed = list(cells)
    asked = sum(c.asked for c in listed)
    return sum(c.found for c in listed) / asked if asked else None
