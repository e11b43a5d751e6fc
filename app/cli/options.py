"""Options of commands, made from the settings."""

import logging
from collections.abc import Callable
from typing import TypeVar

import click

from app.runtime import log
from app.settings import PREFIX, Settings, read_settings, secrets_in

logger = logging.getLogger(__name__)

CHANGES = ("changes", "changes_rows", "changes_keep")  # the settings of whoever writes rows

# The settings of every worker.
WORKER = (
    *CHANGES,
    "database_url",
    "database_url_file",
    "data_dir",
    "statement_timeout",
    "kafka",
    "kafka_security",
    "kafka_mechanism",
    "kafka_username",
    "kafka_password_file",
    "kafka_ca",
    "kafka_cert",
    "kafka_key",
    "kafka_options",
    "kafka_options_file",
    "bus",
    "topic_out",
    "source",
    "consul_url",
    "consul_token_file",
    "consul_ca",
    "consul_cert",
    "consul_key",
    "consul_namespace",
    "consul_datacenter",
    "consul_mark",
    "consul_address_from",
    "consul_ttl",
    "consul_remove_after",
    "consul_reconcile",
    "log_level",
    "log_format",
    "slow",
    "metrics_port",
    "metrics_host",
    "auth",
    "allowed_hosts",
)
# The settings of `pqs consume` beside those of every worker, its topics and its group.
CONSUMER_OPTIONS = ("tracks", "gaps", "foreign", "dead_letters", "consumer_id", "max_skew")
# The settings of a command that works on the database and ends.
DATABASE = ("database_url", "database_url_file", "data_dir", "log_level", "log_format")

F = TypeVar("F", bound=Callable[..., object])


def settings_options(*names: str) -> Callable[[F], F]:
    """Options for these settings, described and checked by Settings itself."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            field = Settings.model_fields[name]
            default = "" if field.default is None or field.default_factory else f" Default: {field.default}."
            command = click.option(
                f"--{name.replace('_', '-')}",
                name,
                metavar="VALUE",
                help=f"{field.description}{default} Also {PREFIX}{name.upper()}.",
            )(command)
        return command

    return decorate


def logged_settings(given: dict[str, str | None]) -> Settings:
    """The settings, with the log set up as they say. Raises StartError for one that is wrong."""
    settings = read_settings(given)
    context = click.get_current_context(silent=True)
    log.configure(settings.log_level, settings.log_format, role=context.info_name if context else None)
    warn_of_secrets(given)
    return settings


def warn_of_secrets(given: dict[str, str | None]) -> None:
    """Log a warning for each secret among the options of this command."""
    for line in secrets_in(given):
        logger.warning("%s", line)
