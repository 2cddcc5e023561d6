"""Addresses (URLs) without the secrets in them: the one place that decides what of an address may be kept or shown.

Addresses in a catalogue are read from files of others, and may hold a user name and password, a signature or an access
token. They are needed to load an image, and nowhere else: tables, logs, errors, metadata and terminals get the result
of the functions here. User names and passwords are removed. If a query or fragment has a secret, all of it becomes
`...`: its other parameters, such as a time of expiry, belong to the secret.
"""

import re
from urllib.parse import unquote_plus

_LEFT_OUT = "..."
# In front of a user name: a scheme with or without slashes, or the slashes alone.
_ADDRESS = r"(?:[a-z][a-z0-9+.-]{0,30}:)?[/\\]{2}"  # limited lengths keep the search linear
_BEGINNING = re.compile(rf"({_ADDRESS})(.*)", re.IGNORECASE | re.DOTALL)
_ADDRESS_IN_TEXT = re.compile(rf"{_ADDRESS}[^\s\"<>]+", re.IGNORECASE)
_END_OF_TEXT = re.compile(r"[]'`.,;:!)}]*\Z")
# `user:password@host` without slashes. An email address has no colon before its @.
_BARE_USER = re.compile(
    r"(?<![^\s'\"(\[<=,/:])(?!mailto:)[^\s'\"/:@]{1,100}:[^\s'\"/@]{1,500}@(?=[\w\[])", re.IGNORECASE
)
_QUERY_IN_TEXT = re.compile(r"(?<=\w)\?[^\s\"<>=]+=[^\s\"<>]+")
_PORT = re.compile(r"(?:\[[^]]*\]|[^:@]*)(?::\d*)?\Z")

# Names of parameters whose values are secrets, in lower case and without other characters than letters and digits.
_SECRET_NAME = re.compile(
    r".*(?:sign|sig\Z|token|secret|passw|passphrase|credential|hmac|jwt|apikey|accesskey|accountkey|authkey|privatekey"
    r"|sharedaccess|session|securelink).*"
    r"|xamz.*|xgoog.*|xoss.*|xcos.*|xtos.*|xobs.*|xbz.*|q(?:ak|sign.*)|hdn(?:ea|ts|tl)|pwd|pass|pw|key|keys|auth.*"
    r"|oauth.*|bearer|policy|keypairid|googleaccessid|\w*accesskeyid|expire[sd]?|expir(?:y|ation)|sas|se|skoid|code"
    r"|md5|sha1|sha256|hash|digest|nonce|otp|pin|login|user|username|oh|oe|sid|phpsessid|s|st|e"
)
_LONG_CODE = re.compile(r"[\w+/=~%-]{20,}")  # with letters and digits; file names with an ending have a full stop
_JSON_WEB_TOKEN = re.compile(r"eyJ[\w-]{8,}\.[\w-]+")
_PATH_SECRET = re.compile(r"(?<=/)s--[^/]+--(?=/)")  # Cloudinary


def address_without_secrets(address: str) -> str:
    """Return one address without user name, password, signature or token.

    An address without secrets is returned as it is.

    Args:
        address: the whole text is one address, whatever characters it holds; it need not be valid.
    """
    beginning = _BEGINNING.match(address.lstrip())
    if beginning is None:
        return _without_secret_parameters(_BARE_USER.sub("", address))
    return beginning[1] + _without_secret_parameters(_without_user(beginning[2]))


def without_secrets(text: str) -> str:
    """Return a text in which each address has lost its secrets. A text without addresses is returned as it is."""
    if not any(mark in text for mark in (":", "//", "?")):
        return text
    text = _BARE_USER.sub("", _ADDRESS_IN_TEXT.sub(_address_in_text, text))
    return _QUERY_IN_TEXT.sub(_query_in_text, text)


def _address_in_text(match: re.Match[str]) -> str:
    address = match[0]
    end = _END_OF_TEXT.search(address)
    assert end is not None
    return address_without_secrets(address[: end.start()]) + end[0]


def _query_in_text(match: re.Match[str]) -> str:
    """Shorten the query of an address without a scheme."""
    end = _END_OF_TEXT.search(match[0])
    assert end is not None
    return _without_secret_parameters(match[0][: end.start()]) + end[0]


def _without_user(rest: str) -> str:
    """Remove what stands before the host. A password may hold any character if it was not encoded."""
    authority = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return rest[authority.rindex("@") + 1 :]
    # The colon of `user:pass/word@host` is followed by no port, so the host comes later.
    if "@" in rest and not _PORT.match(authority):
        return rest[rest.rindex("@") + 1 :]
    return rest


def _without_secret_parameters(rest: str) -> str:
    """Shorten the query and the fragment if they hold a secret, and the parameters of the path."""
    path, mark, query = _split(rest)
    path = _PATH_SECRET.sub(_LEFT_OUT, path)
    if ";" in path and _has_secret(path.partition(";")[2].replace("/", ";")):
        path = path.partition(";")[0] + ";" + _LEFT_OUT
    return path + mark + (_LEFT_OUT if _has_secret(query) else query)


def _split(rest: str) -> tuple[str, str, str]:
    found = re.search(r"[?#]|%3[fF](?=[^/]*=|[^/]*%3[dD])", rest)
    return (rest, "", "") if found is None else (rest[: found.start()], found[0], rest[found.end() :])


def _has_secret(query: str) -> bool:
    for _ in range(3):  # an encoded address may be the value of a parameter, and hold an encoded address itself
        for parameter in re.split(r"[&;?#,]", query):
            name, _, value = parameter.partition("=")
            plain = re.sub(r"[^a-z0-9]", "", name[:200].lower())
            if (value and _SECRET_NAME.fullmatch(plain)) or _is_code(value or name):
                return True
        if "@" in query and (re.search(r"//[^/]*@", query) or _BARE_USER.search(query)):
            return True
        decoded = unquote_plus(query)
        if decoded == query:
            return False
        query = decoded
    return False


def _is_code(value: str) -> bool:
    if _JSON_WEB_TOKEN.search(value):
        return True
    return _LONG_CODE.fullmatch(value) is not None and any(map(str.isdigit, value)) and any(map(str.isalpha, value))
