"""The commands, a file for each: options, and what they print."""
