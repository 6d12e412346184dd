"""What a request may ask for, tried at and beyond each limit of our OpenAPI document; and keys.

Beyond a limit: 4xx within 50 ms, nothing reaches the engine, and the memory of the process grows by
less than 4 times the body. Without a key: 401 on every route and method but GET /health.
MM01_KEY_TRIES asks for more of the timing of keys (R11 wants 100,000).
"""
import asyncio
import json
import math
import os
import random
import time

import pytest

import load
from conftest import Server, measured, stress

pytestmark = stress

TRIES = int(os.environ.get("MM01_KEY_TRIES", "4000"))
KEY = "0123456789abcdef0123456789abcdef"
SECONDS, TIMES_BODY = 0.05, 4
PLAIN = {"/v1/completions": {"prompt": "a", "max_tokens": 1},
         "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}}
NEEDS = {"top_logprobs": {"logprobs": True}}  # fields that need another


@pytest.fixture(scope="module")
def server(tiny_dir):
    server = Server(tiny_dir, context=128)  # what may be asked for is soon done
    yield server
    assert server.stop() == 0


def document(url):
    return asyncio.run(load.call(url, "/openapi.json")).json()


def is_a(schema, kind):
    types = schema.get("type", [])
    return kind in ([types] if isinstance(types, str) else types)


def numeric_cases(name, schema):
    """Values of one field, and whether each may be."""
    whole = is_a(schema, "integer")
    low, high = schema["minimum"], schema["maximum"]
    step = 1 if whole else max(abs(low), abs(high)) * 1e-6
    values = {low - step, low, high, high + step, -1, 2**31, 2**63, -2**63 - 1, 2**64, 1e308}
    if whole:
        values |= {low + 0.5, 1e300}
    for value in sorted(values):
        fits = low <= value <= high and not (whole and isinstance(value, float))
        yield json.dumps(value), fits
    for text in ("NaN", "Infinity", "-Infinity", "1e999", '"1"', "true", "[]", "{}", "0x1", "1.",
                 "9" * 400):
        yield text, False


def numeric_fields(url):
    schemas = document(url)["components"]["schemas"]
    for path, name in (("/v1/completions", "CompletionRequest"),
                       ("/v1/chat/completions", "ChatRequest")):
        for field, schema in schemas[name]["properties"].items():
            if is_a(schema, "integer") or is_a(schema, "number"):
                yield path, field, schema


def ask(url, path, body, seconds=SECONDS):
    """The fastest of ten where one took long: other programs run here too."""
    best = math.inf
    for tries in range(1, 11):
        answer = asyncio.run(load.call(url, path, body.encode() if isinstance(body, str) else body))
        best = min(best, answer.seconds)
        if best < seconds:
            break
    return answer, best, tries


def test_every_number_has_its_limits(server):
    engine = lambda: asyncio.run(load.metrics(server.url))["requests_submitted_total"]
    tried, slowest = 0, 0
    for path, field, schema in numeric_fields(server.url):
        assert "minimum" in schema and "maximum" in schema, field
        for text, fits in numeric_cases(field, schema):
            body = json.dumps(PLAIN[path] | NEEDS.get(field, {}) | {field: "VALUE"})
            before = engine()
            answer, seconds, _ = ask(server.url, path, body.replace('"VALUE"', text))
            tried += 1
            where = (path, field, text, answer.status, answer.body)
            if fits:
                assert answer.status == 200, where
                continue
            assert 400 <= answer.status < 500 and "error" in answer.json(), where
            assert seconds < SECONDS, (where, seconds)
            assert engine() == before, where
            slowest = max(slowest, seconds)
    measured("limits_of_numbers", {"tried": tried, "slowest_refusal_ms": round(1000 * slowest, 1)})
    assert tried > 300


def hostile_bodies(size):
    """Bodies of about `size` bytes that must be refused, by name."""
    many = lambda head, part, tail: head + part * ((size - len(head) - len(tail)) // len(part)) + tail
    chat = '{"messages":[{"role":"user","content":"a"}],'
    names = ",".join(f'"a{i}":0' for i in range(size // 12))
    return {
        "too many ids": many('{"prompt":[1', ",1", "]}"),
        "empty lists": many('{"prompt":[[]', ",[]", "]}"),
        "empty objects": many('{"prompt":[{}', ",{}", "]}"),
        "nested lists": '{"prompt":' + "[" * (size // 2 - 10) + "]" * (size // 2 - 10) + "}",
        "many fields": "{" + names + "}",
        "a bias for every token": '{"prompt":"a","logit_bias":{' +
                                  ",".join(f'"{i}":1' for i in range(size // 12)) + "}}",
        "stops": many('{"prompt":"a","stop":["a"', ',"a"', "]}"),
        "a long stop": '{"prompt":"a","stop":"' + "a" * (size - 30) + '"}',
        "a long salt": '{"prompt":"a","cache_salt":"' + "a" * (size - 40) + '"}',
        "a long model": '{"prompt":"a","model":"' + "a" * (size - 40) + '"}',
        "a long text": '{"prompt":"' + "a " * (size // 2 - 10) + '"}',
        "messages": many(chat[:-2], ',{"role":"user"}', "]}"),
        "a long role": '{"messages":[{"role":"' + "a" * (size - 40) + '"}]}',
        "a large schema": chat + '"response_format":{"type":"json_schema","json_schema":{"name":"a",'
                          '"schema":{"enum":[' + ",".join(["1"] * (size // 2 - 100)) + "]}}}}",
        "a long message": '{"messages":[{"role":"user","content":"' + "a " * (size // 2 - 30) + '"}]}',
        "cut off": '{"prompt":"' + "a" * (size - 20),
        "no JSON": "\x7f" * (size - 10),
    }


@pytest.fixture
def fresh(tiny_dir):  # has no memory left over from other bodies
    server = Server(tiny_dir, context=128)
    yield server
    assert server.stop() == 0


@pytest.mark.parametrize("name", hostile_bodies(1000))
def test_a_hostile_body_costs_little(fresh, name):
    server = fresh
    body = hostile_bodies(1_990_000)[name]
    path = "/v1/chat/completions" if '"messages"' in body[:30] else "/v1/completions"
    ask(server.url, path, hostile_bodies(1000)[name])
    submitted = asyncio.run(load.metrics(server.url))["requests_submitted_total"]
    resident = server.resident_mib()
    server.forget_peak()
    before = server.cpu_ms()
    answer, seconds, tries = ask(server.url, path, body)
    cpu = (server.cpu_ms() - before) / tries
    grown = server.resident_mib("VmHWM") - resident
    measured(f"hostile_body: {name}", {
        "bytes": len(body), "status": answer.status, "ms": round(1000 * seconds),
        "cpu_ms": round(cpu, 1),
        "grown_mib": round(grown, 1), "times_the_body": round(grown * 2**20 / len(body), 1)})
    assert 400 <= answer.status < 500, answer.body[:300]
    assert seconds < SECONDS
    assert asyncio.run(load.metrics(server.url))["requests_submitted_total"] == submitted
    assert grown * 2**20 < TIMES_BODY * len(body)


@pytest.mark.parametrize("what, status", [("head", 431), ("length", 413), ("chunks", 413)])
def test_sizes_are_limited_before_they_are_read(server, what, status):
    headers = {"head": ["X: " + "a" * (16 << 10)], "length": [], "chunks": []}[what]
    body = b"a" * 2_100_000 if what == "length" else b""
    if what == "chunks":
        async def chunked():
            reader, writer = await asyncio.open_connection(*load.address(server.url))
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                         b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            try:
                for _ in range(64):
                    writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
                    await writer.drain()
            except ConnectionError:
                pass
            answer = load.Answer()
            await load.read(reader, answer, None)
            return answer
        answer = asyncio.run(chunked())
    else:
        answer = asyncio.run(load.call(server.url, "/v1/completions", body, headers=headers))
    assert answer.status == status


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get",
           "PROPFIND", "M-SEARCH")


@pytest.fixture(scope="module")
def locked(tiny_dir, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    server = Server(tiny_dir, "--api-keys", str(keys))
    yield server
    assert server.stop() == 0


def test_every_route_and_method_wants_a_key(locked):
    right = [f"Authorization: Bearer {KEY}"]
    paths = list(asyncio.run(load.call(locked.url, "/openapi.json", headers=right)).json()["paths"])
    paths += ["/", "/page.css", "/page.js", "/markdown.js", "/icon.svg", "/openapi.json", "/absent",
              "/health/", "/health?a", "//health", "/HEALTH", "/v1", "/metrics/", "/v1/models/../health"]
    wrong = ([], ["Authorization: Bearer "], [f"Authorization: Bearer {KEY[:-1]}"],
             [f"Authorization: Bearer {KEY}0"], [f"Authorization: {KEY}"],
             [f"Authorization: Bearer {KEY}", f"Authorization: Bearer x"][::-1],
             [f"X-Api-Key: {KEY}"], ["Authorization: Basic Og=="])
    walked = 0
    for path in paths:
        for method in METHODS:
            is_open = path in ("/health", "/health?a") and method in ("GET", "HEAD")
            for headers in wrong:
                status = asyncio.run(load.call(locked.url, path, method=method,
                                               headers=headers)).status
                assert status == (200 if is_open else 401), (path, method, headers, status)
                walked += 1
            if not is_open:
                status = asyncio.run(load.call(locked.url, path, method=method, headers=right)).status
                assert status != 401, (path, method)
    measured("keys", {"walked": walked})


async def time_keys(url):
    """Seconds for a key that is right but for its end, and one that is wrong from its beginning."""
    reader, writer = await asyncio.open_connection(*load.address(url))
    asks = [b"GET /ready HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + k.encode() +
            b"\r\n\r\n" for k in (KEY[:-1] + "X", "X" + KEY[1:])]
    times, chance = ([], []), random.Random(11)
    for _ in range(TRIES):
        which = chance.randrange(2)
        began = time.perf_counter()
        writer.write(asks[which])
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 401 " in head
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
        times[which].append(time.perf_counter() - began)
    writer.transport.abort()
    return times


def test_the_time_says_nothing_about_a_key(locked):
    times = asyncio.run(time_keys(locked.url))
    # Without the slowest hundredth: what the system did meanwhile.
    kept = [sorted(t)[:int(len(t) * 0.99)] for t in times]
    means = [sum(t) / len(t) for t in kept]
    errors = [math.sqrt(sum((x - m) ** 2 for x in t)) / len(t) for t, m in zip(kept, means)]
    apart = abs(means[0] - means[1]) / math.hypot(*errors)
    measured("key_timing", {"tries": TRIES, "mean_us": [round(1e6 * m, 2) for m in means],
                            "standard_errors_apart": round(apart, 2)})
    assert apart < 4 if TRIES < 100_000 else apart < 3
