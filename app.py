"""IntraSlice Explorer, the page. `python app.py` starts it; a Hugging Face Space runs the same file."""

from components.start import main

if __name__ == "__main__":
    main()
