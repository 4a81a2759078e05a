"""The page as a web server: its class, the language of its answers, its health, its shutdown. Knows no tab."""
