"""A lecture: students who open the page together, move the slider, have answers written, and follow the lesson."""
