"""One file a claim: each runs alone, prints its method, machine and ratios, and writes JSON."""
