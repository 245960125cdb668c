"""Programs that come after training: pictures, comparison, export."""
