"""The settled horizon: the id up to which the change log has everything that it will ever have."""

from msgspec import Struct

MOST = 64  # sightings that are kept; while a transaction is held open for long there would be many

PREPARED = "-1/"  # how the name of a prepared transaction begins


class Sighting(Struct):
    """Ids up to `drawn` were drawn when these transactions, and no others, could have drawn them unseen."""

    drawn: int
    left: frozenset[str]


class Horizon:
    """Learns from sightings which ids are settled.

    Whoever draws an id holds a lock on the log from before that until others see what it wrote. So an id up to
    `drawn` belongs to a transaction whose end is visible, or to one of the `writers` that were seen after `drawn`
    was read. When none of these is left, all of it is visible: the ids are settled. Writers that come later draw
    higher ids, so neither they nor transactions that do not write to the log hold anything up.
    """

    def __init__(self) -> None:
        self.settled = 0
        self._sightings: list[Sighting] = []

    @property
    def waits(self) -> bool:
        """Whether ids were drawn that are not settled yet."""
        return bool(self._sightings)

    def observe(self, drawn: int, writers: frozenset[str]) -> bool:
        """Take in the highest drawn id and the writers seen after it; whether the horizon has moved.

        Raises LookupError when fewer ids were drawn than are settled: this database has another past.
        """
        if drawn < self.settled:
            raise LookupError(f"ids up to {self.settled} were settled, and now only {drawn} are drawn")
        before = self.settled
        waiting = []
        # Who prepares a two-phase commit goes on under another name: it may be any of those that were seen before.
        prepared = {writer for writer in writers if writer.startswith(PREPARED)}
        for sighting in self._sightings:
            sighting.left = sighting.left & writers | prepared
            if sighting.left:
                waiting.append(sighting)
            else:
                self.settled = max(self.settled, sighting.drawn)
        if not writers:
            self.settled, waiting = drawn, []
        elif drawn > self.settled:
            if len(waiting) == MOST:  # the new one says more than the newest, and takes longer to settle
                waiting.pop()
            waiting.append(Sighting(drawn, writers))
        self._sightings = [sighting for sighting in waiting if sighting.drawn > self.settled]
        return self.settled > before
