"""The migrations: up, down and up again, concurrent, blocked by locks, and from an installed wheel."""

import asyncio
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.errors import StartError
from app.store import schema
from app.store.access_tables import METADATA
from app.store.outbox import slot_of
from app.store.schema import BASE, HEAD, LOCK_KEY, REVISIONS, create_engine, initialize_schema, script_location
from tests.databases import new_database

ROOT = Path(__file__).parents[2]
TABLE = "registration_projections"
COUNTS = "registration_state_counts"
STATE, ACTIONS, OUTBOX = "workflow_state", "workflow_actions", "outbox"
WATERMARKS, DEAD_LETTERS = "watermarks", "dead_letters"
KEYS, KEY_REVISION, QUOTAS, AUDIT = "api_keys", "api_key_revision", "workflow_quotas", "audit_log"
SESSIONS = "sessions"
CHANGES, FLOOR = "changes", "changes_floor"
HELD, MESSAGES, RUNS = "held_entities", "held_messages", "dead_letter_runs"
SNAPSHOTS = "snapshot_topics"
TABLES = (
    *(TABLE, COUNTS, STATE, ACTIONS, OUTBOX, WATERMARKS, DEAD_LETTERS, KEYS, KEY_REVISION, QUOTAS, AUDIT),
    *(CHANGES, FLOOR, HELD, MESSAGES, RUNS, SESSIONS, SNAPSHOTS),
)
SLICES = tuple(f"{CHANGES}_{number:02}" for number in range(16))  # of the change log
LOCK_TIMEOUT = 5.0  # seconds, of the migrations

Catalog = dict[str, list[tuple[object, ...]]]

# What a schema is made of, as PostgreSQL says it.
CATALOG = {
    "columns": """
        SELECT relname, rank() OVER (PARTITION BY relname ORDER BY attnum), attname,
            format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
        FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid AND relkind IN ('r', 'p', 'v', 'm')
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped AND NOT relispartition
        ORDER BY relname, attnum""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid), convalidated
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
        ORDER BY 1, 2""",
    "indexes": """
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid, indisready
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE relnamespace = 'public'::regnamespace
        ORDER BY 1""",
    "types": """
        SELECT typname, typtype, (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum
                                  WHERE enumtypid = pg_type.oid)
        FROM pg_type WHERE typnamespace = 'public'::regnamespace
        ORDER BY 1""",
    "relations": """
        SELECT relname, relkind, reloptions
        FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1""",
    "functions": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    "triggers": """
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid), tgenabled
        FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2""",
}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A plain connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def catalog(url: str) -> Catalog:
    """Everything in the schema except Alembic's own table."""
    async with connected(url) as connection:
        return {
            part: [
                tuple(row)
                for row in await connection.fetch(statement)
                if not str(row[0]).lstrip("_").startswith("alembic_version")
            ]
            for part, statement in CATALOG.items()
        }


async def migrated(url: str, target: str = HEAD) -> tuple[str, str]:
    """Migrate with a new engine, as a process would."""
    engine = create_engine(url, pool_size=2)
    try:
        return await initialize_schema(engine, target)
    finally:
        await engine.dispose()


def environment(url: str, **changes: str) -> dict[str, str]:
    """The environment of a command on this database."""
    return {**os.environ, "PQS_DATABASE_URL": url, **changes}


