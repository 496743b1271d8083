"""Mirrors of run folders."""
