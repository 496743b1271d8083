"""How well the collapse detectors work: synthetic curves with known onsets, and real runs broken on purpose."""
