"""Runs made elsewhere: their logs as run folders, where a quantity is the same as ours."""
