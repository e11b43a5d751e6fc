"""A small OpenID Connect issuer for tests: a real HTTP server with keys and faults that a test sets."""

import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "pqs"
ABOUT = "/realm/.well-known/openid-configuration"
JWKS = "/realm/keys"

Json = dict[str, Any]


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A new RSA key."""
    return rsa.generate_private_key(65537, bits)


class Signer:
    """A signing key, and its entry in the issuer's list of keys."""

    def __init__(self, kid: str | None, algorithm: str, key: Any = None, **listed: object) -> None:
        self.kid, self.algorithm = kid, algorithm
        match algorithm:
            case "ES256":
                self.key = key or ec.generate_private_key(ec.SECP256R1())
                public: Json = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
            case "EdDSA":
                self.key = key or ed25519.Ed25519PrivateKey.generate()
                public = OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
            case _:
                self.key = key or rsa_key()
                public = RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        public.pop("key_ops", None)
        self.jwk = public | ({} if kid is None else {"kid": kid}) | listed

    def sign(self, claims: Json, **header: object) -> bytes:
        """A token signed with this key."""
        named = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(claims, self.key, self.algorithm, headers=named | header).encode()


def by_hand(header: Json, claims: Json, signature: bytes = b"x") -> bytes:
    """A token that no library would produce."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)


class Issuing:
    """The issuer's answers. `requests` counts fetches of its keys."""

    def __init__(self) -> None:
        self.url = ""
        self.signers: list[Signer] = []
        self.requests = 0
        self.status = 200
        self.about: Json = {}  # what differs in the discovery document
        self.body: bytes | None = None  # in place of the keys
        self.headers: dict[str, str] = {}
        self.delay = 0.0  # seconds

    def claims(self, **changes: object) -> Json:
        """The claims of a valid token with `changes`; a claim that is None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "node-7",
            "exp": now + 600,
            "iat": now,
            "scope": "openid entities:read",
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """The answer to a request for a path."""
        if path == ABOUT:
            about = {"issuer": self.url, "jwks_uri": self.url.removesuffix("/realm") + JWKS} | self.about
            return 200, {}, json.dumps(about).encode()
        if path != JWKS:
            return 404, {}, b""
        self.requests += 1
        time.sleep(self.delay)
        keys = json.dumps({"keys": [signer.jwk for signer in self.signers]}).encode()
        return self.status, self.headers, keys if self.body is None else self.body


@contextmanager
def issuing() -> Iterator[Issuing]:
    """An issuer on a free port."""
    issuer = Issuing()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = issuer.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore clients that disconnect."""

    with Server(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_address[1]}/realm"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
