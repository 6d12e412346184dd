"""OpenAI's own client against the server."""
import json
import math

import openai
import pytest

HELLO = [{"role": "user", "content": "Tell me about the sea."}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city.",
    "parameters": {"type": "object", "required": ["city"], "additionalProperties": False,
                   "properties": {"city": {"type": "string", "maxLength": 12},
                                  "unit": {"enum": ["C", "F"]}}}}}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_lists_the_model(client):
    assert [m.id for m in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").id == "nano"


def test_chats(client):
    answer = client.chat.completions.create(model="nano", messages=HELLO, max_tokens=16, seed=1)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 16
    again = client.chat.completions.create(model="nano", messages=HELLO, max_tokens=16, seed=1)
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_what_was_read_is_not_read_again(client):
    book = "The sea was calm that night, and nobody spoke. " * 40
    question = lambda text: [{"role": "user", "content": [{"type": "text", "text": book},
                                                          {"type": "text", "text": text}]}]
    ask = lambda text: client.chat.completions.create(model="nano", messages=question(text),
                                                      max_tokens=2).usage
    assert ask("Who spoke?").prompt_tokens_details.cached_tokens == 0
    second = ask("Was it night?")
    assert second.prompt_tokens_details.cached_tokens > 0.8 * second.prompt_tokens


def test_streams_what_it_answers_whole(client):
    ask = dict(model="nano", messages=HELLO, max_tokens=24, seed=7)
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True, "include_progress": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert any(getattr(c, "progress", None) for c in chunks)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])


def test_choices_stop_and_completions(client):
    answer = client.completions.create(model="nano", prompt="The sea was", n=3, max_tokens=12,
                                       seed=3, stop=["."])
    assert len(answer.choices) == 3
    assert len({c.text for c in answer.choices}) > 1
    assert all("." not in c.text for c in answer.choices)
    assert client.completions.create(model="nano", prompt="a", max_tokens=4).usage.prompt_tokens == 1


def test_logprobs(client):
    answer = client.chat.completions.create(model="nano", messages=HELLO, max_tokens=8,
                                            temperature=0, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.logprob == max(t.logprob for t in entry.top_logprobs)
    echoed = client.completions.create(model="nano", prompt="The sea was calm that night",
                                       max_tokens=0, echo=True, logprobs=1)
    values = echoed.choices[0].logprobs.token_logprobs
    assert values[0] is None and all(v <= 0 for v in values[1:])
    assert echoed.choices[0].text == "The sea was calm that night"


def test_tools(client):
    ask = dict(model="nano", messages=HELLO, tools=[WEATHER], max_tokens=300, seed=5)
    answer = client.chat.completions.create(**ask, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert len(arguments["city"]) <= 12 and arguments.get("unit", "C") in "CF"

    deltas = [c.choices[0].delta.tool_calls[0] for c in client.chat.completions.create(
        **ask, tool_choice={"type": "function", "function": {"name": "get_weather"}}, stream=True)
        if c.choices and c.choices[0].delta.tool_calls]
    assert deltas[0].function.name == "get_weather"
    assert "".join(d.function.arguments or "" for d in deltas) == call.function.arguments

    goes_on = HELLO + [answer.choices[0].message,
                       {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(model="nano", messages=goes_on, max_tokens=4)
    assert after.usage.completion_tokens > 0


@pytest.mark.parametrize("seed", range(5))
def test_json_schema(client, seed):
    schema = {"type": "object", "required": ["title", "year"], "additionalProperties": False,
              "properties": {"title": {"type": "string", "maxLength": 20},
                             "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
                             "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}}}
    answer = client.chat.completions.create(
        model="nano", messages=HELLO, max_tokens=300, seed=seed,
        response_format={"type": "json_schema", "json_schema": {"name": "book", "schema": schema}})
    book = json.loads(answer.choices[0].message.content)
    assert 1900 <= book["year"] <= 2100 and len(book["title"]) <= 20
    assert set(book) <= {"title", "year", "tags"}


def test_errors_are_openais(client):
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="nano", prompt="a", temperature=3)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="nano", prompt=[9] * 9000)
    assert error.value.code == "context_length_exceeded"
    assert math.isfinite(len(client.models.list().data))
