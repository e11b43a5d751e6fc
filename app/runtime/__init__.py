"""The process around the service: workers, sockets, signals, log and metrics. It knows no route."""
