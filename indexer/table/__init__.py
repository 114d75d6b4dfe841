"""The Delta tables of an index: schema, files, commits and queries."""
