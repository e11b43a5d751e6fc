"""Java's HttpClient with its default settings, which offers HTTP/2."""

from pathlib import Path

from tests.edge.programs import program, run
from tests.processes import Service

CLIENT = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

class Client {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        for (int sequence = 1; sequence <= 2; sequence++) {
            var event = "{\\"event_id\\": \\"0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1d0" + sequence + "\\","
                + "\\"type\\": \\"registration." + (sequence == 1 ? "initiated" : "accepted") + "\\","
                + "\\"entity_id\\": \\"7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a\\","
                + "\\"position\\": {\\"sequence\\": " + sequence + "},"
                + "\\"occurred_at\\": \\"2026-01-01T00:00:0" + sequence + "Z\\""
                + (sequence == 1 ? ", \\"data\\": {\\"node_type\\": \\"compute\\"}}" : "}");
            var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/v1/events"))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(event))
                .build();
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
        }
    }
}
"""


def test_events_are_taken_in(live: Service, tmp_path: Path) -> None:
    """Two events on one connection are applied; the offer of HTTP/2 is ignored."""
    java = program("java")
    source = tmp_path / "Client.java"
    source.write_text(CLIENT)
    lines = run(java, source, live.url).stdout.decode().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("200 HTTP_1_1 ")
        assert '"outcome":"applied"' in line
