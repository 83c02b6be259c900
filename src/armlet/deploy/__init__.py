"""What comes after a student is distilled, and before it is worth it: what a decision costs, where, and
what would make it cheaper. Knows policies and worlds; knows no recipe."""
