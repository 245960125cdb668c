"""What a run measures and tells: metrics, alarms, probes, log, TensorBoard, run.json."""
