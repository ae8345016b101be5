"""Who answers for a worker's death, and that nothing is tried forever."""

from jobs.ledger import DEATHS_PER_IMAGE, Assignment, ShardLedger
from labeler.errors import ImageError


def test_shards_are_handed_out_once_and_in_order() -> None:
    """Until none waits; one that comes back is handed out again."""
    ledger = ShardLedger([3, 5], retries=0)
    assert [ledger.take(), ledger.take(), ledger.take()] == [Assignment(3), Assignment(5), None]
    ledger.put_back(3)
    assert ledger.take() == Assignment(3)


def test_an_image_that_kills_its_workers_is_set_aside() -> None:
    """After the third death that names it; images that were only near are not. From the first on the shard goes carefully."""
    ledger = ShardLedger([0], retries=0)
    for death in range(DEATHS_PER_IMAGE):
        assignment = ledger.take()
        assert assignment is not None
        assert (assignment.careful, assignment.verdicts) == (death > 0, {})
        ledger.put_back_after_death(0, images_in_work=[7, 8] if death == 0 else [7])
    assignment = ledger.take()
    assert assignment is not None
    assert {number: error.kind for number, error in assignment.verdicts.items()} == {7: "worker_died"}
    assert ledger.given_up == []


def test_a_shard_whose_workers_die_without_an_image_is_given_up() -> None:
    """After its retries, and the others go on."""
    ledger = ShardLedger([0, 1], retries=2)
    for _try in range(3):
        assert len(ledger) == 2
        first = ledger.take()
        assert first is not None
        if first.shard == 1:
            ledger.put_back(1)
            first = ledger.take()
        ledger.put_back_after_death(0, images_in_work=[])
    assert ledger.given_up == [0]
    assert ledger.take() == Assignment(1)


def test_a_hung_image_is_an_error_at_once() -> None:
    """Killing its worker was our own doing: no three deaths."""
    ledger = ShardLedger([0], retries=0)
    ledger.take()
    verdict = ImageError("timeout", "too long")
    ledger.put_back_without(0, image_id=4, verdict=verdict)
    assert ledger.take() == Assignment(0, verdicts={4: verdict}, careful=True)
