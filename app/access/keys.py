"""The form of a key: `pqs_<id>_<secret>_<check>`, how one is made, and how one is read.

`id` has 10 characters of base32 in lower case and is public: it names the key in lists, logs and the audit. `secret`
has 43 characters of base64url, 256 random bits. `check` is the CRC-32 of everything before it, as 8 hexadecimal
digits: a typing error is told from a wrong key, and a leak scanner recognises a key without asking anybody.

A secret is never compared with a secret. The service keeps SHA-256 of it and looks that up. The duration of a look-up
says at most something about a digest, and nobody can choose a secret for its digest. So no comparison here has to
take constant time. A slow password hash would add nothing: 256 random bits cannot be guessed.
"""

import re
from base64 import b32encode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from zlib import crc32

ID_LENGTH = 10  # characters
SECRET_LENGTH = 43  # characters
LENGTH = 4 + ID_LENGTH + 1 + SECRET_LENGTH + 1 + 8  # characters of a whole key
KEY_PREFIX = b"pqs_"

_ID = slice(4, 4 + ID_LENGTH)
_SECRET = slice(5 + ID_LENGTH, 5 + ID_LENGTH + SECRET_LENGTH)
_CHECKED = slice(0, 5 + ID_LENGTH + SECRET_LENGTH)
_CHECK = slice(5 + ID_LENGTH + SECRET_LENGTH, None)
# The last of 43 characters carries 4 bits; any other character in its place would be a second name of one secret.
_FORM = re.compile(rb"pqs_[a-z2-7]{10}_[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]_[0-9a-f]{8}")


class AccessKey:
    """A key as it is shown to its owner, once. Neither repr nor str contains the secret."""

    __slots__ = ("digest", "id", "text")

    def __init__(self, text: str) -> None:
        parsed = parse(text.encode())
        if parsed is None:
            raise ValueError("this is not a key")  # without a word of it
        self.text = text
        self.id, self.digest = parsed

    def __repr__(self) -> str:
        """The public part."""
        return f"AccessKey({self.id})"


def make(random: Callable[[int], bytes]) -> AccessKey:
    """A new key from `random`, which returns that many random bytes, as os.urandom does."""
    id_ = b32encode(random(7))[:ID_LENGTH].lower()
    secret = urlsafe_b64encode(random(32))[:SECRET_LENGTH]
    body = KEY_PREFIX + id_ + b"_" + secret
    return AccessKey((body + _check(body)).decode())


def parse(text: bytes) -> tuple[str, bytes] | None:
    """The id and the digest of the secret; None where this is not a key, or not one without a typing error."""
    if _FORM.fullmatch(text) is None or _check(text[_CHECKED]) != text[_CHECK]:
        return None
    return text[_ID].decode(), sha256(text[_SECRET]).digest()


def digest_of(text: bytes) -> bytes | None:
    """The digest of the secret, for the look-up on each request: the form of a known secret was checked before.

    None where the length, the beginning or the check is wrong.
    """
    if len(text) != LENGTH or text[:4] != KEY_PREFIX or _check(text[_CHECKED]) != text[_CHECK]:
        return None
    return sha256(text[_SECRET]).digest()


def id_in(text: bytes) -> bytes:
    """The characters where a key has its id."""
    return text[_ID]


def _check(body: bytes) -> bytes:
    return b"_%08x" % crc32(body)
