"""What schemathesis has to be told of this API, beyond the document."""

import atexit
import json
import os
import re

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    lines = value if isinstance(value, list) else [value]
    return "\n".join(json.dumps(line) for line in lines).encode()


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """What the service answers has no members but those of the document. Clients are told to expect more, so it does not say so itself."""
    global moment
    schemas = raw_schema["components"]["schemas"]
    moment = re.compile(schemas["Moment"]["pattern"])
    open_ones = {name for name in schemas if name.startswith("Report")}
    # It is a part of a story, which is closed as a whole.
    open_ones.add("Delivery")
    for name, schema in schemas.items():
        if name not in open_ones:
            close(schema)
    items = schemas["Deliveries"]["properties"]["deliveries"]["items"]
    items["unevaluatedProperties"] = False


def close(schema):
    if isinstance(schema, list):
        for part in schema:
            close(part)
    if not isinstance(schema, dict):
        return
    if "properties" in schema and isinstance(schema["properties"], dict) and "required" in schema:
        schema.setdefault("unevaluatedProperties", False)
    for part in schema.values():
        close(part)


@schemathesis.hook
def before_call(context, case, kwargs):
    """What a schema can't say: who decides has to be named where no token does, and things have to lie between two times, or connections."""
    body = case.body if isinstance(case.body, dict) else {}
    in_order(case.query or {})
    in_order(body.get("filter") or {})
    decides = case.method == "POST" and case.path in DECISIONS
    if decides and body and body.get("by") is None:
        body["by"] = "somebody"
    if "from" in body and body.get("from") == body.get("to") and isinstance(body["to"], str):
        body["to"] += "2"


DECISIONS = ["/v1/dead/requeue", "/v1/dead/discard", "/v1/deliveries/discard", "/v1/moves", "/v1/replays"]
moment = None


def in_order(filter):
    if not isinstance(filter, dict):
        return
    times = [filter.get("since"), filter.get("until")]
    if all(isinstance(time, str) and moment.match(time) for time in times):
        filter["since"], filter["until"] = "9999d", "0"


@schemathesis.hook
def after_call(context, case, response):
    """What was answered, for whoever wants to know that every route was seen to do what it is for."""
    ANSWERED.add(f"{case.method} {case.path} {response.status_code}")


@atexit.register
def write_answers():
    with open(os.environ["TIDINGS_ANSWERS"], "w") as file:
        file.write("\n".join(sorted(ANSWERED)))


ANSWERED = set()
