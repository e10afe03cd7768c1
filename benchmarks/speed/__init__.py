"""How fast, with how much memory, beside a peer or the limit: one question a file."""