async def run(*command: str, url: str, cwd: Path, **changes: str) -> tuple[int, str, str]:
    """Run Python with this database; returns exit status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=environment(url, **changes),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(), errors.decode()


# --- Up and down -----------------------------------------------------------------------------------------------


async def test_up_down_and_up_again(empty_database_url: str) -> None:
    """Migrating down leaves nothing behind, and migrating up leads to the same schema every time."""
    nothing = await catalog(empty_database_url)
    assert await migrated(empty_database_url) == (BASE, HEAD)
    first = await catalog(empty_database_url)
    assert first["columns"]
    assert await migrated(empty_database_url, BASE) == (HEAD, BASE)
    assert await catalog(empty_database_url) == nothing
    assert await migrated(empty_database_url) == (BASE, HEAD)
    assert await catalog(empty_database_url) == first


async def test_each_revision_leads_down_and_up(empty_database_url: str) -> None:
    """From each revision, one step down and up again restores the schema."""
    order = (BASE, *REVISIONS)
    for below, revision in zip(order, REVISIONS, strict=False):
        assert await migrated(empty_database_url, revision) == (below, revision)
        there = await catalog(empty_database_url)
        assert await migrated(empty_database_url, below) == (revision, below)
        assert await migrated(empty_database_url, revision) == (below, revision)
        assert await catalog(empty_database_url) == there


async def test_what_waits_is_sent_in_the_same_order_after_a_way_down(empty_database_url: str) -> None:
    """Down from 0006, each message of an entry becomes its own row, in order; up again keeps them."""
    await migrated(empty_database_url, "0006")
    async with connected(empty_database_url) as connection:
        await connection.execute("""
            INSERT INTO outbox (destination, slot, entity_id, domain, envelope, messages) VALUES
                ('topic:a', 1, gen_random_uuid(), 'd', E'{"first": 1}\n{"second": "\\\\n"}\n{}', 3),
                ('topic:a', 1, gen_random_uuid(), 'd', '{"third": 3}', 1),
                ('topic:b', 2, gen_random_uuid(), 'd', E'{"other": 1}\n{}', 2)
        """)
        await migrated(empty_database_url, "0005")
        lines = "SELECT destination, slot, envelope FROM outbox ORDER BY destination, slot, id"
        before = [tuple(row) for row in await connection.fetch(lines)]
        first = [("topic:a", 1, line) for line in ('{"first": 1}', '{"second": "\\n"}', "{}", '{"third": 3}')]
        assert before == [*first, ("topic:b", 2, '{"other": 1}'), ("topic:b", 2, "{}")]
        await migrated(empty_database_url, "0006")
        assert [tuple(row) for row in await connection.fetch(lines)] == before
        assert await connection.fetchval("SELECT sum(messages) FROM outbox") == len(before)


async def test_what_waits_is_in_fewer_slots_from_0007_on(empty_database_url: str) -> None:
    """Up to 0007, entries move to their entity's new slot; down, each message is a row with entity and domain."""
    ids = [UUID(int=number) for number in (9, 73, 10, 255)]  # the first two share a slot before and after
    await migrated(empty_database_url, "0006")
    async with connected(empty_database_url) as connection:
        for place, id_ in enumerate(ids):
            domain = '"domain":"edge",' if place == 0 else ""
            line = f'{{{domain}"n":{place},"partitionkey":"{id_}"}}'
            await connection.execute(
                """
                INSERT INTO outbox (destination, slot, entity_id, domain, envelope, messages)
                VALUES ('topic:a', $1, $2, 'x', $3, 2)
                """,
                id_.int % 64,
                id_,
                f"{line}\n{line}",
            )
        await migrated(empty_database_url, "0007")
        slots = [row[0] for row in await connection.fetch("SELECT slot FROM outbox ORDER BY id")]
        assert slots == [slot_of(id_) for id_ in ids]
        both = "SELECT string_agg(envelope, E'\n' ORDER BY id) FROM outbox WHERE slot = 1"
        together = await connection.fetchval(both)
        await connection.execute("DELETE FROM outbox WHERE slot = 1 AND id > (SELECT min(id) FROM outbox)")
        await connection.execute(
            "UPDATE outbox SET envelope = $1, messages = 4, intent_entity_id = NULL WHERE slot = 1", together
        )
        await migrated(empty_database_url, "0006")
        rows = await connection.fetch(
            "SELECT slot, entity_id, domain, envelope::jsonb ->> 'n' AS n, messages FROM outbox ORDER BY id"
        )
    assert [tuple(row) for row in rows] == [
        (id_.int % 64, id_, "edge" if place == 0 else "registration", str(place), 1)
        for place, id_ in enumerate(ids)
        for _ in range(2)
    ]


async def test_a_way_down_waits_for_who_is_writing(empty_database_url: str) -> None:
    """Entries written while a migration down from 0006 begins are split too, and come last."""
    await migrated(empty_database_url, "0006")
    one = """
        INSERT INTO outbox (destination, slot, entity_id, domain, envelope, messages)
        VALUES ('a', 1, gen_random_uuid(), 'd', $1, 2)
    """
    async with connected(empty_database_url) as connection:
        await connection.execute(one, "1\n2")
        async with connection.transaction():
            await connection.execute(one, "3\n4")
            down = asyncio.create_task(migrated(empty_database_url, "0005"))
            waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'outbox'::regclass)"
            async with connected(empty_database_url) as other, asyncio.timeout(30):
                while not await other.fetchval(waiting):  # noqa: ASYNC110 - what is waited for is in the database
                    await asyncio.sleep(0.01)
        await down
        lines = await connection.fetch("SELECT envelope FROM outbox ORDER BY id")
    assert [each["envelope"] for each in lines] == ["1", "2", "3", "4"]


