"""Followers of the change log: the reader that knows what is settled, places, and answers."""
