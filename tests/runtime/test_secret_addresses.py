"""No secret of an address is kept or shown, whatever form the address has, and everything else of it is."""

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.runtime.secret_addresses import address_without_secrets, without_secrets
from macrec_pipeline.runtime.text_sanitizing import one_line_error

SECRET = "hunter2"
SECRET_PARAMETERS = [
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-Credential",
    "x-goog-signature",
    "AWSAccessKeyId",
    "Signature",
    "Key-Pair-Id",
    "Policy",
    "Expires",
    "sig",
    "se",
    "token",
    "access_token",
    "api_key",
    "apikey",
    "key",
    "password",
    "pwd",
    "auth",
    "client_secret",
    "jwt",
    "hmac",
    "q-sign-algorithm",
    "OSSAccessKeyId",
    "hdnea",
    "__token__",
    "s",
    "oh",
]
SCHEMES = ["http://", "https://", "HTTPS://", "s3://", "ftp://", "postgresql+psycopg2://", "//", "https:\\\\"]
HOSTS = ["cdn.example.com", "cdn.example.com:8443", "localhost", "10.0.0.1:80", "[2001:db8::1]", "[::1]:8080"]
PATHS = ["", "/", "/a.jpg", "/img@2x.png", "/a/b%20c/d.jpg", "/12:30/x@y.jpg", "/a;b.jpg"]
HARMLESS = ["", "?w=300&h=200", "?id=42", "?v=1.2.3", "?file=summer-dress-2024.jpg", "#top", "?width=800&fm=webp"]


@given(
    scheme=st.sampled_from(SCHEMES),
    host=st.sampled_from(HOSTS),
    path=st.sampled_from(PATHS),
    end=st.sampled_from(HARMLESS),
)
def test_an_address_without_secrets_stays_as_it_is(scheme: str, host: str, path: str, end: str) -> None:
    address = scheme + host + path + end
    assert address_without_secrets(address) == address
    assert without_secrets(f"{address} is away") == f"{address} is away"


@settings(max_examples=500)
@given(
    scheme=st.sampled_from(SCHEMES),
    before=st.text(":ab1!$&'*+,;=%~@.-_", max_size=6),
    after=st.text("ab1!$&'*+,;=%~@:.-_", max_size=6),
    host=st.sampled_from(HOSTS),
    path=st.sampled_from(PATHS),
    end=st.sampled_from(HARMLESS),
)
def test_users_and_passwords_are_removed(scheme: str, before: str, after: str, host: str, path: str, end: str) -> None:
    """Whatever user name and password stand before the host, the address is the one without them."""
    address = f"{scheme}{before}{SECRET}{after}@{host}{path}{end}"
    assert address_without_secrets(address) == f"{scheme}{host}{path}{end}"
    assert SECRET not in without_secrets(f"GET '{address}': failed")


@settings(max_examples=500)
@given(
    scheme=st.sampled_from(SCHEMES),
    host=st.sampled_from(HOSTS),
    path=st.sampled_from(PATHS),
    name=st.sampled_from(SECRET_PARAMETERS),
    spell=st.sampled_from([str, str.upper, str.lower, lambda name: quote(name, safe="").replace("-", "%2D")]),
    others=st.lists(st.sampled_from(["w=300", "id=42", "X-Amz-Date=20260101T000000Z"]), max_size=3),
    position=st.integers(0, 3),
    separator=st.sampled_from(["&", ";", "&amp;"]),
    mark=st.sampled_from(["?", "#", "?a=1#", "?a=1?", "?&"]),
    after=st.text("ab1!$'*+,%~@:/=.-_", max_size=6),
)
def test_secret_parameters_are_removed(
    scheme: str, host: str, path: str, name: str, spell: object, others: list[str], position: int, separator: str,
    mark: str, after: str,
) -> None:  # fmt: skip
    """Host and path stay; the whole query goes, since its other parameters belong to the signature."""
    parameters = list(others)
    parameters.insert(position, f"{spell(name)}={SECRET}{after}")  # type: ignore[operator]
    address = f"{scheme}{host}{path}{mark}{separator.join(parameters)}"
    shown = address_without_secrets(address)
    assert SECRET not in shown
    assert shown == f"{scheme}{host}{path}{mark[0]}..."
    assert address_without_secrets(shown) == shown
    assert SECRET not in without_secrets(f'["{address}"]') + without_secrets(f"GET {address}, then\nnothing")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:p/w?d#x@host/a.jpg", "https://host/a.jpg"),
        ("user:hunter2@cdn.example.com/a.jpg", "cdn.example.com/a.jpg"),
        ("https:/user:hunter2@host/a.jpg", "https:/host/a.jpg"),
        ("https://host/a.jpg;jsessionid=hunter2?w=1", "https://host/a.jpg;...?w=1"),
        ("https://res.cloudinary.com/shop/image/upload/s--hunter2a--/a.jpg", "https://res.cloudinary.com/shop/image/upload/.../a.jpg"),
        ("https://host/?url=https%3A%2F%2Fme%3Ahunter2%40other%2Fa.jpg", "https://host/?..."),
        ("https://host/?url=https%3A%2F%2Fother%2Fa.jpg%3Fsig%3Dhunter2", "https://host/?..."),
        ("https://host/?url=https%3A%2F%2Fother%2Fa.jpg", "https://host/?url=https%3A%2F%2Fother%2Fa.jpg"),
        ("https://host/a.jpg?eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2ln", "https://host/a.jpg?..."),
        ("https://host/a.jpg?unknown=8f14e45fceea167a5a36dedd4bea2543", "https://host/a.jpg?..."),
        ("https://host/a.jpg%3Fsig%3Dhunter2", "https://host/a.jpg%3F..."),
        (" https://me:hunter2@host/a b.jpg?sig=hunter2 x\ny", "https://host/a b.jpg?..."),
        ("shop@example.com", "shop@example.com"),
        ("not an address", "not an address"),
        ("", ""),
    ],
)  # fmt: skip
def test_forms_by_hand(address: str, shown: str) -> None:
    assert address_without_secrets(address) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter2@db/mlflow is away", "postgresql://db/mlflow is away"),
        ("models:/macrec-demo@champion", "models:/macrec-demo@champion"),
        ("Write to mailto:shop@example.com, at 12:30.", "Write to mailto:shop@example.com, at 12:30."),
        ("See (https://host/a?key=hunter2), or [https://me:hunter2@b/].", "See (https://host/a?...), or [https://b/]."),
        ("line 3: 'id,https://me:hunter2@host/a.jpg,5'", "line 3: 'id,https://host/a.jpg,5'"),
        ("Set `escape: '\\'` // nothing", "Set `escape: '\\'` // nothing"),
        ("b'u1\\thttps://h/x?sig=hunter2'", "b'u1\\thttps://h/x?...'"),
    ],
)
def test_addresses_in_texts(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@given(st.text(max_size=80))
def test_any_text_is_accepted(text: str) -> None:
    assert without_secrets(without_secrets(text)) == without_secrets(text)
    assert isinstance(address_without_secrets(text), str)


def test_an_error_of_another_library_loses_secrets_before_it_is_cut() -> None:
    error = ValueError("cannot open https://me:hunter2@host/a.jpg?sig=hunter2 now")
    assert one_line_error(error) == "cannot open https://host/a.jpg?... now"
    assert "hun" not in one_line_error(error, max_length=len("cannot open https://me:hun"))
