"""The slider's mathematics: importances in, a plan for every layer out. Free of models."""
