"""Maps from particles, curves from maps, and how alike two images are."""
