"""Source rows to network input, and the prepared set on disk."""
