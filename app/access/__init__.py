"""Who may do what: keys, OpenID tokens, grants, limits and the posture of a start."""
