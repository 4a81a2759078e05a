"""What strangers bring, read within bounds: text files, and what is worked on in a process of its own."""