async def test_the_models_lead_to_the_same_schema(database_url: str, empty_database_url: str) -> None:
    """SQLAlchemy's models and the migrations lead to the same schema, with checks and index predicates."""
    engine = create_engine(empty_database_url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
    finally:
        await engine.dispose()
    assert await catalog(empty_database_url) == await catalog(database_url)


async def test_every_index_is_valid(database_url: str) -> None:
    """Each table has its primary key and the indexes that its queries need, all valid."""
    indexes = (await catalog(database_url))["indexes"]
    names = [
        f"{TABLE}_{name}" for name in ("ack_due", "by_capability", "by_event", "by_state", "liveness_due", "pkey")
    ]
    assert [(name, *valid) for name, _, *valid in indexes] == [
        (name, True, True)
        for name in (
            f"{KEY_REVISION}_pkey",
            f"{KEYS}_pkey",
            f"{AUDIT}_pkey",
            *(f"{name}_{index}" for name in SLICES for index in ("entity_id_id_idx", "event_id_idx", "pkey")),
            f"{CHANGES}_by_entity",
            f"{CHANGES}_by_event",
            f"{FLOOR}_pkey",
            f"{RUNS}_by_end",
            f"{RUNS}_pkey",
            f"{RUNS}_unfinished",
            *(f"{DEAD_LETTERS}_{index}" for index in ("by_entity", "by_time", "by_topic", "pkey", "place")),
            f"{HELD}_by_letter",
            f"{HELD}_pkey",
            f"{MESSAGES}_by_entity",
            f"{MESSAGES}_pkey",
            f"{OUTBOX}_pkey",
            *names,
            f"{COUNTS}_pkey",
            f"{SESSIONS}_pkey",
            f"{SNAPSHOTS}_pkey",
            f"{WATERMARKS}_pkey",
            f"{ACTIONS}_by_age",
            f"{ACTIONS}_pkey",
            f"{QUOTAS}_pkey",
            f"{STATE}_by_change",
            f"{STATE}_by_key",
            f"{STATE}_pkey",
        )
    ]


async def test_the_page_about_storage_is_complete(database_url: str) -> None:
    """docs/reference/tables.md has a line for the columns of each table and for each index, and names every CHECK."""
    parts = await catalog(database_url)
    page = (ROOT / "docs" / "reference" / "tables.md").read_text()
    sections = dict(section.partition("\n")[::2] for section in page.split("\n## ")[1:])

    def lines(section: str) -> dict[str, list[str]]:
        cells = [line.split("|") for line in sections[section].splitlines() if line.startswith("| `")]
        return {name.strip().strip("`"): rest for _, name, *rest in cells}

    for table in TABLES:
        columns = {name: not required for of, _, name, _, required, _ in parts["columns"] if of == table}
        said = lines(f"The table `{table}`")
        assert {name: rest[1].strip() == "yes" for name, rest in said.items()} == columns
    assert {of for of, *_ in parts["columns"]} == set(TABLES)
    of_slices = {f"{name}_{index}" for name in SLICES for index in ("entity_id_id_idx", "event_id_idx", "pkey")}
    assert set(lines("The indexes")) == {name for name, *_ in parts["indexes"]} - of_slices
    for of, name, kind, *_ in parts["constraints"]:
        assert kind != b"c" or f"`{str(name).removeprefix(f'{of}_')}`" in page


def test_the_revisions_are_alembics() -> None:
    """REVISIONS lists Alembic's revisions, oldest first, without branches."""
    config = Config()
    config.set_main_option("script_location", str(script_location()))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS
    assert scripts.get_heads() == [HEAD]
    assert scripts.get_bases() == [REVISIONS[0]]


@pytest.mark.parametrize("target", [HEAD, BASE])
async def test_a_migration_can_be_repeated(empty_database_url: str, target: str) -> None:
    """A migration to the current revision changes nothing."""
    await migrated(empty_database_url)
    await migrated(empty_database_url, target)
    before = await catalog(empty_database_url)
    assert await migrated(empty_database_url, target) == (target, target)
    assert await catalog(empty_database_url) == before


async def test_an_empty_database_at_base_stays_empty(empty_database_url: str) -> None:
    """Migrating an empty database down to nothing creates nothing."""
    before = await catalog(empty_database_url)
    assert await migrated(empty_database_url, BASE) == (BASE, BASE)
    assert await catalog(empty_database_url) == before


async def test_an_unknown_target(empty_database_url: str) -> None:
    """An unknown revision is refused, and the message lists the known ones."""
    with pytest.raises(StartError, match=f"there is no revision 9999; known are base, {', '.join(REVISIONS)}"):
        await migrated(empty_database_url, "9999")


@pytest.mark.parametrize("target", [HEAD, BASE])
async def test_a_database_that_is_ahead(database_url: str, target: str) -> None:
    """A database of a later release is not changed, up or down."""
    async with connected(database_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'from_later'")
    before = await catalog(database_url)
    with pytest.raises(StartError, match="revision from_later, which this code does not know; nothing done"):
        await migrated(database_url, target)
    assert await catalog(database_url) == before


# --- What the revisions do with rows --------------------------------------------------------------------------------

ROW = f"""
    INSERT INTO {TABLE} (entity_id, domain, current_state, node_type, last_applied_event_id, last_applied_sequence,
                         registered_at, updated_at, version)
    VALUES (gen_random_uuid(), $1, $2, 'compute', gen_random_uuid(), 1, now(), now(), 1)
"""


async def counts(url: str) -> Counter[tuple[str, str]]:
    """The number of entities in each domain and state, by the counters."""
    async with connected(url) as connection:
        rows = await connection.fetch(f"SELECT domain, current_state, count FROM {COUNTS}")
    return Counter({(domain, state): count for domain, state, count in rows})


async def test_revision_0002_counts_the_rows_that_are_there(empty_database_url: str) -> None:
    """After migrating up, and again after down and up, each count is right and no row is lost."""
    await migrated(empty_database_url, "0001")
    sent = [("registration", "active")] * 5 + [("registration", "rejected")] + [("other", "active")] * 2
    async with connected(empty_database_url) as connection:
        await connection.executemany(ROW, sent)
        await migrated(empty_database_url, "0002")
        assert await counts(empty_database_url) == Counter(sent)
        await migrated(empty_database_url, "0001")
        await connection.execute(ROW, "other", "accepted")
        await migrated(empty_database_url, "0002")
        assert await counts(empty_database_url) == Counter([*sent, ("other", "accepted")])
        assert await connection.fetchval(f"SELECT count(*) FROM {TABLE}") == len(sent) + 1


async def test_revision_0002_waits_for_who_is_writing(empty_database_url: str) -> None:
    """A row that a transaction is writing when the count begins is counted."""
    await migrated(empty_database_url, "0001")
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(30), connected(empty_database_url) as writer, connected(empty_database_url) as other:
        async with writer.transaction():
            await writer.execute(ROW, "registration", "active")
            task = asyncio.create_task(migrated(empty_database_url, "0002"))
            while await other.fetchval(blocked) == 0:  # noqa: ASYNC110 - who waits is in the server
                await asyncio.sleep(0.01)
        await task
    assert await counts(empty_database_url) == {("registration", "active"): 1}


# --- Beside others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [2, 5])
async def test_migrations_at_once(empty_database_url: str, together: int) -> None:
    """Of several concurrent migrations one does the work, and the others find it done."""
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*(migrated(empty_database_url) for _ in range(together)))
    assert sorted(ended) == sorted([(BASE, HEAD)] + [(HEAD, HEAD)] * (together - 1))


async def test_migrations_at_once_from_processes(empty_database_url: str) -> None:
    """Concurrent migrations in separate processes also do the work once."""
    ended = await asyncio.gather(*(run("-m", "app", "migrate", url=empty_database_url, cwd=ROOT) for _ in range(3)))
    assert [status for status, _, _ in ended] == [0, 0, 0]
    assert sorted(output for _, output, _ in ended) == [
        f"the schema is already at {HEAD}\n",
        f"the schema is already at {HEAD}\n",
        f"the schema moved from base to {HEAD}\n",
    ]


async def test_a_migration_waits_for_another(empty_database_url: str) -> None:
    """A migration waits while another one runs, and then goes on by itself."""
    async with connected(empty_database_url) as other:
        await other.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        task = asyncio.create_task(migrated(empty_database_url))
        done, _ = await asyncio.wait({task}, timeout=3 * schema.LOCK_POLL)
        assert not done
        assert (await catalog(empty_database_url))["columns"] == []
        await other.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)
        async with asyncio.timeout(30):
            assert await task == (BASE, HEAD)


