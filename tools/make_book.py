#!/usr/bin/env python3
"""Takes one book out of an archive of documents.

usage: make_book.py ARCHIVE.xz TITLE TARGET

ARCHIVE.xz holds UTF-8 documents separated by NUL bytes. The one document that begins with
"# Title: TITLE" is written to TARGET whole, with a newline at its end. It is an error if none or
several do.
"""

import argparse
import lzma
import pathlib
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("title")
    parser.add_argument("target", type=pathlib.Path)
    args = parser.parse_args()

    documents = lzma.decompress(args.archive.read_bytes()).decode("utf-8").split("\0")
    heading = f"# Title: {args.title}\n"
    found = [document for document in documents if document.startswith(heading)]
    if len(found) != 1:
        sys.exit(f"{args.archive}: {len(found)} documents begin with {heading!r}, 1 wanted")
    args.target.write_text(found[0].rstrip("\n") + "\n", encoding="utf-8")
    print(f"{args.target}: {args.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
