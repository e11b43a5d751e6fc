"""The circuit breaker, on a clock that tests move."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta

import pytest

from app.concurrency.breaker import FAILURES, OPEN_FOR, PROBE_PENDING, CircuitBreaker
from app.errors import (
    ContentionError,
    DatabaseDownError,
    EffectDownError,
    InvalidInputError,
    NotFoundError,
    PoolExhaustedError,
    SchemaMismatchError,
    UnavailableError,
)

DOWN = DatabaseDownError("down")
# What the database answered with, or a caller did wrong: the database is up.
ANSWERS = [
    UnavailableError("the statement took too long"),
    SchemaMismatchError("no table"),
    ContentionError("others were faster"),
    InvalidInputError([]),
    NotFoundError("no such row"),
    ValueError("a bug"),
]


class Clock:
    """A monotonic clock, in seconds, that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock of the test's own."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """A closed breaker on that clock."""
    return CircuitBreaker(clock=clock)


async def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """A call that succeeds at once, or fails at once with `error`."""
    with suppress(BaseException if error is None else type(error)), breaker.guard():
        if error is not None:
            raise error


async def fail(breaker: CircuitBreaker, times: int) -> None:
    """Make this many calls fail in a row."""
    for _ in range(times):
        await call(breaker, DOWN)


async def refusal(breaker: CircuitBreaker) -> UnavailableError:
    """The error with which a call is refused."""
    with pytest.raises(UnavailableError) as refused, breaker.guard():
        pytest.fail("the call went through")
    assert not isinstance(refused.value, DatabaseDownError)
    return refused.value


async def goes_through(breaker: CircuitBreaker) -> bool:
    """Whether a call is let through; the call then succeeds."""
    through = False
    with suppress(UnavailableError), breaker.guard():
        through = True
    return through


@asynccontextmanager
async def open_call(breaker: CircuitBreaker) -> AsyncIterator[Callable[[BaseException | None], Awaitable[None]]]:
    """A call that has begun, and a function that ends it."""
    stack = AsyncExitStack()
    stack.enter_context(breaker.guard())

    async def end(error: BaseException | None) -> None:
        with suppress(BaseException):
            await stack.__aexit__(None if error is None else type(error), error, None)

    yield end


async def test_five_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    """Four failures in a row leave the breaker closed, and the fifth opens it."""
    opened = []
    for _ in range(5):
        await fail(breaker, 1)
        opened.append(breaker.is_open)
    assert opened == [False] * 4 + [True]


async def test_an_error_reaches_the_caller_as_it_is(breaker: CircuitBreaker) -> None:
    """The error of a failing call is raised unchanged."""
    with pytest.raises(DatabaseDownError) as raised, breaker.guard():
        raise DOWN
    assert raised.value is DOWN


@pytest.mark.parametrize("end", [None, *ANSWERS], ids=lambda end: type(end).__name__)
async def test_an_answer_ends_the_row(breaker: CircuitBreaker, end: Exception | None) -> None:
    """A success, a client's mistake or any error in the database's answer resets the count of failures."""
    await fail(breaker, FAILURES - 1)
    await call(breaker, end)
    await fail(breaker, FAILURES - 1)
    assert not breaker.is_open
    await fail(breaker, 1)
    assert breaker.is_open


@pytest.mark.parametrize("silent", [asyncio.CancelledError(), PoolExhaustedError("none is free")], ids=repr)
async def test_what_says_nothing_counts_for_nothing(breaker: CircuitBreaker, silent: BaseException) -> None:
    """A cancellation or a full pool neither counts as a failure nor resets the count."""
    for _ in range(2 * FAILURES):
        await call(breaker, silent)
    assert not breaker.is_open
    await fail(breaker, FAILURES - 1)
    await call(breaker, silent)
    assert not breaker.is_open
    await fail(breaker, 1)
    assert breaker.is_open


async def test_a_cancelled_task_is_no_failure(breaker: CircuitBreaker) -> None:
    """Tasks cancelled while they wait for the database do not open the breaker."""

    async def wait() -> None:
        with breaker.guard():
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(wait()) for _ in range(2 * FAILURES)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ended} == {asyncio.CancelledError}
    assert not breaker.is_open


@pytest.mark.parametrize("passed", [0.0, 0.5, 59.0, 59.999])
async def test_while_open_it_says_how_long_to_wait(breaker: CircuitBreaker, clock: Clock, passed: float) -> None:
    """An open breaker refuses at once, with the rest of the minute."""
    await fail(breaker, FAILURES)
    clock.now += passed
    error = await refusal(breaker)
    assert error.retry_after.total_seconds() == pytest.approx(60.0 - passed, abs=1e-5)
    assert timedelta(seconds=60) == OPEN_FOR


async def test_a_refused_call_changes_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    """Calls refused while the breaker is open do not postpone the probe."""
    await fail(breaker, FAILURES)
    clock.now += 59
    for _ in range(100):
        await refusal(breaker)
    clock.now += 1
    assert await goes_through(breaker)


