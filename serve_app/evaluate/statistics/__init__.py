"""Statistics of paired comparisons: numbers in, decisions out. Pure; imports numpy alone."""
