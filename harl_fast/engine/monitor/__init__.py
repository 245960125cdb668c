"""What a run measures and where it tells it: metrics, alarms, probes, and the table of sinks."""
