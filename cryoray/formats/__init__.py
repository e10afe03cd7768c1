"""What other programs read and write: image stacks, STAR files, selections; verdicts for them."""
