"""A tiny model and a text of its own words on the disk, and the page's settings for them."""

from collections.abc import Callable
from pathlib import Path

from components.views import Settings


def tiny_settings(home: Path, make_model: Callable, word_tokenizer: Callable) -> Settings:
    """Settings whose model and text are written to `home`. Token n is the word `wn`."""
    words = [f"w{index}" for index in range(4, 256)]
    model = make_model()
    model.generation_config.eos_token_id = None  # random weights end their answers at random
    model.save_pretrained(home / "tiny")
    word_tokenizer(words).save_pretrained(home / "tiny")
    paragraphs = [" ".join(words[(start * 7 + step * 3) % 252] for step in range(120)) for start in range(60)]
    (home / "text.txt").write_text("\n\n".join(paragraphs))
    return Settings(model=str(home / "tiny"), text=str(home / "text.txt"), sequences=8, length=32)
