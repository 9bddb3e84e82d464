"""What is wrong with a machine, and how to mend it: small checks, each of which looks at one thing."""
