"""Which shards are still to be labeled, and what was learned about those whose workers died. Must not know Ray.

Every death is charged to somebody, so that nothing is tried forever: to the images that were in work, each of which is
set aside after ``DEATHS_PER_IMAGE``; or, where none was, to the shard, which is given up after its tries.
"""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from labeler.errors import ImageError

logger = logging.getLogger(__name__)

DEATHS_PER_IMAGE = 3
"""How many workers may die with the same image in work before it becomes an error (``worker_died``)."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One shard, to be labeled by one worker.

    Attributes:
        shard: its number.
        verdicts: images that are errors without being touched again, by id.
        careful: one image at a time, because a worker died with this shard before.
        attempt: its number in this run of the driver; no other assignment has it.
        again: where the shard stands already: the kinds of error whose images are labeled again, the others kept.
    """

    shard: int
    verdicts: Mapping[int, ImageError] = field(default_factory=dict)
    careful: bool = False
    attempt: int = field(default=0, compare=False)
    again: frozenset[str] = frozenset()


class ShardLedger:
    """The shards of a run that are not committed.

    Args:
        shards: their numbers, in the order in which they are begun.
        retries: how many workers may die with a shard, and no image of it in work, after the first.
        again: for shards that stand already, which kinds of error are labeled again.
    """

    def __init__(self, shards: Sequence[int], *, retries: int, again: Mapping[int, frozenset[str]] | None = None) -> None:
        self._waiting = deque(shards)
        self._retries = retries
        self._again = dict(again or {})
        self._num_attempts = 0
        self._suspects: set[int] = set()
        self._unexplained_deaths: Counter[int] = Counter()
        self._deaths_of_images: Counter[int] = Counter()
        self._verdicts: dict[int, dict[int, ImageError]] = defaultdict(dict)
        self._careful: set[int] = set()
        self.given_up: list[int] = []

    def __len__(self) -> int:
        """How many shards wait for a worker."""
        return len(self._waiting)

    def take(self) -> Assignment | None:
        """The next shard; None where none waits."""
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        self._num_attempts += 1
        return Assignment(
            shard,
            verdicts=dict(self._verdicts.get(shard, {})),
            careful=shard in self._careful,
            attempt=self._num_attempts,
            again=self._again.get(shard, frozenset()),
        )

    def take_suspects(self) -> list[int]:
        """The shards that more than one worker had, each named once: two may have written them."""
        suspects = sorted(self._suspects - set(self.given_up))
        self._suspects.clear()
        return suspects

    def put_back(self, shard: int, *, anew: bool = False) -> None:
        """Its worker was left out, its machine is gone, or its parts do not fit: for no fault of the shard."""
        if anew:
            self._again.pop(shard, None)  # What stood of it is worth nothing.
        else:
            self._suspects.add(shard)
        self._waiting.append(shard)

    def put_back_after_death(self, shard: int, *, images_in_work: Sequence[int]) -> None:
        """Its worker died while these images were announced and not done."""
        self._careful.add(shard)
        self._suspects.add(shard)
        for image_id in images_in_work:
            self._deaths_of_images[image_id] += 1
            if self._deaths_of_images[image_id] >= DEATHS_PER_IMAGE:
                reason = f"{DEATHS_PER_IMAGE} workers died while they had it in work"
                self._verdicts[shard][image_id] = ImageError("worker_died", reason)
        if not images_in_work:
            self._unexplained_deaths[shard] += 1
        if self._unexplained_deaths[shard] > self._retries:
            logger.error("shard %d is given up: %d workers died with it", shard, self._unexplained_deaths[shard])
            self.given_up.append(shard)
        else:
            self._waiting.append(shard)

    def put_back_without(self, shard: int, *, image_id: int, verdict: ImageError) -> None:
        """Its worker was killed because of one image, which is an error from now on."""
        self._careful.add(shard)
        self._suspects.add(shard)
        self._verdicts[shard][image_id] = verdict
        self._waiting.append(shard)
