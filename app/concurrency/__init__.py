"""Work that runs at once: workers, lanes that join requests into batches, and the circuit breaker."""
