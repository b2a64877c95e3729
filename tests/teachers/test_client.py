"""What a rank does about answers that don't come."""

import asyncio

import pytest
from ray.exceptions import ObjectFetchTimedOutError, ObjectLostError, OwnerDiedError

from raybrew.teachers.client import PoolClient
from raybrew.teachers.tickets import Ticket


@pytest.mark.parametrize("kind", [ObjectLostError, OwnerDiedError, ObjectFetchTimedOutError])
def test_an_answer_that_a_node_took_with_it_is_asked_for_again(kind):
    async def lost() -> None:
        raise kind("00" * 28, None, "")

    async def answer() -> object:
        client = PoolClient.__new__(PoolClient)  # its loop and its addresses aren't needed
        ticket = Ticket(1, replica=0, epoch=0, rows=None)  # type: ignore[arg-type]
        return await client._answer("a", ticket, lost())  # type: ignore[arg-type]

    # None: the request is handed out again.
    assert asyncio.run(answer()) is None
