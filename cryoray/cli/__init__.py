"""The command line: one thin file for each verb, and doctor. Imports nothing heavy."""
