"""New ids."""

from itertools import pairwise

from tocsin.ids import new_id, new_request_id


def test_ids_of_one_process_ascend() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert ids == sorted(set(ids))
    assert {id_.version for id_ in ids} == {7}


def test_ids_of_requests_do_not_count_the_requests() -> None:
    """A caller who sees two ids cannot compute how many requests of others came between them."""
    ids = [int(new_request_id(), 16) for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert min(abs(later - earlier) for earlier, later in pairwise(ids)) > 2**64
