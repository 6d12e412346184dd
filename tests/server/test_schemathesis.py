"""Calls made up from our OpenAPI document: whatever comes, no 5xx, and the server still answers."""
import json
import os
import urllib.request

import hypothesis
import schemathesis

CALLS = int(os.environ.get("MM01_API_CALLS", "500"))


def test_no_call_is_our_fault(server):
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operations = [o.ok() for o in schema.get_all_operations()]
    each = CALLS // len(operations) + 1
    counted = 0
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
                case.body["max_tokens"] = case.body.get("max_tokens", 2)
            response = case.call(timeout=60)
            assert response.status_code < 500, (case.as_curl_command(), response.text)

        call()
    assert counted >= CALLS * 0.9
    with urllib.request.urlopen(server.url + "/health") as health:
        assert json.load(health)["status"] == "ready"
