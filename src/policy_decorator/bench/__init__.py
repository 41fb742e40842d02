"""How fast: our update and our training loop beside what one would use otherwise, on this machine, in one run.

learner   one update of ours, its sampling, and this machine's matrix products
eager     the same update, written plainly
loop      our training loop from end to end
sb3       Stable-Baselines3's, likewise
limit     the matrix products of one update, and how fast this machine multiplies
"""
