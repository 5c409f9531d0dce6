"""What only a GPU can show of the four scripts, as a card of findings: `python -m benchmarks.gpu --minutes 10`."""
