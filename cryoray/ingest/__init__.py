"""Ray Data: row ranges read and prepared where they are needed, and merged into a set."""
