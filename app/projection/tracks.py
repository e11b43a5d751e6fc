"""Moving the rows of a whole track: when a topic was renamed, given more partitions, or created again."""

from app.domain.positions import Position
from app.projection.changes import ChangeLog
from app.store import changes
from app.store.database import Connection, Database
from app.store.overdue import now
from app.store.registrations import REGISTRATIONS
from app.store.tracks import BEFORE_ALL_KEYS, RowKey, TrackMoves

_tracks = TrackMoves(REGISTRATIONS)


async def move_track(database: Database, log: ChangeLog, track: str, to: Position) -> int:
    """Move every row of a track (a partition, or `<topic>-*`), and return how many were moved.

    It is done some thousand rows at a time, each in a transaction with its changes. When it is interrupted, doing it
    again moves the others.
    """

    async def work(connection: Connection, after: RowKey) -> tuple[int, RowKey | None]:
        page = await _tracks.move(connection, track, to, after=after)
        at = await now(connection)
        logged = [each for before, row in page.rows for each in log.rebased(before, row, at)]
        if logged:
            await changes.add(connection, logged, log.slice_seconds)
        return len(page.rows), page.after

    number = 0
    after: RowKey | None = BEFORE_ALL_KEYS
    while after is not None:
        of_page, after = await database.write(work, after)
        number += of_page
    return number
