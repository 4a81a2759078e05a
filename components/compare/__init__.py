"""The Compare tab: three models answer one prompt, each with what it costs."""
