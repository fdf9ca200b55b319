"""What a person looks at: the table of drift figures and the filmstrip of several policies."""
