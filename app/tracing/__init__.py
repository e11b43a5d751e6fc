"""Traces: what is noted of sampled requests on their way, and how that becomes spans. See docs/how-to/traces.md."""