async def test_exactly_one_of_twenty_probes(breaker: CircuitBreaker, clock: Clock) -> None:
    """Of twenty concurrent calls after the minute, one is let through; the others are refused for a moment."""
    await fail(breaker, FAILURES)
    clock.now += 60
    answered = asyncio.Event()
    inside = 0

    async def ask() -> None:
        nonlocal inside
        with breaker.guard():
            inside += 1
            await answered.wait()

    tasks = [asyncio.create_task(ask()) for _ in range(20)]
    done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 19:
        more, _ = await asyncio.wait(set(tasks) - done, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert more
        done |= more
    assert inside == 1
    refused = [task.exception() for task in done]
    assert {(type(error), getattr(error, "retry_after", None)) for error in refused} == {
        (UnavailableError, PROBE_PENDING)
    }
    assert breaker.is_open
    answered.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*(set(tasks) - done))
    assert not breaker.is_open


@pytest.mark.parametrize("end", [None, *ANSWERS], ids=lambda end: type(end).__name__)
async def test_a_probe_that_is_answered_closes_it(
    breaker: CircuitBreaker, clock: Clock, end: Exception | None
) -> None:
    """After a probe that the database answered, it takes five new failures to open the breaker."""
    await fail(breaker, FAILURES)
    clock.now += 60
    await call(breaker, end)
    assert not breaker.is_open
    await fail(breaker, FAILURES - 1)
    assert not breaker.is_open
    await fail(breaker, 1)
    assert breaker.is_open


async def test_a_probe_that_fails_opens_it_for_a_full_minute(breaker: CircuitBreaker, clock: Clock) -> None:
    """The minute after a failed probe begins at the probe's end, not at its start."""
    await fail(breaker, FAILURES)
    clock.now += 75
    async with open_call(breaker) as end:
        clock.now += 7
        await end(DOWN)
    assert (await refusal(breaker)).retry_after == OPEN_FOR
    clock.now += 59.5
    assert (await refusal(breaker)).retry_after == timedelta(seconds=0.5)
    clock.now += 0.5
    assert await goes_through(breaker)


@pytest.mark.parametrize("silent", [asyncio.CancelledError(), PoolExhaustedError("none is free")], ids=repr)
async def test_a_probe_that_says_nothing_frees_the_place(
    breaker: CircuitBreaker, clock: Clock, silent: BaseException
) -> None:
    """After a probe that was cancelled or got no connection, exactly the next call probes."""
    await fail(breaker, FAILURES)
    clock.now += 60
    await call(breaker, silent)
    assert breaker.is_open
    async with open_call(breaker) as end:
        assert (await refusal(breaker)).retry_after == PROBE_PENDING
        await end(None)
    assert not breaker.is_open


@pytest.mark.parametrize("end", [None, DOWN, NotFoundError("no such row"), asyncio.CancelledError()], ids=repr)
async def test_what_began_earlier_does_not_touch_an_open_breaker(
    breaker: CircuitBreaker, clock: Clock, end: BaseException | None
) -> None:
    """A call begun before the breaker opened neither closes it nor extends its minute."""
    async with open_call(breaker) as finish:
        await fail(breaker, FAILURES)
        clock.now += 30
        await finish(end)
    assert (await refusal(breaker)).retry_after == timedelta(seconds=30)


@pytest.mark.parametrize("end", [None, DOWN, asyncio.CancelledError()], ids=repr)
async def test_what_began_earlier_is_not_taken_for_the_probe(
    breaker: CircuitBreaker, clock: Clock, end: BaseException | None
) -> None:
    """A call begun before the breaker opened that ends during the probe does not decide for the probe."""
    async with open_call(breaker) as finish:
        await fail(breaker, FAILURES)
        clock.now += 60
        async with open_call(breaker) as finish_probe:
            await finish(end)
            assert (await refusal(breaker)).retry_after == PROBE_PENDING
            await finish_probe(DOWN)
    assert (await refusal(breaker)).retry_after == OPEN_FOR


async def test_failures_from_before_do_not_open_it_again(breaker: CircuitBreaker, clock: Clock) -> None:
    """Failures of calls begun before the breaker opened do not count after a probe has closed it."""
    async with AsyncExitStack() as stack:
        late = [await stack.enter_async_context(open_call(breaker)) for _ in range(FAILURES)]
        await fail(breaker, FAILURES)
        clock.now += 60
        assert await goes_through(breaker)
        for end in late:
            await end(DOWN)
    assert not breaker.is_open


async def test_successes_from_before_do_not_end_a_new_row(breaker: CircuitBreaker, clock: Clock) -> None:
    """The success of a call begun before the breaker opened does not reset the count after it closed."""
    async with open_call(breaker) as end:
        await fail(breaker, FAILURES)
        clock.now += 60
        assert await goes_through(breaker)
        await fail(breaker, FAILURES - 1)
        await end(None)
    await fail(breaker, 1)
    assert breaker.is_open


async def test_concurrent_failures_open_it_once(breaker: CircuitBreaker, clock: Clock) -> None:
    """Of twenty calls that fail together the fifth opens the breaker; the others do not extend its minute."""
    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(open_call(breaker)) for _ in range(20)]
        for end in ends:
            await end(DOWN)
            clock.now += 1
    assert (await refusal(breaker)).retry_after == timedelta(seconds=60 - 16)


async def test_a_breaker_may_be_for_something_else(clock: Clock) -> None:
    """A breaker counts only the configured error, and its refusal names the other side."""
    breaker = CircuitBreaker(clock=clock, what="Consul", down=EffectDownError)
    await fail(breaker, FAILURES)
    assert not breaker.is_open
    for _ in range(FAILURES):
        await call(breaker, EffectDownError("down"))
    assert str(await refusal(breaker)) == "Consul did not answer and is not called again yet"
