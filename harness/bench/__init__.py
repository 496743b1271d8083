"""Speed, memory and parity, measured; the only place that knows TRL."""
