"""The web server: the page's class, language of responses, health check, shutdown. Imports no tab."""
