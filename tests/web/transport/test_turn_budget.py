"""The requests of one turn of the event loop are few, so that a probe does not wait for all."""

import asyncio

from birthmark_sma.web.transport import request_task
from birthmark_sma.web.transport.request_task import TurnBudget

MOST = request_task._MOST_IN_A_TURN
BATCH_BYTES = request_task._BYTES_OF_ONE * MOST


async def enter(budget: TurnBudget, body_bytes: int = 0) -> None:
    """Begin a request, as the protocol does."""
    turn = budget.enter(body_bytes)
    if turn is not None:
        await turn


async def turns_of(sizes: list[int]) -> list[int]:
    """Return for each request, by the size of its body, in which turn it begins."""
    loop = asyncio.get_running_loop()
    budget = TurnBudget(loop)
    began: dict[int, int] = {}
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    async def request(number: int) -> None:
        await enter(budget, sizes[number])
        began[number] = turn

    loop.call_soon(count)
    await asyncio.gather(*(request(number) for number in range(len(sizes))))
    return [began[number] for number in range(len(sizes))]


def test_few_requests_begin_at_once() -> None:
    turns = asyncio.run(turns_of([0] * MOST))
    assert len(set(turns)) == 1


def test_many_requests_begin_in_their_order() -> None:
    turns = asyncio.run(turns_of([0] * 10 * MOST))
    assert turns == sorted(turns)
    assert max(map(turns.count, turns)) <= MOST


def test_a_batch_has_a_turn_of_its_own() -> None:
    turns = asyncio.run(turns_of([BATCH_BYTES] * 5))
    assert len(set(turns)) == 5


def test_a_caller_that_leaves_takes_no_turn() -> None:
    """Those behind it come in its place."""

    async def leave() -> bool:
        budget = TurnBudget(asyncio.get_running_loop())
        waiting = [asyncio.ensure_future(enter(budget, BATCH_BYTES)) for _ in range(4)]
        await asyncio.sleep(0)
        for each in waiting[1:3]:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return waiting[3].done() and not waiting[3].cancelled()

    assert asyncio.run(leave())


def test_a_new_turn_has_the_whole_budget() -> None:
    async def twice() -> bool:
        budget = TurnBudget(asyncio.get_running_loop())
        for _ in range(3):
            await asyncio.gather(*(enter(budget) for _ in range(MOST)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        entering = asyncio.ensure_future(enter(budget))
        await asyncio.sleep(0)
        return entering.done()

    assert asyncio.run(twice())
