"""The commands, a file each: `run` does what its options say."""
