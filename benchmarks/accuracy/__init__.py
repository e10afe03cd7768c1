"""How right, on what nobody had seen: one question a file."""
