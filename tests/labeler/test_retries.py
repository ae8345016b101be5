"""A store that does not answer is asked again; anything else is an answer."""

import time
from collections.abc import Iterator

import pytest

import labeler.retries
from labeler.errors import StorageError, StorageRefusedError
from labeler.retries import call_with_retries, retried, trying_once, use_retries


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(labeler.retries, "_FIRST_PAUSE_S", 0.001)
    yield
    use_retries(0)


class Store:
    """Fails so many times, then answers."""

    def __init__(self, error: Exception, *, times: int) -> None:
        self.error, self.times, self.num_calls = error, times, 0

    def ask(self) -> str:
        self.num_calls += 1
        if self.num_calls <= self.times:
            raise self.error
        return "answer"


def test_only_silence_is_tried_again() -> None:
    """As often as asked; a refusal, or a file that is not there, will be the same in a second."""
    use_retries(2)
    assert call_with_retries(Store(StorageError("503"), times=2).ask) == "answer"
    for error, num_calls in ((StorageError("503"), 3), (StorageRefusedError("expired"), 1), (FileNotFoundError(), 1)):
        store = Store(error, times=9)
        with pytest.raises(type(error)):
            call_with_retries(store.ask)
        assert store.num_calls == num_calls


def test_nobody_waits_who_did_not_ask_for_it() -> None:
    """A program that says nothing tries once, and so does one that says so for a while."""
    for patient, times in ((False, 1), (True, 1)):
        use_retries(2 if patient else 0)
        store = Store(StorageError("503"), times=times)
        with trying_once(), pytest.raises(StorageError):
            call_with_retries(store.ask)
        assert store.num_calls == 1


def test_tries_never_nest() -> None:
    """Three within three are three."""
    use_retries(2)
    store = Store(StorageError("503"), times=9)
    with pytest.raises(StorageError):
        call_with_retries(retried(retried(store.ask)))
    assert store.num_calls == 3


def test_pauses_grow_to_half_a_minute_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the two thousandth of an outage that lasts a day."""
    pauses: list[float] = []
    monkeypatch.setattr(labeler.retries, "_FIRST_PAUSE_S", 0.5)
    monkeypatch.setattr(labeler.retries, "_pause", pauses.append)
    use_retries(2000)
    assert call_with_retries(Store(StorageError("503"), times=2000).ask) == "answer"
    assert [0.25 * 2**n <= pauses[n] <= 0.5 * 2**n for n in range(6)] == [True] * 6
    assert all(15 <= pause <= 30 for pause in pauses[6:])


def test_a_pause_ends_when_the_job_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, however long it would have been."""
    monkeypatch.setattr(labeler.retries, "_FIRST_PAUSE_S", 30)
    begin = time.monotonic()
    use_retries(8, is_stopped=lambda: time.monotonic() > begin + 0.3)
    with pytest.raises(KeyboardInterrupt):
        call_with_retries(Store(StorageError("503"), times=9).ask)
    assert time.monotonic() - begin < 2
