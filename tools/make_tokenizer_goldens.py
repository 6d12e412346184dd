#!/usr/bin/env python3
"""Writes tests/goldens/tokenizer.jsonl: strings and their ids in models/nano, by the reference.

Needs `pip install tokenizers==0.22.2`. The result depends on nothing but this file,
models/nano/tokenizer.json and the versions of the library and of Python (3.11). Each line is
{"text", "ids"}, and "special": false where special tokens count as text.
"""

import json
import pathlib
import random
import unicodedata

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/goldens/tokenizer.jsonl"

PARTS = [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "'s", "'ll", "don't", "I'VE", "123",
    "4567", "0", "a",
    "Foo", "BAR", "fooBar", "_x", "//", "/*", "==", "...", "!?\n", "\u00a0", "\u3000",
    "\u2028", "\u0085",
    "\u180e", "\u200d", "\ufe0f", "e\u0301", "ß", "ſ", "K", "👨\u200d👩\u200d👧", "中文", "かな", "한글",
    "ไทย", "हिन्दी", "العربية", "שלום", "\x00", "\x7f", "½", "Ⅷ", "٣",
    "for (int i = 0; i < n; ++i) {\n",
    "def f(x):\n    return x", "The Iron Heel", " the", " of the",
]


def by_category(rng):
    """A few code points of each general category, each before and after others."""
    points = {}
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000:
            points.setdefault(unicodedata.category(chr(c)), []).append(chr(c))
    for category in sorted(points):
        for c in rng.sample(points[category], min(12, len(points[category]))):
            yield f"a{c} {c}{c}1{c}\n {c}'"


def by_block():
    """The first code point of each run of 256 that has one."""
    for c in range(0, 0x32000, 256):
        if not 0xD800 <= c < 0xE000:
            yield f"x{chr(c)}{chr(c + 65)} {chr(c + 97)}2"


def mixed(rng, special, count):
    for _ in range(count):
        yield "".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 12)))
    for _ in range(count):
        token = rng.choice(special)
        cut = rng.randrange(len(token) + 1)
        shape = rng.choice([token, token * 2, token[:cut], token[cut:], token[:cut] + token])
        yield rng.choice(PARTS) + shape + rng.choice(PARTS)
    for _ in range(count // 2):
        noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 24)))
        yield noise.decode("utf-8", "replace")
    for part in PARTS:
        for n in (2, 3, 7, 40):
            yield part * n + "z"


def main():
    rng = random.Random(1)
    tokenizer = Tokenizer.from_file(str(ROOT / "models/nano/tokenizer.json"))
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    texts = list(dict.fromkeys([*by_category(rng), *by_block(), *mixed(rng, special, 360)]))
    with OUT.open("w", encoding="utf-8", newline="\n") as out:
        print(json.dumps({"made_by": "tools/make_tokenizer_goldens.py"}), file=out)
        for text in texts:
            spelled = any(s in text for s in special)
            for parse in (True, False) if spelled else (True,):
                tokenizer.encode_special_tokens = not parse
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                line = {"text": text, "ids": ids} | ({} if parse else {"special": False})
                print(json.dumps(line, ensure_ascii=False, separators=(",", ":")), file=out)


if __name__ == "__main__":
    main()
