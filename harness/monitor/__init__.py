"""What happened in a step, measured identically for every algorithm from the same intermediates."""
