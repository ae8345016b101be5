"""The memory that a worker is declared to need: guessed from its model, then what the last ones were seen to need.

Must not know which node has room for it.
"""

import math
from collections import deque

from jobs.cluster import measure_largest_node
from labeler import storage

_BESIDE_WEIGHTS_BYTES = 500 * 2**20
_MARGIN = 1.2
_NUM_PEAKS = 100
_USUAL_SHARE = 0.9  # Of the peaks: those above may be odd images'.


class WorkerMemory:
    """What the next worker asks for.

    Args:
        guess_bytes: what it is until one has been seen at work.
        cpus: of a worker: on a node with fewer there is none.

    Attributes:
        guess_bytes: that guess.
        bytes: what it is now.
    """

    def __init__(self, guess_bytes: int, *, cpus: int) -> None:
        self._cpus = cpus
        self.guess_bytes = self.bytes = self._least_bytes = guess_bytes
        self._peaks_bytes: deque[int] = deque(maxlen=_NUM_PEAKS)

    def learn_loaded(self, peak_bytes: int) -> None:
        """A worker needed so much to load its model: no other will need less."""
        self._least_bytes = max(self._least_bytes, self._add_margin(peak_bytes))
        self.bytes = max(self.bytes, self._least_bytes)

    def learn(self, peak_bytes: int) -> None:
        """A worker needed so much to label a shard: the next ones ask for what most of the last ones needed.

        Not for what the neediest did: one odd image would cost the run a part of its workers.
        """
        self._peaks_bytes.append(peak_bytes)
        usual_bytes = sorted(self._peaks_bytes)[math.ceil(_USUAL_SHARE * len(self._peaks_bytes)) - 1]
        self.bytes = max(self._least_bytes, self._add_margin(usual_bytes))

    def _add_margin(self, peak_bytes: int) -> int:
        """Some more than was needed, where a node has it."""
        wanted_bytes = int(peak_bytes * _MARGIN)
        return wanted_bytes if wanted_bytes <= self.bytes else min(wanted_bytes, measure_largest_node(cpus=self._cpus))


def estimate_worker_memory(output: str) -> int:
    """Bytes a worker of this run will need, guessed from its model's weights, until one has been seen at work.

    Measured on small models a worker takes half a GiB beside its weights; those are held twice while they are compiled,
    and again in f32 where they are stored in 16 bits.
    """
    files = storage.list_files(storage.join(output, "model"))
    weights_bytes = sum(file.size_bytes or 0 for file in files if file.path.endswith(".bin"))
    return _BESIDE_WEIGHTS_BYTES + 4 * weights_bytes
