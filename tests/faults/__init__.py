"""What can go wrong beside the code itself: kills, full disks, dead databases, peers that misbehave.

`python -m tests.faults` injects it in numbers; `test_*.py` here, a little of each for every run of the tests.
"""
