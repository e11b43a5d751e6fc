"""The exit statuses of commands that ask a service. click itself ends with 2 after a wrong option."""

FAILED = 1
NOT_FOUND = 3
CONFLICTING = 4
UNAVAILABLE = 5
TIMED_OUT = 6
