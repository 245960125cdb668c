"""A small network that learns foreground from the user's own images, without labels."""
