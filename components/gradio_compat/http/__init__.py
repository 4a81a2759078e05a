"""ASGI middleware that checks, limits and answers requests before gradio sees them."""
