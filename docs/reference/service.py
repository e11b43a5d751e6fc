"""The blocks about running the service: settings, commands, metrics."""

import re
from collections.abc import Iterator

import click

from app.cli import pqs
from app.concurrency.breaker import CircuitBreaker
from app.runtime.metrics import DatabaseNumbers, Metrics
from app.settings import PREFIX, Settings
from app.store.outbox import Backlog
from app.store.watermarks import Advance, Age
from docs.reference.markdown import code, paragraph, table

# The defaults that depend on the machine or on other settings.
COMPUTED = {"data_dir": "the user's data folder", "bus": "kafka where PQS_KAFKA is set, else off"}
FAMILY = re.compile(r"^# HELP (\S+) (.*)\n# TYPE \S+ (\S+)\n(?:\S+?\{(.*?)\} )?", re.MULTILINE)
LABEL = re.compile(r'(\w+)="')
BUCKET = "le"  # the label of a histogram's buckets


def settings() -> str:
    """Every setting, its default and its meaning."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        if field.default_factory is not None:
            default = COMPUTED[name]
        lines.append([f"`{PREFIX}{name.upper()}`", default, str(field.description)])
    return table(["variable", "default", "meaning"], lines)


def commands() -> str:
    """A section for each command, those in groups included: its help, and the options that it takes."""
    context = click.Context(pqs, info_name="pqs")
    parts = []
    for name, command in _with_parts(pqs, context, ""):
        usage = command.get_usage(click.Context(command, info_name=f"pqs {name}")).removeprefix("Usage: ")
        parts.append(f"## pqs {name}\n\n    {' '.join(usage.split())}\n\n{paragraph(command.help)}\n")
        own, taken = [], []
        for option in command.params:
            if isinstance(option, click.Option) and option.name in Settings.model_fields:
                taken.append(option.opts[0])
            elif isinstance(option, click.Option):
                own.append([f"`{option.opts[0]}`", option.help or ""])
        if own:
            parts.append("\n" + table(["option", "meaning"], own))
        if len(taken) == len(Settings.model_fields):
            parts.append("\nEvery [setting](settings.md) is an option.\n")
        elif taken:
            parts.append(f"\n[Settings](settings.md) as options: {code(taken)}.\n")
        parts.append("\n")
    return "".join(parts).removesuffix("\n")


def _with_parts(group: click.Group, context: click.Context, before: str) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group by their whole names, each group followed by its own commands."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None  # noqa: S101 - its name was listed
        yield before + name, command
        if isinstance(command, click.Group):
            yield from _with_parts(command, context, f"{before}{name} ")


def metrics() -> str:
    """Every metric, its kind and labels."""
    told = Metrics()
    told.request("GET", "/", 200, 0.001)
    told.event("invalid")
    batches, lane = told.batches("http"), told.lane("events")
    batches.batch([], [], 0.001)
    batches.retry("guard")
    lane.joined(1, 0.0)
    lane.refused()
    told.waiting("events", 0)
    told.done("primary", "statement", 0.001, None, "connection")
    told.timed_out("primary")
    told.pool("primary", 0, 0, 0)
    told.commit("committed")
    told.watch("primary", CircuitBreaker())
    told.swept("ack", 0, 0.0)
    told.relayed("topic", 0, 0)
    _consume(told)
    told.snapshots.published(0, 0, 0)
    told.process(0.0, 0, 0, 0)
    entities, overdue = [("registration", "active", 0)], [("ack", 0.0)]
    kept = DatabaseNumbers(
        [Backlog("topic", 0, 0.0)],
        [Age("topic", 0, 0.0)],
        0,
        entities,
        overdue=overdue,
        held_entities=0,
        unread=[("topic", 0)],
        ready=[("primary", True)],
    )
    lines = []
    for name, meaning, kind, labels in FAMILY.findall(told.text(kept).decode()):
        names = [label for label in LABEL.findall(labels) if label != BUCKET]
        lines.append([f"`{name}`", kind, code(names), meaning])
    return table(["metric", "kind", "labels", "meaning"], lines)


def _consume(told: Metrics) -> None:
    """Give each series of a consumer a sample."""
    consumer, partition = told.consumer, ("topic", 0)
    consumer.assigned({partition: 0})
    consumer.ends({partition: 1})
    consumer.written([Advance(topic="topic", partition=0, expected=0, offset=0, caught_up=0.0)])
    consumer.missing(partition, 0)
    consumer.foreign("tombstone")
    consumer.restart("kafka")
