"""The rules: states, positions, events, and how an event changes a registration. Pure: no I/O, no clock."""
