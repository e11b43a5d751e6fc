"""The parts of a service and of its workers, built from settings in one place.

No part knows the web framework: `app.main` adds it, and the workers' commands run without it.
"""

from app.parts.parts import FULL_SCANS, Parts
from app.parts.service import Observed, Service

__all__ = ["FULL_SCANS", "Observed", "Parts", "Service"]
