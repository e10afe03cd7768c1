"""Three CNNs: what they look like, how one is fitted, how three are boosted, and the bundle they ship in."""
