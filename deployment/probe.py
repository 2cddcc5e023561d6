"""A health check that asks as a client does: by the service's own name, for an answer that its back ends have part in.

    probe.py URL [URL ...]               each answers with status 200
    probe.py --expect WORD URL [...]     and its body holds the word
    probe.py --post JSON URL [...]       asked with a body

Needs the standard library alone, since it runs in every image.
"""

import argparse
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 8.0


def problem(url: str, *, post: str | None, expect: str) -> str | None:
    """What is wrong with the answer; None if nothing is."""
    headers = {"Content-Type": "application/json"} if post else {}
    request = urllib.request.Request(url, data=post.encode() if post else None, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            body = answer.read().decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.read(200)!r}"
    except OSError as error:
        return f"{url}: {error}"
    return None if expect in body else f"{url}: no {expect!r} in {body[:200]!r}"


def main() -> None:
    """Exit with 1, and say why, unless every URL answers as it should."""
    parser = argparse.ArgumentParser(description="Exit with 0 if every URL answers as it should.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--expect", default="", metavar="WORD")
    parser.add_argument("--post", metavar="JSON")
    asked = parser.parse_args()
    for url in asked.urls:
        if found := problem(url, post=asked.post, expect=asked.expect):
            sys.exit(found)


if __name__ == "__main__":
    main()