async def test_a_migration_that_is_cancelled_lets_others_in(empty_database_url: str) -> None:
    """A migration cancelled while it waits blocks no other migration."""
    async with connected(empty_database_url) as other:
        await other.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        task = asyncio.create_task(migrated(empty_database_url))
        await asyncio.wait({task}, timeout=2 * schema.LOCK_POLL)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(30):
        assert await migrated(empty_database_url) == (BASE, HEAD)


LOCKED = {
    DEAD_LETTERS: "0013",
    SNAPSHOTS: HEAD,
    TABLE: "0012",
    CHANGES: "0010",
    AUDIT: "0008",
    OUTBOX: "0007",
    WATERMARKS: "0012",
    STATE: "0014",
    COUNTS: "0002",
}  # each table that a migration down locks, and the revision that it gives up at


async def test_a_migration_gives_up_on_a_locked_table() -> None:
    """On a locked table a migration ends soon, with one plain line and its revision undone.

    The commands run concurrently, each on its own database, as they mostly wait.
    """
    async with AsyncExitStack() as databases:
        urls = {await databases.enter_async_context(new_database()): locked for locked in LOCKED}
        before = await catalog(next(iter(urls)))
        await asyncio.gather(*(_gives_up(url, locked) for url, locked in urls.items()))
        for url, locked in urls.items():
            assert TABLE in {name for name, *_ in (await catalog(url))["relations"]}
            assert await migrated(url) == (LOCKED[locked], HEAD)
            assert await catalog(url) == before
            async with connected(url) as other:
                assert await other.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY) is True


