"""Load for a server that speaks OpenAI's API: many requests at once, of which some clients vanish.

usage: python tests/server/load.py URL [--streams N] [--seconds S] [--tokens N] [--vanish SHARE]
                                   [--key KEY]
prints one line of JSON: answers by status, times to the first token, times between two events.

Sockets are asyncio's and HTTP is written by hand: one core makes some 30,000 events a second.
"""
import argparse
import asyncio
import collections
import json
import random
import time
import urllib.parse

KEEP_FROM = 4096  # bytes before a new part in which a client that leaves looks for its moment, too


class Answer:
    """What came back: `status` is 0 where nothing did, `left` says that the client vanished; one
    that waited for a moment of the answer has the body up to there."""

    def __init__(self):
        self.status, self.headers, self.body, self.left = 0, {}, b"", False
        self.began = time.perf_counter()
        self.times = []  # seconds from the request to each read of the body
        self.first = None  # seconds to the first event of a choice: what stands before are comments
        self.seconds = 0.0

    def json(self):
        return json.loads(self.body)

    def events(self):
        return [json.loads(e[6:]) for e in self.body.split(b"\n\n") if e.startswith(b"data: {")]

    def text(self):
        """Of all choices, in order; a stream's and a whole answer's are the same."""
        answers = self.events() if self.body.startswith((b"data:", b":")) else [self.json()]
        texts = collections.defaultdict(str)
        for answer in answers:
            for choice in answer.get("choices", []):
                part = choice.get("delta") or choice.get("message") or choice
                texts[choice["index"]] += part.get("content") or part.get("text") or ""
                for call in part.get("tool_calls") or []:
                    texts[choice["index"]] += call["function"]["arguments"]
        return [texts[i] for i in sorted(texts)]

    def ended(self):
        """Whether the whole answer came: a stream's last words, or all that was promised."""
        if self.headers.get("transfer-encoding") == "chunked":
            return self.body.endswith(b"data: [DONE]\n\n") or b'data: {"error"' in self.body
        return self.status > 0 and len(self.body) == int(self.headers.get("content-length", 0))


def address(url):
    parts = urllib.parse.urlsplit(url)
    return parts.hostname, parts.port or 80


def request(method, path, body=None, headers=()):
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close",
             "Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def call(url, path, body=None, *, method=None, headers=(), leave=None, leave_after=None):
    """One request. The client vanishes when `leave(what came so far)` is true, or after that many
    seconds; it then resets the connection, as a process that was killed does."""
    answer = Answer()
    host, port = address(url)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request(method or ("POST" if body is not None else "GET"), path, body, headers))
        reading = read(reader, answer, leave)
        if leave_after is None:
            await reading
        else:
            await asyncio.wait_for(reading, leave_after)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    except asyncio.TimeoutError:
        answer.left = True
    finally:
        answer.seconds = time.perf_counter() - answer.began
        writer.transport.abort()
    return answer


async def read(reader, answer, leave):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(head[0].split(" ")[1])
    answer.headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head[1:] if h)}
    raw = bytearray()
    while part := await reader.read(1 << 16):
        answer.times.append(time.perf_counter() - answer.began)
        raw += part
        if answer.first is None and b'"choices":[{' in raw:
            answer.first = answer.times[-1]
        if leave and leave(bytes(raw[-len(part) - KEEP_FROM:])):
            answer.left = True
            break
    answer.body = unchunk(bytes(raw)) if "transfer-encoding" in answer.headers else bytes(raw)


def unchunk(raw):
    parts, at = [], 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:end], 16)
        parts.append(raw[end + 2:end + 2 + size])
        at = end + 4 + size
    return b"".join(parts)


async def metrics(url, headers=()):
    """Numbers of /metrics by name; labels are part of the name."""
    answer = await call(url, "/metrics", headers=headers)
    lines = (l.rsplit(" ", 1) for l in answer.body.decode().splitlines() if not l.startswith("#"))
    return {name.removeprefix("mm01_"): float(value) for name, value in lines}


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def gaps(answer):
    """Between reads, from the first event of a choice on: not the wait for a place."""
    times = [t for t in answer.times if answer.first is not None and t >= answer.first]
    return [b - a for a, b in zip(times, times[1:])]


def summary(answers):
    whole = [a for a in answers if a.status == 200 and a.ended()]
    between = [g for a in whole for g in gaps(a)]
    return {
        "status": dict(sorted(collections.Counter(str(a.status) for a in answers).items())),
        "vanished": sum(a.left for a in answers), "whole": len(whole),
        "first_s": {p: percentile([a.first for a in whole if a.first], p / 100)
                    for p in (50, 99)},
        "between_s": {p: percentile(between, p / 100) for p in (50, 99)}}


async def run(args):
    headers = [f"Authorization: Bearer {args.key}"] if args.key else []
    end = time.perf_counter() + args.seconds
    answers = []

    async def client(i):
        chance = random.Random(i)
        while time.perf_counter() < end:
            body = {"prompt": f"{i} {chance.random()} Once upon a time", "stream": True,
                    "max_tokens": args.tokens, "seed": i}
            leave = (lambda _: True) if chance.random() < args.vanish else None
            answers.append(await call(args.url, "/v1/completions", body, headers=headers,
                                      leave=leave))
            if answers[-1].status in (429, 503):
                await asyncio.sleep(float(answers[-1].headers.get("retry-after", 1)))

    await asyncio.gather(*(client(i) for i in range(args.streams)))
    print(json.dumps(summary(answers)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--vanish", type=float, default=0)
    parser.add_argument("--key")
    asyncio.run(run(parser.parse_args()))
