"""The command line: its options, the stages of a run, and the output of each command."""
