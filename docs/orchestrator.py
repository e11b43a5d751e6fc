"""Escalates nodes that do not acknowledge in time, each step once, however many of these run: see client.md."""

import asyncio
import sys
from functools import partial

from app.client import Client, State

STEPS = [(0, "remind"), (60, "tell an operator"), (600, "give up")]  # from so many seconds overdue on


def mark(step: str, deadline: str, state: State) -> State | None:
    """The workflow's state with this step done for this deadline, or None: it was done already."""
    return None if state.get(step) == deadline else {**state, step: deadline}


async def main(url: str) -> None:
    async with Client(url) as client:
        while True:
            async for page in client.overdue.ack():
                for node in page.items:
                    step = [name for seconds, name in STEPS if node.overdue_seconds >= seconds][-1]
                    done = partial(mark, step, str(node.ack_deadline))
                    if await client.workflows.update(f"ack/{node.entity_id}", done, initial={}):
                        print(step, node.entity_id, flush=True)  # this commit was ours, so the step is
            await asyncio.sleep(5)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
