"""Image files: which there are, how they are read, and what of their colours is kept."""
