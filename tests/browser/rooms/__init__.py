"""A class in real browsers: a presenter and students, on phones and desktops."""
