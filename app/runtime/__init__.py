"""The process around the service: HTTP on a connection, workers, sockets, TLS, signals, log and metrics. It knows no
route.
"""
