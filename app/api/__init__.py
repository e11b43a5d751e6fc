"""The HTTP interface, thin: parse, one call, render. One file a resource."""
