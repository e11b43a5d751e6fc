"""The type variable of what works on the rows of any projection. Apart, so that values need no typing-extensions."""

from typing_extensions import TypeVar

from app.domain.registration import Registration
from app.domain.rows import Row

# The row of a projection. Where a generic type is not told which, it is a registration.
R = TypeVar("R", bound=Row, default=Registration)
