"""The owner of all runs: accepts them, prepares them, decides what is built when, records and reports."""