async def _gives_up(database_url: str, locked: str) -> None:
    """Run a migration down by the command while this table is locked."""
    async with connected(database_url) as other:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {locked} IN ACCESS SHARE MODE")
            loop = asyncio.get_running_loop()
            began = loop.time()
            status, output, errors = await run("-m", "app", "migrate", "--to", BASE, url=database_url, cwd=ROOT)
            assert loop.time() - began > LOCK_TIMEOUT
        assert (status, output) == (1, ""), locked
        assert errors.startswith("pqs: another session keeps a table locked"), locked
        assert errors.count("\n") == 1
        assert await other.fetchval("SELECT version_num FROM alembic_version") == LOCKED[locked]


async def test_a_failed_migration_frees_the_lock(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing revision is rolled back, its error is raised, and the next migration can begin."""

    def fail(*_: object) -> None:
        raise ArithmeticError("a broken revision")

    before = await catalog(database_url)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_run", fail)
        with pytest.raises(ArithmeticError):
            await migrated(database_url, BASE)
    assert await catalog(database_url) == before
    async with asyncio.timeout(30):
        assert await migrated(database_url, BASE) == (HEAD, BASE)


# --- Out of a wheel --------------------------------------------------------------------------------------------


async def test_the_wheel_carries_the_migrations(empty_database_url: str, tmp_path: Path) -> None:
    """A service installed from its wheel migrates a database without the checkout."""
    wheels, installed, elsewhere = tmp_path / "wheels", tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    built = await run(
        "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT), url="", cwd=tmp_path
    )
    assert built[0] == 0, built[2]
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if name.startswith("app/migrations/")}
        assert not [name for name in archive.namelist() if "__pycache__" in name]
    ours = [path.relative_to(ROOT / "alembic") for path in (ROOT / "alembic").rglob("*") if path.is_file()]
    assert carried == {f"app/migrations/{path}" for path in ours if "__pycache__" not in path.parts}

    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    done = await run(*pip, "--target", str(installed), str(wheel), url="", cwd=elsewhere)
    assert done[0] == 0, done[2]
    where = "import app.store.schema as schema; print(schema.script_location())"
    path = str(installed)
    assert (await run("-c", where, url=empty_database_url, cwd=elsewhere, PYTHONPATH=path))[1] == (
        f"{installed / 'app' / 'migrations'}\n"
    )
    migrated = await run("-m", "app", "migrate", url=empty_database_url, cwd=elsewhere, PYTHONPATH=path)
    assert migrated == (0, f"the schema moved from base to {HEAD}\n", "")
    assert TABLE in {row[0] for row in (await catalog(empty_database_url))["relations"]}
