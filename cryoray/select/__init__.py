"""The page on which a person makes a selection, from verdicts and their own eyes."""
