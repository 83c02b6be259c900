"""What a robot is: its actions, its state, its cameras, and whether two descriptions of one agree.

Nothing here imports torch, a data set or a policy, so that a robot's own computer can use it.
"""
