"""Image files: how they are found and read, and how their colours are converted."""
