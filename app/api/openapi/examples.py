"""The examples of the document: requests, and what a real service answered to them."""

import json
from functools import cache
from importlib.resources import files

from app.api.bodies import JSON, NDJSON
from app.api.openapi.operations import Json
from app.api.problems import MEDIA_TYPE
from app.domain.events import EVENT_TYPES
from app.wire.cloudevents import BATCH, STRUCTURED

CHOICES = {"ResultOrBatch": ("Result", "BatchAnswer")}  # the components that one stands for


@cache
def examples() -> dict[str, Json]:
    """Requests, and what a real service answered to them.

    `requests` holds an event of each type, an array, a CloudEvent and a lookup. `answers` are named for their schema;
    where an operation answers in another form, for the operation's id; and "<id> with <detail>" adds an example.
    `problems` are named for their status, or for an operation's id and a status.
    `tests/api/test_examples.py` sends every request again and compares the answers.
    """
    text = files("app.api").joinpath("examples.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def illustrate(operation: Json) -> None:
    """Put the examples into an operation."""
    id_ = operation["operationId"]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        _show(content, _requests(content, media))
    for status, response in operation["responses"].items():
        for media, content in response.get("content", {}).items():
            _show(content, _problems(id_, status) if media == MEDIA_TYPE else _answers(id_, content, media))


def _show(content: Json, shown: Json) -> None:
    content["examples"] = {name: {"summary": name, "value": value} for name, value in shown.items()}


def _requests(content: Json, media: str) -> Json:
    requests = examples()["requests"]
    if media == NDJSON:
        return {"lines": "".join(json.dumps(event) + "\n" for event in requests["array"])}
    if media == STRUCTURED:
        return {"CloudEvent": requests["CloudEvent"]}
    if media == BATCH:
        return {"batch": [requests["CloudEvent"]]}
    name = _name(content)
    if name == "EventOrEvents":
        return {each: requests[each] for each in (*EVENT_TYPES, "array")}
    return {name: requests[name]}


def _answers(id_: str, content: Json, media: str) -> Json:
    answers = examples()["answers"]
    own = f"{id_} {media}" if media != JSON else id_
    if own in answers:
        return {own: answers[own]}
    more = {name: answer for name, answer in answers.items() if name.startswith(f"{id_} with ")}
    names = CHOICES.get(_name(content), (_name(content),))
    return {**{name: answers[name] for name in names}, **more}


def _name(content: Json) -> str:
    """The name of the component that this content has."""
    return str(content["schema"]["$ref"].rpartition("/")[2])


def _problems(id_: str, status: str) -> Json:
    problems = examples()["problems"]
    own = {name: problem for name, problem in problems.items() if name.split(" ")[:2] == [id_, status]}
    return own if f"{id_} {status}" in own else {status: problems[status], **own}
