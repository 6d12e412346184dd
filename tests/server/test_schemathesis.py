"""Calls made up from our OpenAPI document: whatever comes, no 5xx, and the server still answers."""
import json
import os
import urllib.request

import hypothesis
import schemathesis

from conftest import measured

CALLS = int(os.environ.get("MM01_API_CALLS", "500"))


def test_no_call_is_our_fault(stress_server):
    server = stress_server()
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operations = [o.ok() for o in schema.get_all_operations()]
    each = CALLS // len(operations) + 1
    counted, statuses = 0, {}
    for operation in operations:
        @hypothesis.given(case=operation.as_strategy(
            generation_mode=schemathesis.GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
        @hypothesis.settings(max_examples=each, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))
        def call(case):
            nonlocal counted
            counted += 1
            if isinstance(case.body, dict):  # short answers: the calls are what is tested
                for name in ("max_tokens", "max_completion_tokens"):
                    asked = case.body.get(name, 2)
                    is_long = isinstance(asked, int) and not isinstance(asked, bool) and asked > 8
                    case.body[name] = 2 if is_long and asked <= 8192 else asked
            response = case.call(timeout=60)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code < 500, (case.as_curl_command(), response.text)

        call()
    assert counted >= CALLS * 0.9
    measured("api_calls", {"calls": counted, "answers": dict(sorted(statuses.items()))})
    with urllib.request.urlopen(server.url + "/health") as health:
        assert json.load(health)["status"] == "ready"
