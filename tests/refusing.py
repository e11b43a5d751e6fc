"""Databases with an operator's own constraints, by which PostgreSQL refuses events that are valid elsewhere."""

import random

from tests.making import Json

REFUSE = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not this one''; END'"
WHEN = "FOR EACH ROW WHEN (NEW.capabilities ? 'poison') EXECUTE FUNCTION refuse()"

# What a database may have of its own, and the data of a `registration.initiated` that it does not take then.
POISON: dict[str, tuple[tuple[str, ...], Json]] = {
    "a constraint": (
        ("ALTER TABLE registration_projections ADD CHECK (node_type <> 'poison')",),
        {"node_type": "poison"},
    ),
    "a trigger": (
        (REFUSE, f"CREATE TRIGGER refuse BEFORE INSERT ON registration_projections {WHEN}"),
        {"node_type": "compute", "capabilities": {"poison": 1}},
    ),
    "a trigger at the commit": (
        (
            REFUSE,
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON registration_projections DEFERRABLE INITIALLY DEFERRED "
            + WHEN,
        ),
        {"node_type": "compute", "capabilities": {"poison": 1}},
    ),
    "an index that has its limit": (
        ("CREATE INDEX ON registration_projections ((capabilities ->> 'poison'))",),
        {"node_type": "compute", "capabilities": {"poison": random.Random(1).randbytes(5000).hex()}},
    ),
    "a column that is narrower": (
        ("ALTER TABLE registration_projections ALTER node_version TYPE varchar(16)",),
        {"node_type": "compute", "node_version": "v" * 17},
    ),
}
