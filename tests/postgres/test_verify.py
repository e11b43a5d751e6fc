"""`pqs verify` on a large table: it finishes whatever the time-out of statements, and shows progress."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import pqs as command
from app.cli import rows
from app.store import counts
from tests.postgres.servers import Postgres

MANY = 200_000
FILL = f"""
INSERT INTO registration_projections (entity_id, domain, node_type, current_state, capabilities, version,
    last_applied_event_id, last_applied_sequence, registered_at, updated_at)
SELECT gen_random_uuid(), 'registration', 'compute', 'active', '{{}}', 1, gen_random_uuid(), 1, now(), now()
FROM generate_series(1, {MANY})
"""


def test_a_large_table(postgres: Postgres, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Page by page, in one snapshot, past PQS_STATEMENT_TIMEOUT; the difference is found to the row."""
    postgres.sql(FILL, name)
    postgres.sql(f"INSERT INTO registration_state_counts VALUES ('registration', 'active', 0, {MANY - 1})", name)
    monkeypatch.setattr(counts, "PAGE_BLOCKS", 256)
    monkeypatch.setattr(rows, "SAY_EVERY", 0.0)
    environment = {"PQS_DATABASE_URL": postgres.url(name), "PQS_STATEMENT_TIMEOUT": "0.01"}
    done = CliRunner().invoke(command, ["verify"], env=environment)
    assert done.exit_code == 1
    assert f"domain registration, active: kept {MANY - 1:,}, counted {MANY:,}" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) > 5
    assert lines[-1] == f"counted {MANY:,} rows, 100% of the table"
