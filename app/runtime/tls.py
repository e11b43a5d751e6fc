"""TLS of the service: certificates that are renewed on disk are taken over without a restart."""

import asyncio
import logging
import ssl
from datetime import timedelta
from pathlib import Path

from app.errors import StartError

log = logging.getLogger(__name__)

LOOK = timedelta(seconds=2)  # between two looks at the files

Seen = tuple[tuple[int, int, int] | None, ...]


class ServerTls:
    """The TLS context of a service, for TLS 1.2 and up.

    `context` stays the same. At each handshake it hands over to what the files said last, so connections that are
    there already stay, and new ones get the new certificate. Files that cannot be used leave the old ones in force,
    with one warning. With `client_ca`, a client has to have a certificate of these authorities.

    Raises StartError when the files cannot be used at the start.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._files = (cert, key, *([client_ca] if client_ca else []))
        self._client_ca = client_ca
        self._seen = self._look()
        self._tried = self._seen
        try:
            self._current = self._load()
            self.context = self._load()
        except ValueError as error:
            raise StartError(f"PQS_TLS_CERT and PQS_TLS_KEY: {error}") from None
        self.context.sni_callback = self._hand_over

    def renew(self) -> bool:
        """Take over the files where they have changed. True: new connections get something else from now on.

        What changed since the last call is taken over at the next one, when it is complete.
        """
        seen = self._look()
        if seen == self._seen or seen != self._tried:
            self._tried = seen
            return False
        self._seen = seen
        try:
            self._current = self._load()
        except ValueError as error:
            log.warning("the new TLS files cannot be used: %s; the old ones stay in force", error)
            return False
        log.info("the TLS certificate was renewed")
        return True

    async def run(self, stop: asyncio.Event) -> None:
        """Watch the files until `stop` is set."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await asyncio.wait({stopping}, timeout=LOOK.total_seconds())
                self.renew()
        finally:
            stopping.cancel()

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """OpenSSL calls this in each handshake, whether the client names a server or not, before it needs the key."""
        connection.context = self._current

    def _look(self) -> Seen:
        """The time, size and inode of each file: one of them changes when the file is written or replaced."""
        seen: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                found = file.stat()
                seen.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                seen.append(None)
        return tuple(seen)

    def _load(self) -> ssl.SSLContext:
        """A context of what is in the files. Raises ValueError, which names the file and shows nothing of it."""
        cert, key, *_ = self._files
        for file in self._files:
            try:
                file.read_bytes()
            except OSError as error:
                raise ValueError(f"{file} cannot be read: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(cert, key, password=_no_passphrase)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"{cert} and {key} are not a certificate and its key: {_said(error)}") from None
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self._client_ca} holds no certificates: {_said(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session is not verified again: it would outlive its authority. TLS 1.2 resumes sessions from a
            # cache of OpenSSL that Python cannot switch off, so it is left out here.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context


def _no_passphrase() -> str:
    """OpenSSL asks for one here, and would ask the terminal otherwise."""
    raise ValueError("the key has a passphrase")


def _said(error: ssl.SSLError | ValueError) -> str:
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
