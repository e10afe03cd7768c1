"""What the service speaks: its messages, its token, and a client; needs no Ray."""
