"""What the choices did: accuracy on arrays, and the page that shows it."""
