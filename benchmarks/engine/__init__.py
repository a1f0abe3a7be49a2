"""What serving costs and brings; `python -m benchmarks engine` runs all of these."""
