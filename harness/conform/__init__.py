"""Numbers that other libraries computed, against our parts."""
