"""The HTTP interface, thin: parse, one call, render. One file for each resource; the others serve every call."""
