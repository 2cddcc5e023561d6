"""A health check that sends requests like a client: to the service's own name, for a response that needs its back ends.

    probe.py URL [URL ...]               each URL must respond with status 200
    probe.py --expect WORD URL [...]     and the response must contain the word
    probe.py --post JSON URL [...]       send a POST request with this body

Only needs the standard library, since it runs in every image.
"""

import argparse
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 8.0


def problem(url: str, *, post: str | None, expect: str) -> str | None:
    """Describe what is wrong with the response; None if nothing is."""
    headers = {"Content-Type": "application/json"} if post else {}
    request = urllib.request.Request(url, data=post.encode() if post else None, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            body = response.read().decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        return f"{url}: status {error.code}, {error.read(200)!r}"
    except OSError as error:
        return f"{url}: {error}"
    return None if expect in body else f"{url}: expected {expect!r} in the response, but got {body[:200]!r}"


def main() -> None:
    """Exit with status 1 and a message unless every URL responds as expected."""
    parser = argparse.ArgumentParser(description="Exit with status 0 if every URL responds as expected.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--expect", default="", metavar="WORD", help="text that every response must contain")
    parser.add_argument("--post", metavar="JSON", help="send a POST request with this body")
    arguments = parser.parse_args()
    for url in arguments.urls:
        if found := problem(url, post=arguments.post, expect=arguments.expect):
            sys.exit(found)


if __name__ == "__main__":
    main()
