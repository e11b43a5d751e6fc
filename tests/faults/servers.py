"""The servers of a campaign: PostgreSQL, and the commands of `pqs` that use it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.launcher import Launcher
from tests.faults.programs import Program, Serving
from tests.postgres.servers import Postgres, servers_folder
from tests.processes import pqs

DATABASE, ROLE = "pqs", "service"
FAR = 86_400  # seconds: no deadline passes by itself
GRANTS = (
    f"CREATE ROLE {ROLE} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}; "
    f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}"
)


class Servers:
    """All servers of a campaign. `steady` is a service that no fault of the services' lane hits."""

    def __init__(self, folder: Path, postgres: Postgres, launcher: Launcher) -> None:
        self.folder, self.postgres = folder, postgres
        settings = {
            "database_url": postgres.url(DATABASE, role=ROLE),
            "changes": "all",
            "log_format": "json",
            "log_level": "warning",
            **dict.fromkeys(("ack_timeout", "liveness_interval", "liveness_window"), FAR),
        }
        self.steady = Serving(launcher, folder, "steady", settings=settings)
        self.service = Serving(launcher, folder, "service", settings=settings)
        self.services = [self.steady, self.service]

    @property
    def programs(self) -> list[Program]:
        """All commands."""
        return [*self.services]

    def owner_url(self) -> str:
        """The address of the database, for its owner."""
        return self.postgres.url(DATABASE)


@contextmanager
def running(folder: Path, module: str = "app") -> Iterator[Servers]:
    """All servers, at work; `module` is imported by all commands before they start."""
    with servers_folder() as data, Launcher(module) as launcher, ExitStack() as stack:
        postgres = Postgres.new(data)
        stack.callback(postgres.stop)
        postgres.sql(f"CREATE DATABASE {DATABASE}")
        migrated = pqs("migrate", database_url=postgres.url(DATABASE))
        assert migrated.returncode == 0, migrated.stderr
        postgres.sql(GRANTS, DATABASE)
        servers = Servers(folder, postgres, launcher)
        for program in servers.programs:
            stack.callback(program.stop)
            program.start()
        yield servers
