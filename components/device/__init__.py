"""Models that run in the user's browser: the WebAssembly build of llama.cpp, and GGUF files of each setting."""
