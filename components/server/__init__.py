"""What hangs on the web server: its queue, its health, and how it ends. Knows no tab."""
