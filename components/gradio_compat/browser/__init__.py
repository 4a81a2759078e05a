"""What works around gradio's half in the browser."""
