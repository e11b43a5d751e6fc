"""The meaning of each error status, in the words of the call that answers it."""

from http import HTTPStatus

from app.api.openapi.operations import Json

# Of single calls.
BY_CALL: dict[tuple[str, int], str] = {
    ("postEvents", 400): "The body is not JSON: the detail says where it breaks.",
    ("postEvents", 409): "The event is early, conflicts with its entity's row, or its entity is held: its messages "
    "wait behind a dead letter.",
    (
        "postEvents",
        422,
    ): "An event is not valid: `errors` says which one, and why. Nothing of an array is applied. After "
    "10,000 lines of faults a stream ends, and `committed_lines` says how many lines are stored.",
    (
        "postEvents",
        503,
    ): "The database does not answer, or has another schema. After a stream, `committed_lines` says "
    "how many lines are stored. Retry after the seconds in `Retry-After`.",
    ("followChanges", 400): "The token is damaged, or was used with other filters.",
    (
        "followChanges",
        410,
    ): "The changes after this token are not in the log any more. Begin anew: by `snapshot`, or at `oldest`.",
    (
        "getEntity",
        410,
    ): "The entity was forgotten, at `forgotten_at`; or the log of changes does not go back to "
    "`as_of`, lacks the changes of that time, or has no row there.",
    ("getEntityState", 410): "The entity was forgotten, at `forgotten_at`; or the log of changes does not go back to "
    "`as_of`, or lacks the changes of that time.",
    (
        "getEvent",
        404,
    ): "There is nothing of this event: it was never sent, or changed nothing, or changed no state and "
    "its row has gone on since, or its changes are older than `PQS_CHANGES_KEEP`.",
    ("followChanges", 501): "The change log is switched off.",
    ("forgetEntity", 404): "There is no such entity in this domain, and no `position` for a tombstone was given.",
    ("lookupEntities", 422): "The body is not a list of at most 1,000 ids: `errors` says what is wrong, and where.",
    ("commitWorkflow", 409): "The action was already applied, with another state.",
    ("commitWorkflow", 412): "The workflow is at another version than the headers ask for. The body has its current "
    "row.",
    ("commitWorkflow", 422): "The key, the state or its provenance is not valid: `errors` says what is wrong.",
    ("commitWorkflow", 428): "Neither `If-Match` nor `If-None-Match` was sent.",
    ("retryDeadLetter", 400): "The message is not JSON: the detail says where it breaks. It stays.",
    (
        "retryDeadLetter",
        409,
    ): "The event is early, conflicts with its entity's row, or its entity is held. The message stays.",
    ("deleteDeadLetter", 409): "Messages of its entity wait behind this dead letter: retry or skip it.",
    ("getHeldEntity", 404): "No messages wait behind a dead letter under this id.",
    ("retryHeldEntity", 404): "No messages wait behind a dead letter under this id.",
    ("retryHeldEntity", 409): "A message fails again: `detail` says which one, and why. Nothing was written.",
    ("skipHeldEntity", 404): "No messages wait behind a dead letter under this id.",
    ("getDeadLetterRun", 404): "There is no such dead letter run, or it finished more than seven days ago.",
    ("retryDeadLetters", 409): "100 bulk calls are not finished.",
    ("deleteDeadLetters", 409): "100 bulk calls are not finished.",
    ("retryDeadLetter", 422): "The id is not valid, or the message is not an event: `errors` says why. The message "
    "stays.",
    ("dropWatermark", 404): "This partition has no watermark.",
    ("dropWatermark", 409): "A consumer reads this partition.",
    ("getSnapshots", 404): "`PQS_TOPIC_SNAPSHOTS` is not set, or nobody has published to that topic yet.",
    ("republishSnapshots", 404): "`PQS_TOPIC_SNAPSHOTS` is not set.",
    ("getReadiness", 503): "The database does not answer, or has another schema.",
}
# Of all calls with these tags.
BY_TAG: dict[tuple[str, int], str] = {
    ("entities", 404): "There is no such entity in this domain.",
    ("workflows", 404): "There is no such workflow.",
    ("dead-letters", 404): "There is no such dead letter.",
    ("entities", 409): "The entity's row stands in a partition, and `min_sequence` waits for a sequence.",
    ("entities", 410): "The entity was forgotten, at `forgotten_at`.",
    ("entities", 412): "The entity's row has another version than `If-Match` names.",
    ("workflows", 412): "The workflow is at another version than `If-Match` names.",
}
BY_STATUS: dict[int, str] = {
    413: "The body is larger than `PQS_MAX_BODY` bytes.",
    501: "The change log is switched off.",
    415: "This call does not accept that content type, or that content coding.",
    504: "What the call demands at least has not come, within `wait` or at once.",
    503: "The database does not answer, or has another schema. Retry after the seconds in `Retry-After`.",
}


def explain(operation: Json) -> None:
    """Say at each error of an operation what the status means for this call."""
    for status, response in operation["responses"].items():
        if int(status) >= HTTPStatus.BAD_REQUEST:
            response["description"] = _meaning(operation, int(status)) or response["description"]


def _meaning(operation: Json, status: int) -> str | None:
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] in {"path", "query"}]
    if told := BY_CALL.get((operation["operationId"], status)) or BY_TAG.get((operation["tags"][0], status)):
        return told
    if status == HTTPStatus.BAD_REQUEST:
        if "requestBody" in operation:
            return "The body is not JSON: the detail says where it breaks."
        return "The cursor is damaged, or was used with other filters."
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        if not names:
            return "The call takes no query parameters: `errors` names those that were sent."
        return f"A parameter is not valid: `errors` says which one, and why. The call takes {_listed(names)}."
    return BY_STATUS.get(status)


def _listed(names: list[str]) -> str:
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} and {last}" if first else last
