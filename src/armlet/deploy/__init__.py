"""What comes after a student is distilled: what a decision costs and what would make it cheaper, the
graph in another runtime, measured before it is written, and the server. Knows policies, worlds and
runtimes; knows no recipe."""
