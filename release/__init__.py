"""What is checked and made when a version is released."""
