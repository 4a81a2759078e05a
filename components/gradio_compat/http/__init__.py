"""What a request may be, before gradio sees it: ASGI middleware."""
