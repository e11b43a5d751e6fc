"""The OpenAPI document: written from the types that answers are encoded from, with examples from real answers."""
