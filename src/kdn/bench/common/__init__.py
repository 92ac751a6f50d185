"""What all benchmarks share: timing, results, reports."""
