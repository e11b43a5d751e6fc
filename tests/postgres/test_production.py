"""The roles of docs/how-to/production.md, as they are shown there: with them the service works, and no more."""

import re
from pathlib import Path

from tests.making import NODE, life
from tests.postgres.servers import Postgres
from tests.processes import pqs, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "production.md"


def test_the_roles(postgres: Postgres, tmp_path: Path) -> None:
    """The owner migrates, the other role serves and lacks nothing, and may make no tables."""
    [statements] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    postgres.sql("CREATE DATABASE roles")
    postgres.sql(statements, "roles")
    assert pqs("migrate", database_url=postgres.url("roles", role="pqs_owner")).returncode == 0
    url = postgres.url("roles", role="pqs")
    with serving(tmp_path, database_url=url, database_read_url=url) as service, service.client() as client:
        assert client.get("/readyz").status_code == 200
        for event in life():
            assert client.post("/v1/events", json=event).status_code == 200
        assert client.get(f"/v1/entities/{NODE}").status_code == 200
        assert client.get("/v1/changes").status_code == 200
    assert pqs("verify", database_url=url).returncode == 0
    assert pqs("migrate", "--to", "base", database_url=url).returncode == 1
