"""The service over TLS as a process: its printed lines, its admitted clients, and certificates renewed on disk."""

import json
import os
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.processes import PATIENCE, Service, pqs, refusal, serving, until

# Its tests are no coroutines.
pytestmark = pytest.mark.usefixtures("anyio_backend")


def trusting(authority: Authority, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client's TLS context that trusts this authority and has this certificate."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def client_of(service: Service, context: ssl.SSLContext) -> httpx.Client:
    """A client of the service."""
    return httpx.Client(base_url=service.url, verify=context, timeout=PATIENCE)


def name_of(service: Service, context: ssl.SSLContext) -> str:
    """The common name of the certificate that a new connection receives."""
    with client_of(service, context) as client, client.stream("GET", "/livez") as answer:
        stream = answer.extensions["network_stream"]
        found = stream.get_extra_info("ssl_object").getpeercert()
    return str(dict(pair[0] for pair in found["subject"])["commonName"])


def test_printed_lines_work_over_tls(database_url: str, tmp_path: Path) -> None:
    """The printed lines say https, and work in curl if it trusts the certificate's authority."""
    authority = Authority()
    ca, (cert, key) = authority.write(tmp_path), authority.issue(tmp_path, "service")
    with serving(tmp_path, database_url=database_url, tls_cert=cert, tls_key=key) as service:
        assert service.url.startswith("https://127.0.0.1:")
        lines = [line for line in service.printed.splitlines() if line.startswith("  curl ")]
        answers = [
            json.loads(
                subprocess.run(
                    line,
                    shell=True,
                    check=True,
                    capture_output=True,
                    timeout=PATIENCE,
                    env=os.environ | {"CURL_CA_BUNDLE": str(ca)},
                ).stdout
            )
            for line in lines
        ]
        assert [answers[0]["outcome"], answers[1]["current_state"], answers[2]["total"]] == [
            "applied",
            "pending_registration",
            1,
        ]
        with client_of(service, trusting(authority)) as client:
            document = client.get("/openapi.json").raise_for_status().json()
            assert document["info"]["title"] == "Projection Query Service"
        with httpx.Client() as plain, pytest.raises(httpx.TransportError):
            plain.get(service.url.replace("https", "http") + "/livez")
        assert "Traceback" not in service.log


def test_renewed_certificates_are_taken_over_by_every_worker(database_url: str, tmp_path: Path) -> None:
    """All workers use renewed certificates without a restart; open connections stay; bad files change nothing."""
    authority = Authority()
    cert, key = authority.issue(tmp_path, "before")
    context = trusting(authority)
    with serving(tmp_path, workers=2, database_url=database_url, tls_cert=cert, tls_key=key) as service:
        workers = service.await_workers(2)
        with client_of(service, context) as kept:
            kept.get("/livez").raise_for_status()
            assert name_of(service, context) == "before"
            authority.issue(tmp_path, "after")
            until(
                lambda: service.log.count("the TLS certificate was renewed") == 2,
                "both workers take it over",
                poll=0.2,
            )
            assert {name_of(service, context) for _ in range(8)} == {"after"}
            kept.get("/livez").raise_for_status()
            key.write_text("nonsense")
            until(lambda: service.log.count("the old ones stay in force") == 2, "both workers refuse it", poll=0.2)
            assert name_of(service, context) == "after"
            assert service.workers() == workers


def test_clients_need_certificates_where_authorities_are_set(database_url: str, tmp_path: Path) -> None:
    """With authorities set, clients without their certificate get no answer; a stop does not wait for clients."""
    servers, clients, others = Authority("servers"), Authority("clients"), Authority("others")
    cert, key = servers.issue(tmp_path / "server", "service")
    settings = {"tls_cert": cert, "tls_key": key, "tls_client_ca": clients.write(tmp_path / "clients")}
    good = clients.issue(tmp_path / "good", "node")
    bad = others.issue(tmp_path / "bad", "node")
    with (
        serving(tmp_path, database_url=database_url, **settings) as service,
        client_of(service, trusting(servers, good)) as client,
    ):
        assert client.get("/readyz").status_code == 200
        for refused in (None, bad):
            with client_of(service, trusting(servers, refused)) as stranger, pytest.raises(httpx.TransportError):
                stranger.get("/livez")
        begun = time.monotonic()
        service.process.terminate()  # while the client's connection is open and idle
        assert service.await_end() == 0
        assert time.monotonic() - begun < 5


def test_a_service_does_not_start_with_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Unusable files prevent the start, with one line that names the settings and the file."""
    authority = Authority()
    cert, _ = authority.issue(tmp_path, "service")
    _, other = authority.issue(tmp_path / "other", "other")
    run = pqs("serve", "--port", 0, tls_cert=cert, tls_key=other, data_dir=tmp_path / "data")
    assert "PQS_TLS_CERT and PQS_TLS_KEY: " in refusal(run)
    assert "are not a certificate and its key" in refusal(run)
    assert not (tmp_path / "data").exists()
