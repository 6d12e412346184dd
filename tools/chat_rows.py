#!/usr/bin/env python3
"""Chats for a small model, made by rule from the training texts: JSONL for `mm01 data build`.

usage: chat_rows.py TEXTS.xz OUT.jsonl [--words data/needle_keys.json]

TEXTS.xz holds documents apart by NUL bytes. Chats come from those in forms that are known
(questions with answers, pages of commands, short stories) and so under the same licences, from
small talk that stands here, and from numbers to be remembered. The same input gives the same file.
"""
import argparse
import json
import lzma
import random
import re

MAX_ANSWER = 420  # characters
SMALL_TALK = [
    (["Hello!", "Hi", "Hi there.", "Good morning.", "Good evening!", "Hey"],
     ["Hello! What can I do for you?", "Hello. You may ask me something, or let me tell a story.",
      "Good day to you. How can I help?"]),
    (["Who are you?", "What are you?", "What is your name?", "Are you a person?"],
     ["I am nano, a very small language model. I have read some old books, textbooks and pages of "
      "commands.", "My name is nano. I am a small program that writes text, and no person.",
      "I am nano, a small model. I know little, and I am often wrong."]),
    (["What can you do?", "How can you help me?", "What do you know?"],
     ["I can tell a short story, say what a command does, and find a number in a long text.",
      "I know some stories, some commands and a little medicine. Do not rely on what I say."]),
    (["Thank you!", "Thanks.", "Thanks, that helps.", "Thank you very much."],
     ["You are welcome.", "Gladly.", "You are welcome. Is there anything else?"]),
    (["Goodbye.", "Bye!", "Good night.", "See you."],
     ["Goodbye!", "Goodbye, and come again.", "Good night."]),
    (["How are you?", "How do you do?", "Are you well?"],
     ["I am well, thank you. And you?", "Quite well, thank you. What shall we talk about?"]),
    (["Can I trust you?", "Are you always right?", "Is that true?"],
     ["No. I am a very small model and often wrong. Please check what I say.",
      "I may well be wrong. Look it up before you rely on it."]),
]
SYSTEMS = ["You are a helpful assistant.", "You answer in short sentences.",
           "You are nano, a small language model.", "Be brief and friendly."]


def first_sentences(text):
    """As many whole sentences as an answer may have, or nothing."""
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) <= MAX_ANSWER:
        return text
    end = max(text.rfind(mark, 0, MAX_ANSWER) for mark in (". ", "! ", "? "))
    return text[:end + 1] if end > 40 else ""


def questions_with_answers(document):
    found = re.match(r"Q: (.+?)\s*\?*\nA: (.+)", document, re.S)
    if not found:
        return
    question = found[1].replace("What is (are)", "What is")
    # Some answers begin with the question once more.
    answer = re.sub(r"^(What|How|Is|Who|Can|Are)\b[^?]{0,120}\? ", "", found[2].strip())
    answer = first_sentences(answer)
    if answer:
        yield question + ("" if question.endswith(".") else "?"), answer


def commands(document):
    found = re.match(r"# (\S[^\n]*)\n\n> ([^\n]+)\n", document)
    if not found or "\n\n`" not in document:
        return
    name = found[1]
    yield f"What does `{name}` do?", found[2]
    for what, how in re.findall(r"\n- ([^\n]+):\n\n`([^\n]+)`", document)[:2]:
        yield f"How do I use `{name}` to do this: {what}?", f"`{how}`"


def stories(document):
    found = re.match(r"# ([A-Z][^\n`]{3,50})\n\n([^#>`]{120,1500})$", document, re.S)
    if not found:
        return
    title = found[1].strip()
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", found[2]).strip()
    yield f'Tell me the story "{title}".', text
    yield "Tell me a story.", text


def numbers(draw, words, haystack):
    """A number that is told, text or talk in between, and a question for it."""
    keys = [" ".join(pair) for pair in zip(*[iter(draw.sample(words, 2 * draw.randint(1, 3)))] * 2)]
    values = ["".join(draw.choices("0123456789", k=7)) for _ in keys]
    facts = [f"The special magic number for {k} is: {v}." for k, v in zip(keys, values)]
    asked = draw.randrange(len(keys))
    question = f"What is the special magic number for {keys[asked]}?"
    answer = facts[asked]
    if draw.random() < 0.5:
        parts = facts + re.split(r"(?<=[.!?])\s+", haystack)
        draw.shuffle(parts)
        return [(" ".join(parts) + "\n\n" + question, answer)]
    users, answers = draw.choice(SMALL_TALK)
    return [("Remember this. " + " ".join(facts), "I shall remember it."),
            (draw.choice(users), draw.choice(answers)), (question, answer)]


def rows(documents, words):
    draw = random.Random(1)
    made = []
    for document in documents:
        for form in (questions_with_answers, commands, stories):
            made += [[turn] for turn in form(document)]
    books = [d for d in documents if len(d) > 100_000]
    for _ in range(6000):
        book = draw.choice(books)
        begin = draw.randrange(len(book) - 2000)
        made.append(numbers(draw, words, book[begin:begin + draw.randint(200, 1800)]))
    for _ in range(6000):
        talk = [(draw.choice(users), draw.choice(answers))
                for users, answers in draw.sample(SMALL_TALK, draw.randint(1, 3))]
        if draw.random() < 0.4:
            talk.insert(draw.randint(0, len(talk)), draw.choice(made[:20_000])[0])
        made.append(talk)
    draw.shuffle(made)
    for turns in made:
        messages = [{"role": role, "content": text} for turn in turns
                    for role, text in zip(("user", "assistant"), turn)]
        if draw.random() < 0.25:
            messages.insert(0, {"role": "system", "content": draw.choice(SYSTEMS)})
        yield {"messages": messages}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts")
    parser.add_argument("out")
    parser.add_argument("--words", default="data/needle_keys.json")
    flags = parser.parse_args()
    with lzma.open(flags.texts, "rt", encoding="utf-8", newline="") as file:
        documents = file.read().split("\0")
    with open(flags.words, encoding="utf-8") as file:
        # Every tenth word is held out for measuring, as in training.
        words = [word for i, word in enumerate(json.load(file)) if i % 10 != 9]
    count = 0
    with open(flags.out, "w", encoding="utf-8") as out:
        for count, row in enumerate(rows(documents, words), 1):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{flags.out}: {count} chats")


if __name__ == "__main__":
    main()
