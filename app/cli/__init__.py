"""The `pqs` command. The module of a command is imported when it is used: help and completion need click only."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


INTERRUPTED = 130  # the exit status after Ctrl-C: 128 and the number of SIGINT


class Listing(NamedTuple):
    """The module of a command, its line in `pqs --help` (the first sentence of its own help), and its name there."""

    module: str
    summary: str
    attribute: str | None = None  # where it is not the command's name


ASKING = {
    "counts": Listing("entities", "Print the number of entities in each state."),
    "dead-letters": Listing(
        "dead_letters", "List, show, retry and delete messages that could not be applied or sent."
    ),
    "domains": Listing("entities", "List the domains, with their numbers of entities in each state."),
    "forget": Listing(
        "acts", "Forget an entity: nothing of it is told from then on, and late events do not bring it back."
    ),
    "get": Listing("entities", "Print an entity: its state, deadlines and position."),
    "history": Listing("entities", "Print the changes of an entity, oldest first."),
    "list": Listing("entities", "List the entities that match all filters, by id.", "list_entities"),
    "load": Listing("load", "Send a file of events, one JSON object a line, to the service; - is standard input."),
    "overdue": Listing("overdue", "List the nodes that missed a deadline, longest overdue first."),
    "status": Listing(
        "status",
        "Print a service at a glance: whether it is ready, entities, overdue nodes, dead letters, partitions.",
    ),
    "top": Listing("top", "Show a service on the screen as it works, until Ctrl-C."),
    "wait": Listing("entities", "Wait until an entity meets all the conditions, and print it."),
    "watch": Listing("changes", "Print the changes of entities as they happen, until stopped."),
    "watermarks": Listing(
        "watermarks",
        "List the progress in each partition of Kafka: everything up to the offset is applied or a dead letter.",
    ),
    "workflows": Listing("workflows", "List, get and put the state of workflows."),
}
RUNNING = {
    "audit": Listing("keys", "Print the audit log, newest entries first."),
    "completion": Listing("completion", "Print the completion of this command for a shell."),
    "consume": Listing("workers", "Read events from Kafka, until stopped."),
    "db-url": Listing("show", 'Print the address of the database, for psql: psql "$(pqs db-url)".'),
    "intents": Listing("show", "Print which handler carries out each intent, and what the handler needs."),
    "keys": Listing("keys", "Create, list, rotate and revoke keys."),
    "migrate": Listing("migrate", "Bring the database's schema to the revision that this release expects."),
    "openapi": Listing("show", "Print the OpenAPI document."),
    "rebase": Listing(
        "rows",
        "Move an entity, or all entities of a track, to another track: only their positions and versions change.",
    ),
    "relay": Listing("workers", "Send the messages in the outbox to the bus and to Consul, until stopped."),
    "serve": Listing("serve", "Answer requests."),
    "snapshots": Listing("workers", "Publish the whole row of each entity that changes to a compacted topic."),
    "sweep": Listing("workers", "Turn passed deadlines into events, until stopped."),
    "verify": Listing("rows", "Compare the state counts with a full count, and print the differences."),
}
COMMANDS = ASKING | RUNNING


class Commands(click.Group):
    """The commands by name. After an error of this project, `pqs` prints one line to standard error; status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now, or None."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(
            import_module(f"app.cli.{entry.module}"), entry.attribute or cmd_name.replace("-", "_")
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries without importing the commands, as click would."""
        for title, entries in (("Ask a service", ASKING), ("Run a service", RUNNING)):
            with formatter.section(title):
                formatter.write_dl([(name, entry.summary) for name, entry in entries.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """The names that begin with `incomplete`. Commands complete their own options."""
        item: type[CompletionItem] = import_module("click.shell_completion").CompletionItem
        found = [item(name, help=entry.summary) for name, entry in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        errors = import_module("app.errors")  # not above: it would double the time of `pqs --help`
        try:
            return super().invoke(ctx)
        except errors.PqsError as error:
            import_module("app.runtime.log").fail(error)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="projection-query-service", prog_name="pqs")
def pqs() -> None:
    """Projection Query Service: keeps the state of each node's registration, from events, and answers over REST.

    Every setting of the service is an option and an environment variable: --data-dir is PQS_DATA_DIR. The commands
    that ask a service find it by --url or PQS_URL, and send the key in --token-file, PQS_TOKEN_FILE or PQS_TOKEN.
    """


if "_PQS_COMPLETE" in os.environ:  # a shell asks for completions
    import_module("app.cli.completion").install()
