"""Episodes and traces on disk and in memory. Knows no network, no recipe and no benchmark."""
