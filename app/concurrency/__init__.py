"""Work that runs at once: workers, and the circuit breaker."""
