"""What a run measures and where it reports it: metrics, alarms, probes, and the table of sinks."""
