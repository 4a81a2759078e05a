"""Rooms of a class: the pooled predictions of its students, by the lesson's numbered questions."""
